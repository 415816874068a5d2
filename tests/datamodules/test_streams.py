"""Streamed data sets: the order is a function of the seed, and a stream goes on exactly where it was left."""

import itertools
import json

import pytest

from datamodules.batching import BatchConfig, Shards
from datamodules.encoding import SFTCodec
from datamodules.loader import TrainLoader, WorkerConfig
from datamodules.readers import demonstration_parser, record_parser
from datamodules.sources import SourceConfig
from datamodules.streams import as_fetched, open_streams
from prmkit.errors import ConfigError, DataError

N = 53


@pytest.fixture
def config(write_jsonl, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for shard in range(3):
        rows = range(shard * N // 3, (shard + 1) * N // 3)
        write_jsonl(
            [{"question": f"f+5,{i % 8}", "solution": "f" * (i % 7 + 1), "n": i} for i in rows], f"s{shard}.jsonl"
        )
    values = {"kind": "hub", "name": "json", "path": str(tmp_path), "streaming": True, "count": N, "shuffle_buffer": 8}
    return lambda **changes: SourceConfig(**{**values, **changes})


def plan(config, rows=2, seed=0, rank=0, world=1, accumulate=1, drop_last=True):
    batch = BatchConfig(rows=rows, drop_last=drop_last)
    return open_streams([config], demonstration_parser, batch, Shards(rank, world, accumulate), seed)


def ids(batches):
    return [id for batch in batches for id, _ in batch]


def test_order_is_the_streams_without_a_seed_and_shuffled_in_blocks_with_one(config):
    kept = ids(plan(config(), seed=None, drop_last=False).batches(0))
    assert kept == [f"json/train:{i}" for i in range(N)]
    shuffled = ids(plan(config(), drop_last=False).batches(0))
    for start in range(0, N, 8):
        assert sorted(shuffled[start : start + 8]) == sorted(kept[start : start + 8])
    assert shuffled != kept
    made = plan(config(), drop_last=False)
    first, second, again = (ids(made.batches(epoch)) for epoch in (0, 1, 0))
    assert first == shuffled == again != second


def test_offset_and_count(config):
    made = plan(config(offset=40, count=10), seed=None, rows=5)
    questions = [row.question for batch in made.batches(0) for _, row in batch]
    assert questions == [f"f+5,{i % 8}" for i in range(40, 50)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 3)])
def test_after_a_stop_the_rest_is_that_of_an_undisturbed_run(config, bound, workers, world, accumulate):
    def loader(rank):
        made = plan(config(), rank=rank, world=world, accumulate=accumulate, drop_last=False)
        return TrainLoader(made, as_fetched, SFTCodec(bound, 64), WorkerConfig(workers), accumulate)

    def trace(loader, epochs=2):
        return [(batch.ids, batch.window_count) for _ in range(epochs) for batch in loader]

    ranks = [trace(loader(rank)) for rank in range(world)]
    length = len(ranks[0]) // 2
    assert length == len(loader(0))
    ids = [id for rank in ranks for batch, _ in rank[:length] for id in batch if id]
    assert sorted(ids) == sorted(f"json/train:{i}" for i in range(N))
    for stop in {0, 1, 4, 5, length - 1, length, length + 2} if workers == 0 else {3, length + 1}:
        first = loader(0)
        list(itertools.islice(itertools.chain.from_iterable(first for _ in range(2)), stop))
        state = json.loads(json.dumps(first.state_dict()))
        if stop % length >= 5 * accumulate:
            assert state["plan"]["marks"][0]["block"] > 0  # not read again from the start
        for rank in range(world):
            second = loader(rank)
            second.load_state_dict(state)
            assert trace(second)[: 2 * length - stop] == ranks[rank][stop:]


def test_refusals(config, write_jsonl, tmp_path):
    with pytest.raises(ConfigError, match=r"source\.count: got None; accepted: a number of rows"):
        plan(config(count=None))
    with pytest.raises(ConfigError, match=r"batch\.max_tokens: got 64; accepted: null with a stream"):
        open_streams([config()], demonstration_parser, BatchConfig(max_tokens=64), Shards(), 0)
    with pytest.raises(DataError, match=r"json/train: the stream ended after 53 rows; source\.count .* says 60"):
        ids(plan(config(count=60), drop_last=False).batches(0))
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        plan(config(path="none.jsonl"))


def test_lines_with_several_records_are_refused_where_the_length_must_be_known(config, write_jsonl):
    rated = [{"text": text, "rating": 1} for text in "ab"]
    row = {
        "question": {"problem": "q", "ground_truth_answer": "1"},
        "label": {"steps": [{"completions": rated, "human_completion": None, "chosen_completion": 0}]},
    }
    several = config(path=write_jsonl([row] * 4, "prm800k.json"), count=4)
    made = open_streams([several], record_parser, BatchConfig(rows=2), Shards(), 0)
    with pytest.raises(DataError, match=r"json/train:0: holds 2 labelled.*source\.weight.*streaming to false"):
        next(made.batches(0))
