import math

import pytest
import torch

from prmkit.engines.inprocess.sampling import RowSampling, sample_keys, sample_tokens, uniforms

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """The published algorithm, in plain integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def rows(n, temperature=1.0, top_k=0, top_p=1.0, greedy=False):
    return RowSampling(
        torch.full((n,), float(temperature)),
        torch.full((n,), greedy),
        torch.full((n,), top_k),
        torch.full((n,), float(top_p), dtype=torch.double),
        greedy,
        top_k > 0 or top_p < 1,
    )


def test_uniforms_are_splitmix64():
    golden = 0x9E3779B97F4A7C15
    # The first outputs of splitmix64 from state 0, as published with the algorithm.
    assert [splitmix(golden * n & MASK) for n in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    for key in (0, 1, -1, 12345678901234567, -(2**63)):
        got = uniforms(torch.tensor([key]), torch.arange(5))[0].tolist()
        assert got == [(splitmix((key + golden * (n + 1)) & MASK) >> 12) / 2**52 for n in range(5)]


def test_uniforms_are_uniform_and_uncorrelated():
    keys = sample_keys(torch.tensor([0, 0, 1, 1024]), torch.tensor([0, 1, 0, 0]))
    u = uniforms(keys, torch.arange(20000))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert torch.allclose(u.mean(1), torch.tensor(0.5, dtype=torch.double), atol=0.01)
    off_diagonal = torch.corrcoef(u) - torch.eye(4, dtype=torch.double)
    assert float(off_diagonal.abs().max()) < 0.03
    assert len(set(keys.tolist())) == 4


def test_inverse_of_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.1, 0.0, 0.4, 0.5]])).expand(6, -1)
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 1 - 2.0**-52], dtype=torch.double)
    tokens, logprobs = sample_tokens(logits, u, rows(6))
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.1, 0.1, 0.4, 0.4, 0.5, 0.5])


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, [0, 0, 0.375, 0.625]),
        ({"top_p": 0.5}, [0, 0, 0, 1]),
        ({"top_p": 0.51}, [0, 0, 0.375, 0.625]),
        ({"top_p": 0.95}, [0, 0.15 / 0.95, 0.3 / 0.95, 0.5 / 0.95]),
        ({"top_k": 3, "top_p": 0.8}, [0, 0, 0.375, 0.625]),
        ({"top_k": 9}, [0.05, 0.15, 0.3, 0.5]),
        ({"temperature": 0.5}, [0.0025 / 0.365, 0.0225 / 0.365, 0.09 / 0.365, 0.25 / 0.365]),
    ],
)
def test_distribution_sampled_from(params, kept):
    probabilities = torch.tensor([0.05, 0.15, 0.3, 0.5])
    u = (torch.arange(4000, dtype=torch.double) + 0.5) / 4000
    tokens, logprobs = sample_tokens(probabilities.log().expand(4000, -1), u, rows(4000, **params))
    counts = torch.bincount(tokens, minlength=4) / 4000
    assert counts.tolist() == pytest.approx(kept, abs=1e-3)
    assert logprobs.tolist() == pytest.approx([math.log(kept[token]) for token in tokens.tolist()], abs=1e-5)


def test_equal_logits_are_cut_in_order_of_id():
    tokens, _ = sample_tokens(torch.zeros(2, 4), torch.tensor([0.4, 0.9], dtype=torch.double), rows(2, top_k=2))
    assert tokens.tolist() == [0, 1]


def test_greedy_is_untempered_and_whole():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.999], dtype=torch.double), rows(1, greedy=True))
    assert tokens.tolist() == [1]
    assert float(logprobs) == pytest.approx(2 - math.log(1 + math.e + math.e**2))


def test_rows_do_not_feel_that_others_are_truncated():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    u = uniforms(torch.arange(8), torch.arange(1))[:, 0]
    plain = sample_tokens(logits, u, rows(8))
    mixed = rows(8)
    mixed.top_k[4:] = 3
    mixed = RowSampling(mixed.temperature, mixed.greedy, mixed.top_k, mixed.top_p, True, True)
    together = sample_tokens(logits, u, mixed)
    assert torch.equal(plain[0][:4], together[0][:4])
    assert torch.equal(plain[1][:4], together[1][:4])
