"""The critic's loss: hand-worked clips, slow twin, both heads, explained variance."""

import math
import statistics

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.losses import explained_variance, normalise, two_level_value_loss, value_loss

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (1.0, 1.0, 2.0, 0.5, -1.0),
        (1.1, 1.0, 2.0, 0.405, -0.9),
        (1.5, 1.0, 2.0, 0.32, 0.0),  # moved by more than .2 towards the target: no further
        (0.5, 1.0, 2.0, 1.125, -1.5),  # moved away: the whole error counts
        (2.5, 1.0, 2.0, 0.32, 0.0),  # past the target: the clipped value is worse
        (5.0, 1.0, 2.0, 4.5, 3.0),  # far past it: the value itself is worse
    ],
)
def test_clipped_by_hand(value, old, target, loss, gradient):
    at = torch.tensor([[value]], requires_grad=True)
    got = value_loss(at, torch.tensor([[old]]), torch.tensor([[target]]), torch.tensor([[True]]), clip=0.2)
    got.loss.loss_sum.backward()
    assert float(got.loss.loss_sum.detach()) == pytest.approx(loss, rel=1e-5)
    assert float(at.grad) == pytest.approx(gradient, abs=1e-5)
    assert float(got.metrics["clipped"].mean) == float(gradient == 0.0)


def case(seed=0, b=6, t=5):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(b, t, generator=generator) < 0.7
    return [torch.randn(b, t, generator=generator).where(mask, NAN) for _ in range(3)] + [mask]


@pytest.mark.parametrize("clip", [None, 0.3])
def test_equals_the_slow_twin_and_any_split(clip):
    values, old, returns, mask = case()
    total = 0.0
    for v, o, r, m in zip(*(x.flatten().tolist() for x in (values, old, returns, mask)), strict=True):
        if m:
            near = v if clip is None else min(max(v, o - clip), o + clip)
            total += max((v - r) ** 2, (near - r) ** 2) / 2
    whole = value_loss(values, old, returns, mask, clip).loss
    assert float(whole.mean) == pytest.approx(total / int(mask.sum()), rel=1e-5)
    parts = []
    for rows in torch.arange(6).split([1, 3, 2]):
        got = value_loss(values[rows], old[rows], returns[rows], mask[rows], clip).loss
        parts.append(float(normalise(got.loss_sum, whole.count, accumulation=3, ranks=1)) / 3)
    assert sum(parts) == pytest.approx(total / int(mask.sum()), rel=1e-5)


def test_a_mask_with_the_wrong_polarity_is_noticed():
    values, old, returns, mask = (torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[1.0, 9.0]]), None)
    mask = torch.tensor([[True, False]])
    assert float(value_loss(values, old, returns, mask, None).loss.loss_sum) == 0.5
    assert float(value_loss(values, old, returns, ~mask, None).loss.loss_sum) == 40.5


def test_gradients_of_hidden_entries_are_zero_and_finite():
    values, old, returns, mask = case(1)
    values.requires_grad_()
    value_loss(values, old, returns, mask).loss.loss_sum.backward()
    assert torch.isfinite(values.grad).all()
    assert values.grad[~mask].abs().sum() == 0


def test_both_heads_keep_their_own_counts():
    token, step = case(2), case(3, t=2)
    got = two_level_value_loss(tuple(token), tuple(step), clip=0.2)
    assert (int(got.token.loss.count), int(got.step.loss.count)) == (int(token[3].sum()), int(step[3].sum()))
    assert float(got.token.loss.loss_sum) == float(value_loss(*token).loss.loss_sum)
    assert float(got.step.loss.loss_sum) == float(value_loss(*step).loss.loss_sum)


def test_explained_variance():
    values, old, returns, mask = case(4)
    kept = returns[mask].tolist()
    errors = (values - returns)[mask].square().tolist()
    wanted = 1 - statistics.fmean(errors) / statistics.pvariance(kept)
    parts = [value_loss(*(x[rows] for x in (values, old, returns, mask))).metrics for rows in ([0, 1], [2, 3, 4, 5])]
    summed = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert float(explained_variance(summed)) == pytest.approx(wanted, rel=1e-4)
    perfect = value_loss(returns, returns, returns, mask).metrics
    assert float(explained_variance(perfect)) == 1.0
    same = value_loss(returns, returns, torch.ones_like(returns), mask).metrics
    assert math.isnan(float(explained_variance(same)))


def test_refusals():
    with pytest.raises(ConfigError, match=r"value_loss\.clip: got 0"):
        value_loss(*case(), clip=0.0)
