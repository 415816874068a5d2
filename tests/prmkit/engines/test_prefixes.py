import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from prmkit.engines.inprocess.decoder import build_decoder
from prmkit.engines.inprocess.prefixes import PrefixCache, PrefixEncoder


def runs(node):
    return [part.tokens for part in node.path()]


def test_sequences_share_their_beginning():
    cache = PrefixCache(100)
    first, new = cache.insert((1, 2, 3, 4))
    assert (runs(first), new) == ([(1, 2, 3, 4)], 4)
    second, new = cache.insert((1, 2, 9))
    assert (runs(second), new) == ([(1, 2), (9,)], 1)
    assert runs(first) == [(1, 2), (3, 4)]
    inside, new = cache.insert((1, 2, 3))
    assert (runs(inside), new) == ([(1, 2), (3,)], 0)
    assert cache.insert((1, 2, 3, 4)) == (first, 0)
    assert cache.tokens == 5


def test_the_oldest_leaf_goes_first():
    cache = PrefixCache(6)
    for ids in ((1, 2), (1, 2, 3, 4), (5, 6), (1, 2, 8)):
        cache.insert(ids)
    cache.insert((1, 2, 3, 4))
    cache.trim()
    assert cache.tokens == 5  # (5, 6) is gone, all that begins with 1 is left
    assert [cache.insert(ids)[1] for ids in ((1, 2, 3, 4), (1, 2, 8), (5, 6))] == [0, 0, 2]


def test_against_a_plain_set_of_prefixes():
    rng = random.Random(0)
    cache, seen = PrefixCache(10**6), set()
    for _ in range(500):
        ids = tuple(rng.choices(range(3), k=rng.randint(1, 8)))
        prefixes = {ids[: n + 1] for n in range(len(ids))}
        node, new = cache.insert(ids)
        assert sum(runs(node), ()) == ids
        assert new == len(prefixes - seen)
        seen |= prefixes
        assert cache.tokens == len(seen)
    for capacity in (100, 10, 1, 0):
        cache.capacity = capacity
        cache.trim()
        assert cache.tokens <= capacity
    assert cache.insert((1, 1))[1] == 2


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(
        vocab_size=20, intermediate_size=48, max_position_embeddings=128, initializer_range=0.3, **sizes
    )
    return Qwen2Model(config).eval()


@pytest.mark.parametrize("columnwise", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_encoder_equals_the_module(module, columnwise, batch_tokens):
    decoder = build_decoder(module, columnwise=columnwise)
    encoder = PrefixEncoder(decoder, 60, batch_tokens, keep_hidden=True)
    rng = random.Random(1)
    seen, spent = set(), 0
    for _ in range(4):
        sequences = [tuple(rng.choices(range(3), k=3)) * rng.randint(1, 9) + (rng.randrange(20),) for _ in range(8)]
        with torch.no_grad():
            found = encoder.encode(sequences)
        for ids, (node, new) in zip(sequences, found, strict=True):
            with torch.no_grad():
                wanted = module(torch.tensor([ids])).last_hidden_state[0]
            got = torch.stack(node.read_hidden(range(len(ids))))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
            kv = decoder.spec.allocate(3, len(ids) + 2)
            node.read_kv(kv[:, :, :2])
            assert torch.equal(kv[:, :, 0], kv[:, :, 1])
            assert not kv[:, :, 2].any()
            assert not kv[:, :, 0, :, len(ids) :].any()
            assert kv[:, :, 0, :, : len(ids)].abs().sum(-1).all()
            spent += new
            seen |= {ids[: n + 1] for n in range(len(ids))}
        encoder.trim()
        assert encoder.cache.tokens <= 60
    assert spent >= len(seen)  # more only by what was evicted


def test_failure_leaves_no_half_filled_nodes(module):
    decoder = build_decoder(module, columnwise=True)
    encoder = PrefixEncoder(decoder, 60, 4096, keep_hidden=False)
    with pytest.raises(IndexError), torch.no_grad():
        encoder.encode([(1, 2, 3), (1, 2, 99)])
    with torch.no_grad():
        ((node, new),) = encoder.encode([(1, 2, 3)])
    assert new == 3
    assert node.kv is not None
