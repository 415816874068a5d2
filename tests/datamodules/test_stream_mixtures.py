"""Published label sets streamed through `datasets` and mixed: shares, laps, several records a line, exact resume."""

import itertools
import json
import logging
from collections import Counter

import pytest

from datamodules.batching import BatchConfig, Shards
from datamodules.loader import TrainLoader, WorkerConfig
from datamodules.readers import open_mixture, record_parser
from datamodules.sources import SourceConfig
from datamodules.streams import as_fetched, open_streams
from prmkit.annotation.curate import CurationParams, curate
from prmkit.annotation.formats import load_records
from prmkit.errors import ConfigError, DataError

SETS = ("prm800k", "math-shepherd", "math-aps", "math-aps-tree")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def source(path, name="json", **changes):
    return SourceConfig(kind="hub", name=name, path=str(path), streaming=True, **{"shuffle_buffer": 8, **changes})


def plan(configs, epoch_rows=None, rows=2, seed=0, curation=None, **shards):
    batch = BatchConfig(rows=rows, drop_last=False)
    change = None if curation is None else lambda block: curate(block, curation)
    return open_streams(configs, record_parser, batch, Shards(**shards), seed, epoch_rows, curate=change)


def keys(made, epoch=0, window=0):
    return [key for batch in made.batches(epoch, window) for key in batch]


@pytest.fixture
def samples(data_dir):
    """The native samples as weighted streams: lines of one record and of many, some sets of three lines only."""
    weights = dict(zip(SETS, (3, 3, 2, 2), strict=True))
    return [
        source(data_dir / "formats" / f"{name}.jsonl", label=name, weight=weight) for name, weight in weights.items()
    ]


class Asis:
    """Encodes nothing: batches are the ids."""

    class Batch(tuple):
        count = 1

        def with_window(self, window):
            return (window, *self)

    def encode(self, id, row):
        from datamodules.encoding import Example

        return Example(id, (len(row.steps),), False)

    def collate(self, examples):
        return self.Batch(example.id for example in examples)


@pytest.mark.parametrize("name", SETS)
def test_a_streamed_sample_gives_the_records_of_the_file(data_dir, name):
    """`datasets` fills absent fields with nulls and knows no recursive types: nothing of that may reach a record."""
    path = data_dir / "formats" / f"{name}.jsonl"
    records = list(load_records(path))
    made = plan([source(path, weight=1.0)], epoch_rows=2 * len(records), seed=None)
    assert [row for _, row in keys(made)] == records * 2


@pytest.mark.parametrize("form", ["json", "parquet"])
@pytest.mark.parametrize("published", [False, True])
def test_stepwise_supervision_in_parquet(tmp_path, form, published):
    """As `trl-lib/prm800k` and `trl-lib/math_shepherd` are stored."""
    import datasets

    rows = [{"prompt": f"Q{i}", "completions": ["a", f"b{i}"], "labels": [True, i % 2 == 0]} for i in range(23)]
    if published:
        rows = [{**row, "completions": ["Step 1: a", "Step 2: " + row["completions"][1]]} for row in rows]
    if form == "parquet":
        for shard in range(2):
            datasets.Dataset.from_list(rows[shard::2]).to_parquet(tmp_path / f"{shard}.parquet")
        paths = str(tmp_path / "*.parquet")
    else:
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths = str(tmp_path / "x.jsonl")
    made = plan([source(paths, form, count=23)], seed=0)
    records = [row for _, row in keys(made)]
    assert sorted(row.question for row in records) == sorted(row["prompt"] for row in rows)
    assert {(row.steps[0], row.values[0], row.source) for row in records} == {("a", 1.0, "trl")}
    assert all(row.steps[1] == "b" + row.question[1:] for row in records)
    assert all(row.values[1] == float(int(row.question[1:]) % 2 == 0) for row in records)
    whole = keys(plan([source(paths, form, count=23)], seed=0), window=0)
    for window in (0, 3, 7, 10):
        assert keys(plan([source(paths, form, count=23)], seed=0), window=window) == whole[2 * window :]


def test_shares_and_laps(samples, data_dir):
    """Every epoch has the shares; a stream goes on where it stopped, and gives all rows before any comes again."""
    made = plan(samples, epoch_rows=100)
    epochs = [keys(made, epoch) for epoch in range(4)]
    for epoch in epochs:
        assert Counter(id.split(":")[0] for id, _ in epoch) == dict(zip(SETS, (30, 30, 20, 20), strict=True))
    whole = [key for epoch in epochs for key in epoch]
    for name in SETS:
        records = list(load_records(data_dir / "formats" / f"{name}.jsonl"))
        given = [row for id, row in whole if id.split(":")[0] == name]
        laps, rest = divmod(len(given), len(records))
        for lap in range(laps):
            assert sorted(map(str, given[lap * len(records) : (lap + 1) * len(records)])) == sorted(map(str, records))
        assert Counter(map(str, given[len(given) - rest :])) <= Counter(map(str, records))
    assert [id for id, _ in epochs[0]] != [id for id, _ in epochs[1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_stop_the_rest_is_that_of_an_undisturbed_run(samples, workers):
    """Also in other epochs than the first, where a stream is in the middle of a lap, and on two ranks."""

    def loader(rank):
        made = plan(samples, epoch_rows=60, rank=rank, world=2, accumulate=2)
        return TrainLoader(made, as_fetched, Asis(), WorkerConfig(workers), 2)

    def trace(loader):
        return list(itertools.chain.from_iterable(itertools.repeat(loader, 3)))

    ranks = [trace(loader(rank)) for rank in range(2)]
    length = len(loader(0))
    assert len(ranks[0]) == 3 * length == 45
    for stop in (1, 15, 22, 37) if workers == 0 else (23,):
        first = loader(0)
        list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(first, 3)), stop))
        state = json.loads(json.dumps(first.state_dict()))
        if stop > 20:
            assert state["plan"]["marks"][1]["row"] > 0  # not read again from the start
        for rank in range(2):
            second = loader(rank)
            second.load_state_dict(state)
            assert trace(second)[: 45 - stop] == ranks[rank][stop:]


def test_marks_of_other_settings_are_not_followed(samples):
    first = plan(samples, epoch_rows=60)
    keys(first)
    state = first.state(1, 0)
    second = plan(samples, epoch_rows=40)
    with pytest.raises(DataError, match=r"middle of an epoch with shares = \[18, 18, 12, 12\], and this run has"):
        second.check_state(state, mid_epoch=True)
    second.check_state(state, mid_epoch=False)
    assert keys(second, 1) == keys(plan(samples, epoch_rows=40), 1)


def test_blocks_are_curated_as_they_are_read(samples, data_dir, caplog):
    name = "math-aps-tree"
    records = list(load_records(data_dir / "formats" / f"{name}.jsonl"))
    distinct = len({(row.question, row.steps) for row in records})
    assert distinct < len(records)
    config = source(data_dir / "formats" / f"{name}.jsonl", weight=1.0, shuffle_buffer=10**6)
    with caplog.at_level(logging.INFO, "datamodules.streams"):
        given = keys(plan([config], epoch_rows=distinct, curation=CurationParams(deduplicate=True)))
    assert len({(row.question, row.steps) for _, row in given}) == distinct
    assert f"{distinct} of {len(records)} records kept ({len(records) - distinct} duplicates)" in caplog.text
    with pytest.raises(ConfigError, match=r"data\.curation: got 'on'; accepted: all off, for streams without weights"):
        plan([source("x", count=3)], curation=CurationParams(deduplicate=True))


def test_refusals(samples, write_jsonl):
    with pytest.raises(ConfigError, match=r"data\.epoch_rows: got None; accepted: the number of rows of an epoch"):
        plan(samples)
    path = write_jsonl([{"prompt": "Q", "completions": ["a"], "labels": [True]}] * 5)
    with pytest.raises(DataError, match=r"rows/train: the stream ended after 5 rows; source\.count .* says 7"):
        keys(plan([source(path, weight=1.0, count=7, label="rows/train")], epoch_rows=8))
    with pytest.raises(DataError, match=r"json/train: the stream holds no row behind source\.offset = 9"):
        keys(plan([source(path, weight=1.0, offset=9)], epoch_rows=8))
    wrong = write_jsonl([{"prompt": "Q", "completions": ["a"], "labels": [True, True]}], "wrong.jsonl")
    with pytest.raises(DataError, match=r"json/train:0: labels: got 2 labels for 1 steps"):
        keys(plan([source(wrong, weight=1.0)], epoch_rows=8))


@pytest.mark.parametrize("streaming", [True, False])
def test_some_lines_may_be_malformed(write_jsonl, streaming, caplog):
    """A few, if one says how many: each is named once, however often it is read; one more is an error."""
    lines = [{"prompt": f"Q{i}", "completions": ["a"], "labels": [True] * (1 + (i in (2, 5)))} for i in range(8)]
    path = write_jsonl(lines)

    def questions(malformed):
        if streaming:
            made = plan([source(path, weight=1.0, malformed=malformed)], epoch_rows=12)
            return [row.question for _, row in keys(made)]
        mixture = open_mixture([SourceConfig(path=path, malformed=malformed)], record_parser)
        return [mixture.row(i)[1].question for i in range(len(mixture))] * 2

    expected = {f"Q{i}": 2 for i in (0, 1, 3, 4, 6, 7)}
    for allowed in (2, 3):
        caplog.clear()
        assert Counter(questions(allowed)) == expected
        assert caplog.text.count("got 2 labels for 1 steps") == 2
        assert f"left out, 2 of at most {allowed}: " in caplog.text
    for allowed in (0, 1):
        with pytest.raises(DataError, match=r":[36]: labels: got 2 labels|train:[25]: labels: got 2 labels"):
            questions(allowed)
    with pytest.raises(ConfigError, match=r"source\.malformed: got -1"):
        SourceConfig(path=path, malformed=-1)
