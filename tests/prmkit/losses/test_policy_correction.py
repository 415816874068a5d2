"""Generator against trainer: hand-worked weights, and the expectation that they restore."""

import math

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.losses import CorrectionConfig, PolicyLossConfig, importance_correction, policy_loss

MASK = torch.tensor([[True, True, False, True], [True, True, True, False]])
TRAINER = torch.tensor([[0.0, 0.0, 0.7, 0.0], [0.0, 0.0, 0.0, math.nan]])
# Weights of the tokens: 3, 1/4, -, 1 and 1.5, 1, 1, -.
GENERATOR = -torch.tensor([[math.log(3), math.log(0.25), 0.9, 0.0], [math.log(1.5), 0.0, 0.0, 0.4]])


@pytest.mark.parametrize(
    ("options", "weights", "cut"),
    [
        ({}, [[2.0, 0.25, 0.0, 1.0], [1.5, 1.0, 1.0, 0.0]], 1 / 6),
        ({"mode": "mask"}, [[0.0, 0.0, 0.0, 1.0], [1.5, 1.0, 1.0, 0.0]], 2 / 6),
        ({"level": "sequence"}, [[0.75, 0.75, 0.0, 0.75], [1.5, 1.5, 1.5, 0.0]], 0.0),
        ({"level": "sequence", "high": 1.2}, [[0.75, 0.75, 0.0, 0.75], [1.2, 1.2, 1.2, 0.0]], 0.5),
        ({"level": "sequence", "mode": "mask", "low": 0.8}, [[0.0] * 4, [1.5, 1.5, 1.5, 0.0]], 0.5),
    ],
)
def test_by_hand(options, weights, cut):
    got = importance_correction(TRAINER, GENERATOR, MASK, CorrectionConfig(**options))
    torch.testing.assert_close(got.weights, torch.tensor(weights))
    assert not got.weights.requires_grad
    assert float(got.metrics["cut"].mean) == pytest.approx(cut)
    assert int(got.metrics["cut"].count) == 6
    assert float(got.metrics["weight"].total) == pytest.approx(sum(map(sum, weights)))
    gaps = [math.log(3), math.log(4), 0.0, math.log(1.5), 0.0, 0.0]
    assert float(got.metrics["gap"].mean) == pytest.approx(sum(gaps) / 6)
    k3 = [w - 1 - math.log(w) for w in (3, 0.25, 1, 1.5, 1, 1)]
    assert float(got.metrics["generator_kl"].mean) == pytest.approx(sum(k3) / 6, rel=1e-5)


def test_with_loose_bounds_the_expected_gradient_is_that_of_the_trainers_own_samples():
    trainer, generator = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.2, 0.4])
    advantages = torch.tensor([[1.0], [-2.0], [0.5]])
    mask = torch.ones(3, 1, dtype=torch.bool)
    config = PolicyLossConfig()

    def gradient(drawn_from, correction):
        logits = trainer.log().requires_grad_()
        new = logits.log_softmax(0)[:, None]
        total = 0.0
        for letter in range(3):
            out = policy_loss(
                new[letter : letter + 1],
                trainer.log()[letter : letter + 1, None],
                advantages[letter : letter + 1],
                mask[:1],
                config,
                correction=None if correction is None else correction[letter : letter + 1],
            )
            total = total + drawn_from[letter] * out.loss.loss_sum
        return torch.autograd.grad(total, logits)[0]

    loose = CorrectionConfig(high=100.0)
    correction = importance_correction(trainer.log()[:, None], generator.log()[:, None], mask, loose)
    own = gradient(trainer, None)
    torch.testing.assert_close(gradient(generator, correction.weights), own)
    assert (gradient(generator, None) - own).abs().max() > 0.05, "uncorrected it is biased"


def test_extremes_stay_finite():
    far = importance_correction(
        torch.tensor([[0.0, -500.0]]), torch.tensor([[-500.0, 0.0]]), torch.ones(1, 2).bool(), CorrectionConfig()
    )
    assert far.weights.tolist() == [[2.0, pytest.approx(math.exp(-20.0))]]
    assert all(torch.isfinite(metric.total) for metric in far.metrics.values())


@pytest.mark.parametrize(
    ("options", "field"),
    [({"level": "step"}, "level"), ({"mode": "clip"}, "mode"), ({"low": 2.0}, "low"), ({"high": 0.5}, "high")],
)
def test_refusals(options, field):
    with pytest.raises(ConfigError, match=rf"correction\.{field}"):
        CorrectionConfig(**options)
