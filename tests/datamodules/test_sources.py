"""Sources: lines by number, tasks by number, hub data sets from local files."""

import json
import pickle

import numpy as np
import pytest

import datamodules.sources as sources
from datamodules.sources import HubSource, JsonlSource, SourceConfig, TaskSource, open_source
from prmkit.errors import ConfigError, DataError
from prmkit.tasks import get_task


def slow_index(path):
    """(line number, object) of the lines that are not blank, read one after another."""
    with path.open("rb") as file:
        return [(number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n  \n", " "])
def test_line_index_agrees_with_reading(tmp_path, monkeypatch, chunk, end):
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n   \n\n{"a": "ü"}\r\n{"b": 2}\n \t \n{"c": 3}' + end, newline="")
    source = JsonlSource(str(path))
    found = [source.raw(index) for index in range(len(source))]
    assert found == [(row, f"{path}:{number}") for number, row in slow_index(path)]
    with path.open("rb") as file:
        assert source.sizes().sum() == sum(len(line) for line in file if line.strip())


def test_jsonl_shards_offset_and_pickling(write_jsonl, tmp_path):
    write_jsonl([{"i": i} for i in range(5)], "b.jsonl")
    write_jsonl([{"i": i} for i in range(5, 9)], "c.jsonl")
    write_jsonl([], "a.jsonl")
    source = JsonlSource(str(tmp_path), offset=3, count=4)
    source.raw(0)
    for other in (source, pickle.loads(pickle.dumps(source))):
        assert [other.raw(i)[0]["i"] for i in range(len(other))] == [3, 4, 5, 6]
        assert other.raw(2)[1] == f"{tmp_path}/c.jsonl:1"


def test_a_malformed_line_is_named(write_jsonl):
    source = JsonlSource(write_jsonl([{"i": 0}, "\n", "{broken\n"]))
    with pytest.raises(DataError, match=r"rows\.jsonl:3: malformed JSON line"):
        source.raw(1)


def test_no_file_and_no_rows(write_jsonl, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        open_source(SourceConfig(path=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows \(offset 0"):
        open_source(SourceConfig(path=write_jsonl(["\n", " \n"])))
    with pytest.raises(DataError, match=r"no rows \(offset 3, count None\)"):
        open_source(SourceConfig(path=write_jsonl([{"i": 0}]), offset=3))


def test_task_rows_are_pure_functions_of_split_index_and_seed():
    def rows(**values):
        source = open_source(SourceConfig(kind="task", name="accumulator", **{"count": 20, **values}))
        return [source.raw(index) for index in range(len(source))]

    assert rows() == rows()
    assert rows(offset=5, count=5) == rows()[5:10]
    assert rows(seed=1) != rows()
    assert [row["question"] for row, _ in rows(seed=1)] == [row["question"] for row, _ in rows()]
    assert not {where for _, where in rows(split="hard")} & {where for _, where in rows()}


def test_task_refusals():
    with pytest.raises(ConfigError, match=r"source\.count: got None; accepted: .*endless"):
        open_source(SourceConfig(kind="task", name="accumulator"))
    with pytest.raises(ConfigError, match=r"source\.split: got 'dev'; accepted: train"):
        TaskSource(get_task("accumulator"), "dev", count=3)


def test_hub_data_set_from_local_files(write_jsonl, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_jsonl([{"i": i} for i in range(6)])
    source = open_source(SourceConfig(kind="hub", name="json", path=path, offset=2, count=3))
    assert isinstance(source, HubSource)
    assert [source.raw(i) for i in range(len(source))] == [({"i": i}, f"json/train:{i}") for i in (2, 3, 4)]
    with pytest.raises(DataError, match=r"json/dev: the data set cannot be loaded: .*dev"):
        open_source(SourceConfig(kind="hub", name="json", path=path, split="dev"))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "csv"}, "source.kind: got 'csv'; accepted: jsonl | task | hub"),
        ({}, "source.path: got None"),
        ({"path": "x", "name": "y"}, "source.name: got 'y'"),
        ({"kind": "task"}, "source.name: got None"),
        ({"path": "x", "format": "csv"}, "source.format"),
        ({"path": "x", "offset": -1}, "source.offset"),
        ({"path": "x", "count": 0}, "source.count"),
        ({"path": "x", "weight": 0.0}, "source.weight"),
        ({"path": "x", "streaming": True}, "source.streaming"),
        ({"path": "x", "shuffle_buffer": 0}, "source.shuffle_buffer"),
    ],
)
def test_config_refusals(values, field):
    with pytest.raises(ConfigError) as error:
        SourceConfig(**values)
    assert str(error.value).startswith(field)


def test_index_speed_is_that_of_reading(tmp_path):
    """A slow index would show as minutes here: 200,000 lines, among them blank ones."""
    path = tmp_path / "big.jsonl"
    path.write_text('{"a": 1}\n\n' * 100_000)
    source = JsonlSource(str(path))
    assert len(source) == 100_000
    assert np.array_equal(source._line, np.arange(1, 200_001, 2))
