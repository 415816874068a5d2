"""Both decoders against transformers' own forward."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from prmkit.engines.inprocess.decoder import build_decoder
from prmkit.engines.inprocess.fused import FusedDecoder
from prmkit.engines.inprocess.generic import GenericDecoder
from prmkit.engines.inprocess.kv import round_up
from prmkit.errors import ConfigError
from prmkit.models.lora import LoraSpec, add_lora

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FUSED = {
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "qwen2, as many heads": lambda: Qwen2Model(Qwen2Config(**SIZES | {"num_key_value_heads": 4})),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES, head_dim=16)),
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES, rms_norm_eps=1e-2)),
    "llama, biases": lambda: LlamaModel(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama, scaled positions": lambda: LlamaModel(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "mistral": lambda: MistralModel(MistralConfig(**SIZES, sliding_window=None)),
}
GENERIC = {
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "mistral, sliding": lambda: MistralModel(MistralConfig(**SIZES, sliding_window=64)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
}


def made(make):
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():  # norms and biases start at one and zero, which would hide mistakes
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@torch.no_grad()
def in_pieces(decoder, ids, cuts):
    """Hidden states [B, T, H] of rows that begin at different times: row b is fed from piece b on."""
    batch, length = ids.shape
    kv = decoder.spec.allocate(batch, round_up(length + 40))
    kv += torch.randn_like(kv)  # what was never written must not be seen
    done = torch.zeros(batch, dtype=torch.long)
    out = torch.zeros(batch, length, 32)
    for number, width in enumerate(cuts):
        active = done + width <= length
        active &= torch.arange(batch) <= number
        start = done.clone()
        piece = torch.stack(
            [
                ids[b, s : s + width] if a else ids[b, :width] * 0
                for b, (s, a) in enumerate(zip(start, active, strict=True))
            ]
        )
        start[~active] = length  # their dummy tokens go behind everything
        hidden = decoder.forward(piece, start, kv, length + 1)
        for b in active.nonzero().flatten().tolist():
            out[b, start[b] : start[b] + width] = hidden[b]
            done[b] += width
    return out, done


@pytest.mark.parametrize("columnwise", [True, False])
@pytest.mark.parametrize("name", FUSED)
def test_fused_equals_transformers(name, columnwise):
    module = made(FUSED[name])
    decoder = build_decoder(module, columnwise=columnwise)
    assert isinstance(decoder, FusedDecoder)
    check(module, decoder)


@pytest.mark.parametrize("name", GENERIC)
def test_generic_equals_transformers(name):
    module = made(GENERIC[name])
    check(module, GenericDecoder(module))


def check(module, decoder):
    ids = torch.randint(0, 40, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = module(ids).last_hidden_state
    got, done = in_pieces(decoder, ids, [7, 1, 5, 9, 1, 1, 8, 4, 4, 8])
    assert done.tolist() != [0, 0, 0]
    for b in range(3):
        torch.testing.assert_close(got[b, : done[b]], wanted[b, : done[b]], rtol=1e-4, atol=1e-5)
    kv = decoder.spec.allocate(3, 64)
    with torch.no_grad():
        assert decoder.forward(ids, torch.zeros(3, dtype=torch.long), kv, 1, want_hidden=False) is None
        full = decoder.spec.allocate(3, 64)
        decoder.forward(ids, torch.zeros(3, dtype=torch.long), full, 1)
    assert torch.equal(kv, full)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="promised for MKL's products")
@pytest.mark.parametrize("columnwise", [True, False])
def test_bits_do_not_depend_on_how_tokens_are_cut_nor_on_company(columnwise):
    module = made(FUSED["qwen2"])
    decoder = build_decoder(module, columnwise=columnwise)
    ids = torch.randint(0, 40, (20, 64), generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(20, dtype=torch.long)
    widths = [64] if not columnwise else [40] + [1] * 10 + [14]
    with torch.no_grad():
        whole = decoder.forward(ids, zero, decoder.spec.allocate(20, 128), 1)
        kv = decoder.spec.allocate(16, 64)
        at, pieces = 0, []
        for width in widths if columnwise else [8, 16, 40]:
            pieces.append(decoder.forward(ids[2:18, at : at + width], zero[2:18] + at, kv, at + 1))
            at += width
    assert torch.equal(torch.cat(pieces, dim=1), whole[2:18])


@pytest.mark.parametrize(
    "make",
    [
        lambda: BloomModel(BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2)),
        lambda: MambaModel(MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, state_size=4)),
    ],
    ids=["positions outside position_ids", "recurrent"],
)
def test_refuses_what_it_would_compute_wrongly(make):
    with pytest.raises(ConfigError, match=r"engine.model: got '(Bloom|Mamba)Model'"):
        build_decoder(made(make), columnwise=True)


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        ({}, True),
        ({"hidden_act": "gelu"}, False),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, False),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}, False),
    ],
)
def test_architecture_decides(change, fused):
    decoder = build_decoder(made(lambda: Qwen2Model(Qwen2Config(**SIZES | change))), columnwise=True)
    assert isinstance(decoder, FusedDecoder) == fused
    assert decoder.context == (8 if "sliding_window" in change else 128)


def test_adapters_are_folded_in():
    module = made(FUSED["qwen2"])
    add_lora(module, LoraSpec(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    check(module, build_decoder(module, columnwise=True))


def test_half_precision_is_close():
    module = made(FUSED["qwen3"])
    ids = torch.randint(0, 40, (3, 40))
    with torch.no_grad():
        wanted = module(ids).last_hidden_state
    module.to(torch.bfloat16)
    got, done = in_pieces(build_decoder(module, columnwise=False), ids, [20, 20])
    assert done[0] == 40
    with torch.no_grad():
        own = module(ids).last_hidden_state.float()
    assert float((got[0] - wanted[0]).abs().mean()) < 1.5 * float((own[0] - wanted[0]).abs().mean())
