"""Outputs are identified by what they are made from, and grow with it."""

import itertools

import pytest

from prmkit.chunks import ChunkedOutput, meta_path
from prmkit.claims import ClaimFolder
from prmkit.errors import ConfigError, DataError
from prmkit.io import read_json
from prmkit.items import Items, problem_items
from prmkit.types import Problem

KEYS = tuple("abcdefg")
SETTINGS = {"seed": 0}


def items(count, chunk, keys=KEYS):
    return Items(keys[:count], chunk)


def lines(part):
    return [{"key": key, "n": n} for key in part for n in range(ord(key) % 3)]


def write(path, count, chunk, stop=None, keys=KEYS):
    """Make an output from the first `count` items; with `stop`, leave after so many more chunks."""
    beside = path.with_name(f"{path.name}.beside")
    with ChunkedOutput(path, SETTINGS, companion=beside, items=items(count, chunk, keys)) as output:
        for number in list(range(output.chunks, -(-count // chunk)))[:stop]:
            part = keys[:count][number * chunk : (number + 1) * chunk]
            output.append(lines(part), {"sum": output.state.get("sum", 0) + len(part)}, beside=lines(part))
        if stop is None:
            output.finish(output.state)
        return output


def content(path):
    meta = read_json(meta_path(path))
    return path.read_bytes(), path.with_name(f"{path.name}.beside").read_bytes(), meta


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize(("few", "many"), itertools.combinations(range(1, 8), 2))
def test_more_items_extend_an_output_to_the_bytes_of_a_fresh_one(tmp_path, few, many, chunk):
    write(tmp_path / "fresh", many, chunk)
    write(tmp_path / "grown", few, chunk)
    grown = write(tmp_path / "grown", many, chunk, stop=1)  # killed after one more chunk
    assert (grown.extended_from, grown.complete) == (few, False)
    assert write(tmp_path / "grown", many, chunk).state == {"sum": many}
    assert content(tmp_path / "grown") == content(tmp_path / "fresh")
    assert write(tmp_path / "grown", many, chunk).complete


def test_an_unfinished_output_is_extended_too(tmp_path):
    write(tmp_path / "fresh", 7, 2)
    for stop in range(4):
        write(tmp_path / f"x{stop}", 5, 2, stop=stop)
        write(tmp_path / f"x{stop}", 7, 2)
        assert content(tmp_path / f"x{stop}") == content(tmp_path / "fresh")


@pytest.mark.parametrize("changed", range(4))
def test_other_content_is_refused_and_left_as_it_is(tmp_path, changed):
    write(tmp_path / "x", 4, 3)
    before = content(tmp_path / "x")
    keys = (*KEYS[:changed], "z", *KEYS[changed + 1 :])
    for count in (4, 7):
        with pytest.raises(DataError, match=r"x: was made from other problems: .* --overwrite true\.$"):
            write(tmp_path / "x", count, 3, keys=keys)
    with pytest.raises(ConfigError, match=r"number of problems: got 3; accepted: at least 4, from which .*--overwrite"):
        write(tmp_path / "x", 3, 3)
    assert content(tmp_path / "x") == before


def test_a_problem_is_all_its_fields_and_what_belongs_to_it():
    problem = Problem("p", "q", "1", "s", "2", "t")
    others = [Problem(*("x" if i == n else v for i, v in enumerate(("p", "q", "1", "s", "2", "t")))) for n in range(6)]
    keys = {problem_items([other], 1).keys for other in (problem, *others)}
    assert len(keys | {problem_items([problem], 1, {"p": ["trace"]}).keys}) == 8


def claimed(folder, count, chunk, keys=KEYS):
    """Do all chunks that are open; returns their numbers."""
    made = items(count, chunk, keys)
    done = []
    with ClaimFolder(folder, SETTINGS, made.chunks, made) as claims:
        while (number := claims.claim()) is not None:
            part = keys[:count][number * chunk : (number + 1) * chunk]
            claims.finish(number, {"rows": "".join(part).encode()}, {"size": len(part)})
            done.append(number)
        return done, b"".join(claims.read(number, "rows") for number in range(made.chunks))


def test_shared_work_is_extended_when_it_is_done(tmp_path):
    assert claimed(tmp_path / "parts", 5, 2) == ([0, 1, 2], b"abcde")
    assert claimed(tmp_path / "parts", 7, 2) == ([2, 3], b"abcdefg"), "the chunk that was not full, and a new one"
    assert claimed(tmp_path / "parts", 7, 2) == ([], b"abcdefg")
    with pytest.raises(ConfigError, match="number of problems: got 5; accepted: at least 7"):
        claimed(tmp_path / "parts", 5, 2)
    with pytest.raises(DataError, match=r"was made from other problems: .*delete .*parts and the output\.$"):
        claimed(tmp_path / "parts", 7, 2, keys=("z", *KEYS[1:]))
    with ClaimFolder(tmp_path / "open", SETTINGS, 3, items(5, 2)) as claims:
        claims.claim()
        with pytest.raises(ConfigError, match=r"number of problems: got 7; accepted: 5, until .*open is done"):
            ClaimFolder(tmp_path / "open", SETTINGS, 4, items(7, 2))
