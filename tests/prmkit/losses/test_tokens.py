import pytest
import torch
from torch import nn

from prmkit.errors import ConfigError, DataError
from prmkit.losses import predicted_positions, token_cross_entropy

V, H = 11, 6


def make(n: int) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(H, V), torch.randn(n, H, requires_grad=True), torch.randint(V, (n,))


def by_hand(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    probabilities = (hidden @ head.weight.T + head.bias).exp()
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    return -sum(probabilities[i, label].log() for i, label in enumerate(labels.tolist()))


@pytest.mark.parametrize("chunk_logits", [1, 3 * V, 5 * V, 10**6])
def test_chunks_equal_the_plain_formula(chunk_logits: int) -> None:
    head, hidden, labels = make(13)
    wanted = torch.autograd.grad(by_hand(head, hidden, labels), [hidden, *head.parameters()])
    loss = token_cross_entropy(hidden, labels, head, V, chunk_logits)
    found = torch.autograd.grad(loss.loss_sum, [hidden, *head.parameters()])
    assert float(loss.loss_sum) == pytest.approx(float(by_hand(head, hidden, labels)), rel=1e-5)
    assert int(loss.count) == 13
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_chunks_bound_the_logits_held() -> None:
    """At no time may more than one chunk's logits be kept for the backward pass."""
    head, hidden, labels = make(64)
    kept: list[int] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        token_cross_entropy(hidden, labels, head, V, 4 * V)
    assert max(kept, default=0) < 64 * V // 2


def test_token_t_is_predicted_at_the_position_before() -> None:
    hidden = torch.arange(2 * 4).reshape(2, 4, 1).float()
    ids = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 0]])
    mask = torch.tensor([[False, False, True, True], [False, True, False, False]])
    states, labels = predicted_positions(hidden, ids, mask)
    assert labels.tolist() == [12, 13, 21]
    assert states.flatten().tolist() == [1.0, 2.0, 4.0]


def test_refusals() -> None:
    with pytest.raises(DataError, match="no token precedes"):
        predicted_positions(torch.zeros(1, 2, 1), torch.zeros(1, 2).long(), torch.tensor([[True, False]]))
    head, hidden, labels = make(2)
    with pytest.raises(ConfigError, match="chunk_logits"):
        token_cross_entropy(hidden, labels, head, V, 0)


def test_no_tokens_give_zero_and_zero_gradients() -> None:
    head, hidden, labels = make(0)
    loss = token_cross_entropy(hidden, labels, head, V)
    loss.loss_sum.backward()
    assert float(loss.loss_sum) == 0.0
    assert float(head.weight.grad.abs().sum()) == 0.0
