"""Loaders: what is left after a stop is what would have come; windows are counted as a whole."""

import itertools
import json
import logging

import numpy as np
import pytest

from datamodules.batching import BatchConfig, Shards, make_plan
from datamodules.encoding import PRMCodec, SFTCodec, SFTExample, TargetConfig
from datamodules.loader import EvalLoader, TrainLoader, WorkerConfig
from datamodules.readers import demonstration_parser, open_mixture
from datamodules.sources import SourceConfig
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError

N = 23
LENGTHS = np.array([3 + 7 * i % 11 for i in range(N)])


def fetch(number):
    """A row of 7 prompt and LENGTHS[number] + 1 solution tokens, encoded already."""
    n = int(LENGTHS[number])
    return str(number), SFTExample(str(number), (5,) * (7 + n + 1), truncated=False, n_prompt=7)


def loader(bound, batch, accumulate=1, workers=0, rank=0, world=1, epoch_rows=None, sizes=LENGTHS + 8):
    plan = make_plan(epoch_rows or (lambda epoch: np.arange(N)), sizes, batch, Shards(rank, world, accumulate), seed=0)
    return TrainLoader(plan, fetch, SFTCodec(bound, 64), WorkerConfig(workers), accumulate)


def trace(loader, epochs=1):
    return [(batch.ids, batch.window_count) for _ in range(epochs) for batch in loader]


BATCHES = [BatchConfig(rows=2), BatchConfig(rows=4, drop_last=False), BatchConfig(max_tokens=40)]


@pytest.mark.parametrize("batch", BATCHES, ids=["rows", "keep_last", "tokens"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_after_a_stop_at_any_micro_batch_the_rest_is_that_of_an_undisturbed_run(bound, batch, world, accumulate):
    ranks = [trace(loader(bound, batch, accumulate, rank=rank, world=world), epochs=3) for rank in range(world)]
    length = len(loader(bound, batch, accumulate, world=world))
    assert [len(rank) for rank in ranks] == [3 * length] * world
    for stop in range(2 * length + 1):
        first = loader(bound, batch, accumulate, world=world)
        batches = itertools.chain.from_iterable(first for _ in range(3))
        assert len(list(itertools.islice(batches, stop))) == stop
        state = json.loads(json.dumps(first.state_dict()))  # of rank 0, as it is in a checkpoint
        for rank in range(world):
            second = loader(bound, batch, accumulate, rank=rank, world=world)
            second.load_state_dict(state)
            assert trace(second, epochs=3)[: 3 * length - stop] == ranks[rank][stop:]


@pytest.mark.parametrize("stop", [0, 1, 5, 8, 9, 12])
def test_workers_change_nothing(bound, stop):
    batch = BatchConfig(rows=2, drop_last=False)
    whole = trace(loader(bound, batch, 4), epochs=2)
    first = loader(bound, batch, 4, workers=2)
    ahead = itertools.chain.from_iterable(first for _ in range(2))
    assert [(b.ids, b.window_count) for b in itertools.islice(ahead, stop)] == whole[:stop]
    second = loader(bound, batch, 4, workers=2)
    second.load_state_dict(first.state_dict())  # workers have made more batches than were handed out
    assert trace(second, epochs=2)[: len(whole) - stop] == whole[stop:]


def test_iterating_again_goes_on_where_the_last_iteration_was_left(bound):
    """Lightning makes an iterator early and drops it, and leaves one early with limit_train_batches."""
    whole = trace(loader(bound, BatchConfig(rows=2)))
    again = loader(bound, BatchConfig(rows=2))
    iter(again)
    left = list(itertools.islice(iter(again), 4))
    assert [(b.ids, b.window_count) for b in left] + trace(again) == whole


@pytest.mark.parametrize("world", [1, 2])
def test_window_count_is_the_ranks_total_over_the_window(bound, world):
    for rank in range(world):
        batches = list(loader(bound, BatchConfig(rows=2, drop_last=False), 3, rank=rank, world=world))
        for start in range(0, len(batches), 3):
            window = batches[start : start + 3]
            solution_tokens = sum(int(LENGTHS[int(id)]) + 1 for batch in window for id in batch.ids if id)
            assert {batch.window_count for batch in window} == {solution_tokens}


def test_sets_and_counts_of_optimiser_steps_do_not_depend_on_the_split(bound):
    def steps(rows, accumulate, world):
        ranks = [list(loader(bound, BatchConfig(rows=rows), accumulate, rank=r, world=world)) for r in range(world)]
        for start in range(0, len(ranks[0]), accumulate):
            window = [rank[start : start + accumulate] for rank in ranks]
            ids = sorted(id for rank in window for batch in rank for id in batch.ids)
            yield ids, sum(rank[0].window_count for rank in window)

    whole = list(steps(16, 1, 1))
    assert len(whole) == 1
    for split in [(4, 4, 1), (1, 16, 1), (8, 1, 2), (2, 4, 2), (1, 8, 2)]:
        assert list(steps(*split)) == whole


def test_a_checkpoint_of_other_data_is_refused(bound):
    first = loader(bound, BatchConfig(rows=2))
    next(iter(first))
    with pytest.raises(DataError, match=r"middle of an epoch with rows = 23, and this run has 20"):
        loader(bound, BatchConfig(rows=2), epoch_rows=lambda epoch: np.arange(20)).load_state_dict(first.state_dict())


# -- refused rows ----------------------------------------------------------------------------------------------------


def labels(number):
    values = (None,) if number % 3 == 0 else (1.0, 0.0)
    steps = ("a+1=2", "b+1=3")[: len(values)]
    return f"r:{number}", StepLabels("p", "f+5,7", None, steps, values, (0,) * len(values), "t", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_refused_rows_are_counted_and_never_in_a_batch(bound, caplog, workers):
    plan = make_plan(lambda epoch: np.arange(12), None, BatchConfig(rows=1), Shards(accumulate=4), seed=0)
    codec = PRMCodec(bound, TargetConfig(), 64)
    train = TrainLoader(plan, labels, codec, WorkerConfig(workers), accumulate=4)
    with caplog.at_level(logging.WARNING):
        batches = list(train)
    assert "train, epoch 0: 4 of 12 rows refused" in caplog.text
    assert len(batches) == 12
    used = [id for batch in batches for id in batch.ids]
    assert sorted(id for id in used if id) == sorted(f"r:{i}" for i in range(12) if i % 3)
    assert used.count("") == 4
    for start in range(0, 12, 4):
        window = batches[start : start + 4]
        assert {batch.window_count for batch in window} == {sum(batch.count for batch in window)}


def test_rows_cut_to_length_are_counted(bound, caplog):
    plan = make_plan(lambda epoch: np.array([1, 2, 4]), None, BatchConfig(rows=3), Shards(), seed=0)
    with caplog.at_level(logging.WARNING):
        list(TrainLoader(plan, labels, PRMCodec(bound, TargetConfig(), 13), WorkerConfig()))
    assert "train, epoch 0: 3 of 3 rows cut to max_length" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_from_workers_as_one_clear_message(bound, write_jsonl, workers):
    path = write_jsonl([{"question": "f+5,7", "solution": "f+5=C"}] * 5 + ["{broken\n"])
    mixture = open_mixture([SourceConfig(path=path)], demonstration_parser)
    plan = make_plan(mixture.epoch, None, BatchConfig(rows=2), Shards(), seed=0)
    train = TrainLoader(plan, mixture.row, SFTCodec(bound, 64), WorkerConfig(workers))
    with pytest.raises(DataError, match=r"^[^\n]*rows\.jsonl:6: malformed JSON line: [^\n]*$"):
        list(train)


# -- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [BatchConfig(rows=4, drop_last=False), BatchConfig(max_tokens=40, drop_last=False)])
@pytest.mark.parametrize("n", [1, 8, N])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_has_every_row_once_and_ranks_in_step(bound, batch, n, world):
    ranks = []
    for rank in range(world):
        plan = make_plan(lambda epoch: np.arange(n), LENGTHS[:n] + 8, batch, Shards(rank, world), seed=None)
        one = EvalLoader(plan, fetch, SFTCodec(bound, 64), WorkerConfig())
        ranks.append(list(one))
        next(iter(one))  # left early, as a sanity check does
        assert [b.ids for b in one] == [b.ids for b in ranks[-1]]
        assert len(one) == len(ranks[-1])
    assert len({len(rank) for rank in ranks}) == 1
    ids = [id for rank in ranks for b in rank for id in b.ids if id]
    assert sorted(ids, key=int) == [str(i) for i in range(n)]


def test_evaluation_reports_refused_rows_of_whole_passes_once(bound, caplog):
    plan = make_plan(lambda epoch: np.arange(12), None, BatchConfig(rows=4), Shards(), seed=None)
    evaluation = EvalLoader(plan, labels, PRMCodec(bound, TargetConfig(), 64), WorkerConfig())
    with caplog.at_level(logging.WARNING):
        next(iter(evaluation))
        for _ in range(2):
            list(evaluation)
    assert [record.getMessage()[:40] for record in caplog.records] == ["val, every pass: 4 of 12 rows refused: n"]


@pytest.mark.parametrize(("values", "field"), [({"num_workers": -1}, "num_workers"), ({"prefetch": 0}, "prefetch")])
def test_worker_config_refusals(values, field):
    with pytest.raises(ConfigError, match=rf"workers\.{field}"):
        WorkerConfig(**values)
