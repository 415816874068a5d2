"""The implicit PRM's loss, by hand."""

import math

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.losses import implicit_prm_loss

MASK = torch.tensor([[False, True, True], [False, True, False], [False, True, True], [False, False, False]])
RATIO = torch.tensor([[9.0, 1.0, 3.0], [0.0, -2.0, 9.0], [0.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
RIGHT = torch.tensor([1.0, 1.0, math.nan, 0.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_cross_entropy_of_whole_solutions_by_hand():
    reference = torch.full_like(RATIO, -7.0)
    logprobs = (reference + RATIO).requires_grad_()
    found = implicit_prm_loss(logprobs, reference, MASK, RIGHT, beta=0.5)
    # Totals 2 and -1, both right; a row without a label and one without a token do not count.
    assert found.loss.loss_sum.item() == pytest.approx(-math.log(sigmoid(2.0)) - math.log(sigmoid(-1.0)))
    assert int(found.loss.count) == 2
    assert float(found.metrics["accuracy"].mean) == 0.5
    assert float(found.metrics["right"].mean) == 0.5
    assert int(found.metrics["wrong"].count) == 0
    found.loss.loss_sum.backward()
    wanted = torch.zeros_like(RATIO)
    wanted[0, 1:], wanted[1, 1] = 0.5 * (sigmoid(2.0) - 1), 0.5 * (sigmoid(-1.0) - 1)
    torch.testing.assert_close(logprobs.grad, wanted)


def test_a_wrong_answer_pulls_the_other_way():
    found = implicit_prm_loss(RATIO, torch.zeros_like(RATIO), MASK, torch.zeros(4), beta=0.1)
    totals = [0.4, -0.2, 1.0]
    assert float(found.loss.loss_sum) == pytest.approx(sum(-math.log(sigmoid(-total)) for total in totals))
    assert float(found.metrics["accuracy"].mean) == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match=r"implicit_prm_loss.beta: got 0.0"):
        implicit_prm_loss(RATIO, RATIO, MASK, RIGHT, beta=0.0)
