"""DPO, step-DPO, IPO and advantage-weighted regression: hand-worked numbers, gradients, invariances."""

import math

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.losses import (
    PreferenceConfig,
    advantage_weighted_regression,
    logprob_sums,
    normalise,
    preference_loss,
    row_weights,
)

CHOSEN, REJECTED = torch.tensor([-3.0, -5.0, -2.0]), torch.tensor([-4.0, -1.0, -2.5])
REFERENCE = torch.tensor([-4.0, -4.0, -2.0]), torch.tensor([-3.0, -2.0, -2.5])
H = (2.0, -2.0, 0.0)  # (chosen - reference) - (rejected - reference)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("options", "term"),
    [
        ({"beta": 0.5}, lambda h: -math.log(sigmoid(0.5 * h))),
        (
            {"beta": 0.5, "label_smoothing": 0.1},
            lambda h: -0.9 * math.log(sigmoid(0.5 * h)) - 0.1 * math.log(sigmoid(-0.5 * h)),
        ),
        ({"kind": "ipo", "beta": 0.25}, lambda h: (h - 2.0) ** 2),
    ],
)
def test_by_hand(options, term):
    got = preference_loss(CHOSEN, REJECTED, *REFERENCE, PreferenceConfig(**options))
    assert float(got.loss.loss_sum) == pytest.approx(sum(map(term, H)), rel=1e-5)
    assert int(got.loss.count) == 3
    beta = options["beta"]
    means = {name: float(metric.mean) for name, metric in got.metrics.items()}
    assert means == pytest.approx(
        {"accuracy": 0.5, "margin": 0.0, "chosen_reward": 0.0, "rejected_reward": 0.0}, abs=1e-6
    )
    one = preference_loss(CHOSEN[:1], REJECTED[:1], *(r[:1] for r in REFERENCE), PreferenceConfig(**options)).metrics
    assert [float(one[k].mean) for k in ("accuracy", "margin", "chosen_reward")] == [1.0, 2 * beta, beta]


def test_gradient_of_dpo_is_the_papers():
    """grad = -beta sigmoid(-beta h) (grad chosen - grad rejected): equation in section 4 of the paper."""
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    preference_loss(chosen, rejected, *REFERENCE, PreferenceConfig(beta=0.5)).loss.loss_sum.backward()
    wanted = [-0.5 * sigmoid(-0.5 * h) for h in H]
    assert chosen.grad.tolist() == pytest.approx(wanted, rel=1e-5)
    assert rejected.grad.tolist() == pytest.approx([-w for w in wanted], rel=1e-5)


def test_ipo_stops_at_its_margin_and_dpo_never_does():
    for kind, stops in (("ipo", True), ("dpo", False)):
        chosen = torch.tensor([5.0], requires_grad=True)
        zero = torch.zeros(1)
        preference_loss(chosen, zero, zero, zero, PreferenceConfig(kind, beta=0.1)).loss.loss_sum.backward()
        assert (float(chosen.grad.abs()) < 1e-6) == stops


def test_step_dpo_counts_the_step_that_differs_and_nothing_else():
    logs = torch.tensor([[-1.0, -2.0, -3.0, math.nan]], requires_grad=True)
    step = torch.tensor([[False, True, True, False]])
    summed = logprob_sums(logs, step)
    assert summed.tolist() == [-5.0]
    zero = torch.zeros(1)
    preference_loss(summed, zero, zero, zero, PreferenceConfig()).loss.loss_sum.backward()
    assert (logs.grad != 0).tolist() == step.tolist()


def test_swapped_pairs_and_order():
    config = PreferenceConfig(label_smoothing=0.25)
    order = torch.tensor([2, 0, 1])
    whole = preference_loss(CHOSEN, REJECTED, *REFERENCE, config)
    shuffled = preference_loss(CHOSEN[order], REJECTED[order], *(r[order] for r in REFERENCE), config)
    torch.testing.assert_close(whole.loss.loss_sum, shuffled.loss.loss_sum)
    swapped = preference_loss(REJECTED, CHOSEN, *REFERENCE[::-1], config)
    assert float(swapped.metrics["margin"].total) == pytest.approx(-float(whole.metrics["margin"].total))
    extreme = preference_loss(torch.tensor([1e4]), torch.zeros(1), torch.zeros(1), torch.zeros(1), config)
    assert torch.isfinite(extreme.loss.loss_sum)


def test_advantage_weighted_regression_by_hand():
    logs = torch.tensor([[-1.0, -2.0], [-0.5, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    advantages = torch.tensor([[math.log(2.0)], [1000.0]])
    got = advantage_weighted_regression(logs, advantages, mask, row_weights("token", mask), 1.0, 20.0)
    got.loss.loss_sum.backward()
    assert float(got.loss.loss_sum.detach()) == pytest.approx(2 * 3.0 + 20 * 0.5, rel=1e-5)
    assert int(got.loss.count) == 3
    assert logs.grad.tolist() == [pytest.approx([-2.0, -2.0]), pytest.approx([-20.0, 0.0])]
    assert float(got.metrics["weight"].total) == pytest.approx(24.0, rel=1e-5)
    assert float(got.metrics["bounded"].mean) == pytest.approx(1 / 3)


def test_awr_with_equal_advantages_is_cross_entropy_for_any_split():
    generator = torch.Generator().manual_seed(0)
    logs, mask = -torch.rand(4, 5, generator=generator), torch.rand(4, 5, generator=generator) < 0.7
    total = mask.sum()
    parts = [
        advantage_weighted_regression(
            logs[rows], torch.zeros(len(rows), 1), mask[rows], row_weights("token", mask[rows])
        )
        for rows in torch.arange(4).split([1, 3])
    ]
    mean = sum(float(normalise(part.loss.loss_sum, total, accumulation=2, ranks=1)) / 2 for part in parts)
    assert mean == pytest.approx(-float(logs[mask].mean()), rel=1e-5)


def test_refusals():
    for options, field in (
        ({"kind": "kto"}, "kind"),
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
    ):
        with pytest.raises(ConfigError, match=rf"preference\.{field}"):
            PreferenceConfig(**options)
    mask = torch.ones(1, 1, dtype=torch.bool)
    arguments = torch.zeros(1, 1), torch.zeros(1, 1), mask, row_weights("token", mask)
    with pytest.raises(ConfigError, match=r"awr\.temperature"):
        advantage_weighted_regression(*arguments, temperature=0.0)
    with pytest.raises(ConfigError, match=r"awr\.max_weight"):
        advantage_weighted_regression(*arguments, max_weight=0.0)
