import pytest
import torch

from prmkit.losses import normalise, window_total


def test_averaging_over_micro_batches_and_ranks_gives_sum_over_count() -> None:
    # Two ranks, three micro-batches each: sums of items, ragged counts.
    sums = {0: [6.0, 1.0, 0.5], 1: [2.0, 8.0, 2.5]}
    counts = {0: [4, 1, 1], 1: [2, 5, 3]}
    total = torch.tensor(16)
    returned = {r: [float(normalise(torch.tensor(s), total, 3, ranks=2)) for s in sums[r]] for r in (0, 1)}
    per_rank = [sum(values) / 3 for values in returned.values()]
    assert sum(per_rank) / 2 == pytest.approx(20.0 / 16)
    assert sum(map(sum, counts.values())) == 16


def test_empty_window_gives_zero() -> None:
    assert float(normalise(torch.tensor(0.0), window_total(0))) == 0.0


def test_total_of_one_process_is_its_own_and_not_an_alias() -> None:
    count = torch.tensor(5)
    total = window_total(count)
    total += 1
    assert int(count) == 5
