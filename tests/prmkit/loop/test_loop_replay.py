"""Older annotations beside new ones: how many, which, and the same ones every time."""

import pytest

from prmkit.errors import ConfigError
from prmkit.loop.replay import replay_count, write_replay


def write(path, names):
    path.write_text("".join(f'{{"id": "{name}"}}\n' for name in names))
    return path


def test_counts_by_hand():
    assert replay_count(90, 0.1) == 10  # 10 of 100
    assert replay_count(50, 0.5) == 50
    assert replay_count(7, 0.0) == 0
    with pytest.raises(ConfigError, match="replay"):
        replay_count(7, 1.0)


def test_a_sample_without_replacement_in_order(tmp_path):
    older = [
        write(tmp_path / "one", [f"a{i}" for i in range(30)]),
        write(tmp_path / "two", [f"b{i}" for i in range(30)]),
    ]
    new, output = write(tmp_path / "new", range(45)), tmp_path / "replay"
    assert write_replay(older, new, 0.1, 3, output) == 5
    lines = output.read_text().splitlines()
    everything = [line for file in older for line in file.read_text().splitlines()]
    places = [everything.index(line) for line in lines]
    assert places == sorted(set(places))
    assert len(places) == 5

    before = output.stat().st_mtime_ns
    assert write_replay(older, new, 0.1, 3, output) == 5
    assert output.stat().st_mtime_ns == before  # an input of a stage that is complete stays untouched
    write_replay(older, new, 0.1, 4, tmp_path / "other")
    assert (tmp_path / "other").read_text() != output.read_text()


def test_every_record_is_as_likely(tmp_path):
    older, new = [write(tmp_path / "old", "abcd")], write(tmp_path / "new", range(4))
    seen = dict.fromkeys("abcd", 0)
    for seed in range(400):
        write_replay(older, new, 0.2, seed, tmp_path / "replay")  # one of four
        seen[(tmp_path / "replay").read_text()[8]] += 1
    assert all(70 < count < 130 for count in seen.values()), seen


def test_all_where_there_are_too_few_and_no_file_for_none(tmp_path):
    older, new = [write(tmp_path / "old", "ab")], write(tmp_path / "new", range(100))
    assert write_replay(older, new, 0.5, 0, tmp_path / "replay") == 2
    assert (tmp_path / "replay").read_bytes() == (tmp_path / "old").read_bytes()
    assert write_replay([], new, 0.5, 0, tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
