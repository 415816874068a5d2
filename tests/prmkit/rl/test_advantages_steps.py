"""Moments and whitening, and the way between steps and tokens."""

import math
import statistics

import pytest
import torch

from prmkit.errors import DataError
from prmkit.rl.advantages import Moments, rewards_to_go, spread_steps, step_index, step_table, step_token_counts, whiten


def test_whitening_by_hand():
    # What counts: 1, 3, 5: mean 3, standard deviation 2.
    values = torch.tensor([[1.0, 100.0, 3.0], [5.0, math.nan, -7.0]])
    mask = torch.tensor([[True, False, True], [True, False, False]])
    assert whiten(values, mask).tolist() == [pytest.approx([-1.0, 0.0, 0.0]), pytest.approx([1.0, 0.0, 0.0])]
    assert whiten(values, mask, shift_mean=False)[0].tolist() == pytest.approx([0.5, 0.0, 1.5])


def test_whitening_uses_the_mask_with_the_right_polarity():
    """With a mutated mask the statistics are those of the other half: a formula with the polarity reversed cannot
    give mean 0 and spread 1 over what counts, and 0 elsewhere, for both."""
    values = torch.cat([torch.randn(50, generator=torch.Generator().manual_seed(0)), 10 + torch.arange(30.0)])
    mask = torch.arange(80) < 50
    for one in (mask, ~mask):
        got = whiten(values, one)
        kept = got[one].tolist()
        assert statistics.fmean(kept) == pytest.approx(0.0, abs=1e-6)
        assert statistics.stdev(kept) == pytest.approx(1.0, abs=1e-6)
        assert got[~one].abs().sum() == 0


def test_moments_add_up_over_ranks_and_survive_a_large_mean():
    values = 1e4 + torch.randn(101, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(101) % 3 > 0
    kept = values.double()[mask].tolist()
    parts = Moments.of(values[:40], mask[:40]) + Moments.of(values[40:], mask[40:])
    for moments in (parts, Moments.of(values, mask)):
        assert float(moments.mean) == pytest.approx(statistics.fmean(kept), rel=1e-12)
        assert float(moments.std) == pytest.approx(statistics.stdev(kept), rel=1e-6)
    torch.testing.assert_close(whiten(values, mask, parts), whiten(values, mask))


@pytest.mark.parametrize("values", [[], [3.0]])
def test_fewer_than_two_values_have_no_spread(values):
    moments = Moments.of(torch.tensor(values), torch.ones(len(values), dtype=torch.bool))
    assert float(moments.mean) == sum(values)
    assert float(moments.std) == 0.0
    assert whiten(torch.tensor(values), torch.ones(len(values), dtype=torch.bool)).tolist() == [0.0] * len(values)


def test_steps_are_spread_over_their_tokens():
    # Prompts of 2 and 1 tokens; steps of 2 and 1, and of 1, 1 and 3 tokens.
    index = step_index([(1, 2), (0, 1, 4)], 7, offsets=[2, 1])
    assert index.tolist() == [[-1, -1, 0, 0, 1, -1, -1], [-1, 0, 1, 2, 2, 2, -1]]
    assert step_token_counts(index, 3).tolist() == [[2, 1, 0], [1, 1, 3]]
    values = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]])
    assert spread_steps(values, index).tolist() == [[0, 0, 1, 1, 2, 0, 0], [0, 3, 4, 5, 5, 5, 0]]
    nothing = step_index([()], 3)
    assert nothing.tolist() == [[-1, -1, -1]]
    assert spread_steps(torch.zeros(1, 0), nothing).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_rewards_to_go_by_hand(gamma):
    rewards = torch.tensor([[1.0, math.nan, 4.0, 2.0]])
    mask = torch.tensor([[True, False, True, True]])
    wanted = {1.0: [7.0, 0.0, 6.0, 2.0], 0.5: [3.5, 0.0, 5.0, 2.0]}[gamma]
    assert rewards_to_go(rewards, mask, gamma).tolist() == [wanted]


@pytest.mark.parametrize("ends", [[(1, 1)], [(3,)], [(2, 1)]])
def test_ends_that_do_not_fit_are_refused(ends):
    with pytest.raises(DataError, match="row 0, step"):
        step_index(ends, 3)


def test_table_of_steps():
    index = step_index([[1, 2], [0], []], width=6, offsets=[2, 1, 3])
    table = step_table(index, 3)
    assert table.mask.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert table.starts.tolist() == [[2, 4, 0], [1, 0, 0], [0, 0, 0]]
    assert table.last.tolist() == [[False, True, False], [True, False, False], [False] * 3]
