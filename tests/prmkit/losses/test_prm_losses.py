import math

import pytest
import torch

from prmkit.errors import ConfigError, DataError
from prmkit.losses import hard_cross_entropy, log_odds, mean_squared_error, pairwise, soft_cross_entropy, step_loss

LN2, LN3 = math.log(2.0), math.log(3.0)
# p(right) = 3/4, 1/2, 1/4 once as (wrong, right) logits and once as log-odds.
TWO = torch.tensor([[0.0, LN3], [5.0, 5.0], [LN3 - 2, -2.0]])
ONE = torch.tensor([[LN3], [0.0], [-LN3]])


@pytest.mark.parametrize("logits", [TWO, ONE])
def test_hand_worked_values(logits: torch.Tensor) -> None:
    assert torch.sigmoid(log_odds(logits)).tolist() == pytest.approx([0.75, 0.5, 0.25])
    hard = hard_cross_entropy(logits, torch.tensor([1.0, 0.0, 1.0]))
    assert float(hard.loss_sum) == pytest.approx(-math.log(0.75) - math.log(0.5) - math.log(0.25))
    assert int(hard.count) == 3
    soft = soft_cross_entropy(logits, torch.tensor([0.7, 0.5, 0.0]))
    assert float(soft.loss_sum) == pytest.approx(-0.7 * math.log(0.75) - 0.3 * math.log(0.25) + LN2 - math.log(0.75))
    mse = mean_squared_error(logits, torch.tensor([0.25, 0.5, 1.0]))
    assert float(mse.loss_sum) == pytest.approx(0.25 + 0.0 + 0.5625)


@pytest.mark.parametrize("logits", [TWO, ONE])
def test_pairwise_is_bradley_terry_with_soft_preference(logits: torch.Tensor) -> None:
    # Log-odds ln 3, 0, -ln 3. Pair (0, 2): margin 2 ln 3, sigmoid 9/10. Pair (1, 0): margin -ln 3, sigmoid 1/4.
    loss = pairwise(logits, torch.tensor([1.0, 0.5, 0.0]), torch.tensor([[0, 2], [1, 0]]))
    # Preferences (1 + 1 - 0) / 2 = 1 and (1 + .5 - 1) / 2 = .25.
    wanted = -math.log(0.9) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert float(loss.loss_sum) == pytest.approx(wanted)
    assert int(loss.count) == 2


def test_preference_is_chance_of_being_the_better_with_ties_split() -> None:
    # Two independent coins p = .8, q = .3: P(first right, second wrong) + half the ties, counted by hand.
    by_cases = 0.8 * 0.7 + 0.5 * (0.8 * 0.3 + 0.2 * 0.7)
    logits = torch.tensor([[0.4], [0.1]], requires_grad=True)
    pairwise(logits, torch.tensor([0.8, 0.3]), torch.tensor([[0, 1]])).loss_sum.backward()
    assert float(logits.grad[0]) == pytest.approx(1 / (1 + math.exp(-0.3)) - by_cases, abs=1e-6)


def test_soft_targets_are_not_rounded() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    soft_cross_entropy(logits, torch.tensor([0.7])).loss_sum.backward()
    assert logits.grad[0].tolist() == pytest.approx([0.2, -0.2])


def test_half_precision_logits_give_float32_sums() -> None:
    loss = soft_cross_entropy(TWO.bfloat16(), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    assert loss.loss_sum.dtype == torch.float32


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[0.0, 1e4], [0.0, -1e4]], requires_grad=True)
    loss = hard_cross_entropy(logits, torch.tensor([0.0, 1.0])).loss_sum
    loss.backward()
    assert float(loss) == pytest.approx(2e4)
    assert torch.isfinite(logits.grad).all()


def test_no_steps_give_zero_with_a_graph() -> None:
    logits = torch.zeros(0, 2, requires_grad=True)
    for kind in ("hard", "soft", "mse"):
        loss = step_loss(kind, logits, torch.zeros(0))
        loss.loss_sum.backward()
        assert (float(loss.loss_sum), int(loss.count), float(loss.mean)) == (0.0, 0, 0.0)


def test_refusals() -> None:
    with pytest.raises(DataError, match=r'"hard" got the target 0.7.*"soft"'):
        step_loss("hard", TWO, torch.tensor([1.0, 0.7, 0.0]))
    with pytest.raises(DataError, match="pairs of steps"):
        step_loss("pairwise", TWO, torch.zeros(3))
    with pytest.raises(ConfigError, match="loss: got 'focal'"):
        step_loss("focal", TWO, torch.zeros(3))
