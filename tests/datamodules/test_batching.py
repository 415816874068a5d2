"""Epoch plans: every row where it belongs, whatever the split into micro-batches and ranks."""

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest

from datamodules.batching import BatchConfig, RowsPlan, Shards, TokensPlan
from prmkit.errors import ConfigError, DataError

LENGTHS = np.random.default_rng(0).integers(5, 120, 203)


def all_rows(n):
    return lambda epoch: np.arange(n)


def rows_plan(n, rows, accumulate=1, world=1, rank=0, seed=0, sizes=True, **config):
    shards = Shards(rank, world, accumulate)
    return RowsPlan(all_rows(n), LENGTHS[:n] if sizes else None, BatchConfig(rows=rows, **config), shards, seed)


def tokens_plan(budget, accumulate=1, world=1, rank=0, seed=0, packed=False, drop_last=True, epoch_rows=None):
    config = BatchConfig(max_tokens=budget, drop_last=drop_last)
    rows = epoch_rows or all_rows(len(LENGTHS))
    return TokensPlan(rows, LENGTHS, config, Shards(rank, world, accumulate), seed, packed)


def steps(make, accumulate, world, epoch=0):
    """Optimiser steps as [step][rank][micro-batch] row lists, the ranks' plans put together."""
    ranks = [list(make(accumulate=accumulate, world=world, rank=rank).batches(epoch)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    count = range(0, len(ranks[0]), accumulate)
    return [[rank[start : start + accumulate] for rank in ranks] for start in count]


def flat(step):
    return sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(step)))


@pytest.mark.parametrize("bucket", [1, 4])
def test_rows_of_an_optimiser_step_do_not_depend_on_its_split(bucket):
    def sets(rows, accumulate, world):
        made = steps(lambda **kw: rows_plan(203, rows, bucket=bucket, **kw), accumulate, world, epoch=3)
        assert all(len(micro) == rows for step in made for rank in step for micro in rank)
        return [flat(step) for step in made]

    whole = sets(16, 1, 1)
    assert len(whole) == 203 // 16
    for rows, accumulate, world in [(4, 4, 1), (1, 16, 1), (8, 1, 2), (2, 4, 2), (1, 8, 2), (1, 1, 16)]:
        assert sets(rows, accumulate, world) == whole


def test_epochs_are_different_permutations_and_reproducible():
    plan = rows_plan(203, 8, drop_last=False)
    first, again, second = (list(itertools.chain(*plan.batches(epoch))) for epoch in (0, 0, 1))
    assert first == again != second
    assert sorted(first) == sorted(second) == list(range(203))
    assert list(itertools.chain(*rows_plan(203, 8, drop_last=False, seed=1).batches(0))) != first


def test_starting_at_a_window_gives_the_rest():
    plan = rows_plan(203, 2, accumulate=4)
    whole = list(plan.batches(2))
    assert len(whole) == plan.length == 203 // 8 * 4
    for window in (0, 1, 24, 25):
        assert list(plan.batches(2, window)) == whole[window * 4 :]


def test_last_step_is_dropped_or_smaller_with_the_same_micro_batches_on_every_rank():
    # 203 = 12 steps of 16 and 11 rows left: 2 micro-batches on each of 2 ranks, of 3, 3, 3 and 2 rows.
    kept = steps(lambda **kw: rows_plan(203, 4, drop_last=False, **kw), 2, 2)
    assert [len(flat(step)) for step in kept] == [16] * 12 + [11]
    assert sorted(len(micro) for rank in kept[-1] for micro in rank) == [2, 3, 3, 3]
    assert Counter(itertools.chain(*map(flat, kept))) == Counter(range(203))
    dropped = steps(lambda **kw: rows_plan(203, 4, **kw), 2, 2)
    assert [len(flat(step)) for step in dropped] == [16] * 12
    # One row for two ranks: one of them gets an empty micro-batch.
    assert [rows_plan(17, 8, world=2, rank=r, drop_last=False).length for r in (0, 1)] == [2, 2]
    ends = [list(rows_plan(17, 8, world=2, rank=r, drop_last=False).batches(0))[-1] for r in (0, 1)]
    assert sorted(map(len, ends)) == [0, 1]


def test_buckets_save_padding_and_keep_steps_in_random_order():
    def padded(plan):
        return sum(max(LENGTHS[micro]) * len(micro) for micro in plan.batches(0))

    assert padded(rows_plan(200, 4, bucket=50)) < 0.75 * padded(rows_plan(200, 4, sizes=False))
    longest = [max(LENGTHS[micro]) for micro in rows_plan(200, 4, bucket=50).batches(0)]
    assert longest != sorted(longest)


def test_without_a_seed_the_order_is_kept():
    assert list(rows_plan(7, 3, seed=None, drop_last=False).batches(5)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (3, 2)])
def test_token_budget_holds_and_every_epoch_has_as_many_micro_batches(packed, accumulate, world):
    counts = set()
    for epoch in range(4):
        make = partial(tokens_plan, 256, packed=packed, drop_last=False)
        made = steps(make, accumulate, world, epoch)
        micro = [rows for step in made for rank in step for rows in rank]
        assert Counter(itertools.chain(*micro)) == Counter(range(203))
        cost = [int(LENGTHS[rows].sum() if packed else max(LENGTHS[rows]) * len(rows)) for rows in micro]
        assert max(cost) <= 256
        assert sum(cost) > 0.8 * 256 * len(cost)  # the budget is used
        counts.add(len(micro))
    assert len(counts) == 1


def test_token_plan_differs_by_epoch_and_starts_at_any_window():
    plan = tokens_plan(300, accumulate=2)
    whole = list(plan.batches(1))
    assert len(whole) == plan.length
    assert list(plan.batches(1, 3)) == whole[6:]
    assert [sorted(rows) for rows in plan.batches(0)] != [sorted(rows) for rows in whole]
    assert plan.length % 2 == 0


def test_ranks_get_micro_batches_of_like_length():
    ranks = [list(tokens_plan(300, world=2, rank=rank).batches(0)) for rank in (0, 1)]
    gaps = [abs(max(LENGTHS[a]) - max(LENGTHS[b])) for a, b in zip(*ranks, strict=True)]
    assert np.mean(gaps) < 8


def test_token_plan_keeps_its_length_where_the_rows_of_epochs_differ():
    def drawn(epoch):
        return np.random.default_rng(epoch).integers(0, 203, 150)

    for drop_last in (True, False):
        plan = tokens_plan(256, world=2, drop_last=drop_last, epoch_rows=drawn)
        assert {len(list(plan.batches(epoch))) for epoch in range(6)} == {plan.length}


@pytest.mark.parametrize("changed", [{"rows": 4}, {"accumulate": 2}, {"seed": 1}, {"drop_last": False}, {"n": 202}])
def test_a_position_in_other_data_is_refused_in_the_middle_of_an_epoch_only(changed):
    state = rows_plan(203, 8).state(0, 3)
    other = rows_plan(**{"n": 203, "rows": 8, **changed})
    with pytest.raises(DataError, match="the remaining rows would be others"):
        other.check_state(state, mid_epoch=True)
    other.check_state(state, mid_epoch=False)


def test_the_same_steps_split_otherwise_may_go_on():
    rows_plan(203, 4, world=2).check_state(rows_plan(203, 8).state(0, 3), mid_epoch=True)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "batch.rows: got None"),
        ({"rows": 4, "max_tokens": 64}, "batch.rows: got 4.*batch.max_tokens is 64"),
        ({"rows": 0}, "batch.rows: got 0"),
        ({"max_tokens": 0}, "batch.max_tokens: got 0"),
        ({"rows": 1, "bucket": 0}, "batch.bucket: got 0"),
    ],
)
def test_config_refusals(values, field):
    with pytest.raises(ConfigError, match=field):
        BatchConfig(**values)


def test_too_little_data_and_too_long_rows():
    with pytest.raises(DataError, match=r"train: 10 rows do not fill one optimiser step of 16.*Lower batch\.rows"):
        rows_plan(10, 4, accumulate=2, world=2)
    with pytest.raises(DataError, match=r"micro-batches of 20000 tokens; an optimiser step takes 4"):
        tokens_plan(20000, accumulate=4)
    with pytest.raises(DataError, match=r"more than batch\.max_tokens = 100"):
        tokens_plan(100)


def test_rows_of_a_step_are_checked_against_the_processes():
    config = BatchConfig(rows=4, step_rows=64)
    config.check_step(world=8, accumulate=2)
    with pytest.raises(ConfigError, match=r"got 64; accepted: 128.*Set trainer\.accumulate_grad_batches to 1"):
        config.check_step(world=16, accumulate=2)
    with pytest.raises(ConfigError, match=r"accepted: 24: .* 3 processes .*Change data\.batch\.rows"):
        config.check_step(world=3, accumulate=2)
    with pytest.raises(ConfigError, match="null with batch"):
        BatchConfig(max_tokens=100, step_rows=64)
