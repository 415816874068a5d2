"""Log-probabilities and entropy in chunks against the plain formula, gradients too."""

import pytest
import torch
from torch import nn

from prmkit.errors import ConfigError
from prmkit.losses import on_grid, token_logprobs

V, H, N = 11, 6, 13


def make():
    torch.manual_seed(0)
    return nn.Linear(H, V), torch.randn(N, H, requires_grad=True), torch.randint(V, (N,))


def by_hand(head, hidden, tokens, temperature):
    probabilities = ((hidden @ head.weight.T + head.bias) / temperature).exp()
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    logs = torch.stack([probabilities[i, token].log() for i, token in enumerate(tokens.tolist())])
    return logs, -(probabilities * probabilities.log()).sum(1)


@pytest.mark.parametrize("chunk_logits", [1, 3 * V, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_equal_the_plain_formula(chunk_logits, temperature):
    head, hidden, tokens = make()
    got = token_logprobs(hidden, tokens, head, V, temperature, chunk_logits)
    wanted = by_hand(head, hidden, tokens, temperature)
    mix = torch.linspace(-1, 1, N)
    results = []
    for logprobs, entropy in ((got.logprobs, got.entropy), wanted):
        gradients = torch.autograd.grad((mix * logprobs + mix.flip(0) * entropy).sum(), [hidden, *head.parameters()])
        results.append((logprobs, entropy, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_entropy_of_known_distributions():
    def head(states):
        return torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]]).repeat(1, 1)

    got = token_logprobs(torch.zeros(2, 1), torch.tensor([3, 0]), head, 4)
    assert got.entropy.tolist() == pytest.approx([float(torch.tensor(4.0).log()), 0.0], abs=1e-6)
    assert got.logprobs.tolist() == pytest.approx([-float(torch.tensor(4.0).log()), 0.0], abs=1e-6)


def test_values_find_their_places_and_keep_gradients():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    grid = on_grid(values, mask)
    assert grid.tolist() == [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]
    (grid * torch.arange(6.0).view(2, 3)).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0]


def test_no_tokens():
    head, hidden, tokens = make()
    got = token_logprobs(hidden[:0], tokens[:0], head, V)
    assert got.logprobs.shape == got.entropy.shape == (0,)


def test_refusals():
    head, hidden, tokens = make()
    with pytest.raises(ConfigError, match="chunk_logits"):
        token_logprobs(hidden, tokens, head, V, chunk_logits=0)
    with pytest.raises(ConfigError, match="temperature"):
        token_logprobs(hidden, tokens, head, V, temperature=0.0)
