"""The one runner, on items that are numbers: whatever kills it and whoever shares it, the same bytes."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prmkit.errors import ConfigError, DataError, EngineLostError
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.jobs.claims import ClaimFolder
from prmkit.jobs.runner import Failure, Part, Work, collect, gather, isolated, run, run_claimed

ITEMS = list(range(11))


def work(chunk=3, in_flight=2, fail=(), kill_at=None, begun=None, items=ITEMS):
    begun = [] if begun is None else begun
    running = 0

    async def square(item):
        nonlocal running
        running += 1
        assert running <= in_flight
        begun.append(item)
        await asyncio.sleep(0.0001 * (item % 3))
        running -= 1
        if len(begun) == kill_at:
            raise EngineLostError("killed")
        if item in fail:
            raise ValueError(f"no {item}")
        return item * item

    def part(items, results):
        right = [(i, r) for i, r in zip(items, results, strict=True) if not isinstance(r, Failure)]
        lost = [r.error for r in results if isinstance(r, Failure)]
        state = {"counts": {"sum": sum(r for _, r in right)}, "lost": lost}
        return Part([{"item": i} for i, _ in right], [{"square": r} for _, r in right], state)

    def error(item, result):
        return f"{item}: {result.error}" if isinstance(result, Failure) else None

    start = {"counts": {"sum": 0}, "lost": []}
    return Work(items, lambda item: isolated(square(item)), part, error, chunk, in_flight, "numbers", start)


def open_output(folder):
    return ChunkedOutput(folder / "out", {}, companion=folder / "beside")


def content(folder):
    return (folder / "out").read_bytes(), (folder / "beside").read_bytes()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(1, 11), max_size=3))
def test_kills_leave_no_trace(tmp_path_factory, chunk, in_flight, kills):
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    with open_output(whole) as output:
        state = run(work(chunk, in_flight, fail=(4,)), output)
    assert (state["counts"]["sum"], state["lost"]) == (sum(i * i for i in ITEMS) - 16, ["ValueError: no 4"])
    for kill_at in kills:
        with open_output(killed) as output:
            if not output.complete:
                with suppress(EngineLostError):
                    run(work(chunk, in_flight, fail=(4,), kill_at=kill_at), output)
    with open_output(killed) as output:
        after = run(work(chunk, in_flight, fail=(4,)), output)
    assert content(killed) == content(whole)
    assert {**after, "seconds": 0} == {**state, "seconds": 0}


def test_shared_chunks_are_put_together_as_one_process_would(tmp_path):
    for name in ("whole", "shared"):
        (tmp_path / name).mkdir()
    with open_output(tmp_path / "whole") as output:
        whole = run(work(), output)
    begun = []
    for _ in range(2):  # the second finds nothing to do
        with ClaimFolder(tmp_path / "parts", {}, 4) as folder:
            run_claimed(work(begun=begun), folder)
    assert sorted(begun) == ITEMS
    with ClaimFolder(tmp_path / "parts", {}, 4) as folder, open_output(tmp_path / "shared") as output:
        shared = gather(folder, output)
    assert content(tmp_path / "shared") == content(tmp_path / "whole")
    assert {**shared, "seconds": 0} == {**whole, "seconds": 0}


def test_results_in_memory_and_an_empty_run(tmp_path):
    assert collect(work(fail=(3,)))[2:5] == [4, Failure("ValueError: no 3"), 16]
    with open_output(tmp_path) as output:
        assert run(work(items=[]), output) == {"seconds": 0.0, "counts": {"sum": 0}, "lost": []}


def test_a_first_chunk_that_fails_whole_ends_the_run(tmp_path):
    with pytest.raises(DataError, match="all of the first 3 numbers failed; 0: ValueError: no 0"):
        collect(work(fail=(0, 1, 2)))
    assert len(collect(work(fail=(3, 4, 5)))) == len(ITEMS)
    with pytest.raises(ConfigError, match="in_flight: got 0"):
        work(in_flight=0)
