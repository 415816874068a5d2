"""Items taken through a piece of work, many at once, and written chunk by chunk: killed and resumed at will.

A bounded number of items is in work at any time. The next chunk begins while the last items of the one before are being
finished, so that an engine's batch stays full from the first item to the last. Chunks are written in order.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from prmkit.errors import ConfigError, DataError, EngineLostError, PrmkitError
from prmkit.io import parse_json_line
from prmkit.jobs.chunks import ChunkedOutput, encode_lines
from prmkit.jobs.claims import ClaimFolder
from prmkit.jobs.windows import work_through

__all__ = ["Failure", "Part", "Work", "collect", "gather", "isolated", "run", "run_claimed"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_COLLECT_EVERY = 100_000  # new objects between two looks of the cycle collector at the youngest; Python has 700


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no result for one item.

    Attributes:
        error: class and message.
    """

    error: str


async def isolated(work: Awaitable[ResultT]) -> ResultT | Failure:
    """The result, or what went wrong with this item alone: its text, its data, a server's reply.

    Any other error is a defect or the end of the engine, and is raised.
    """
    try:
        return await work
    except EngineLostError:
        raise
    except (PrmkitError, ValueError, OSError) as error:
        return Failure(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Part:
    """What a finished chunk leaves.

    Attributes:
        records: lines of the output.
        beside: lines of its companion, which go nowhere when there is none.
        state: what it adds to the output's state: numbers are added, lists joined, mappings merged key by key.
    """

    records: Sequence[Mapping[str, Any]]
    beside: Sequence[Mapping[str, Any]] = ()
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Work(Generic[ItemT, ResultT]):
    """What a run does with its items.

    Attributes:
        items: all of them, the same in every attempt.
        one: an item's result. Errors that concern one item only become a part of the result (`isolated`).
        part: what a chunk leaves, from its items and their results in order.
        error: why an item failed; None for one that did not.
        chunk: items written at once, and the unit of resuming and sharing; at least 1.
        in_flight: items in work at once; at least 1.
        what: the items in one word, for messages.
        start: the state of an output before its first chunk.
    """

    items: Sequence[ItemT]
    one: Callable[[ItemT], Awaitable[ResultT]]
    part: Callable[[Sequence[ItemT], Sequence[ResultT]], Part]
    error: Callable[[ItemT, ResultT], str | None]
    chunk: int
    in_flight: int
    what: str = "problems"
    start: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("chunk", "in_flight"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer of at least 1")

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-len(self.items) // self.chunk)


def run(work: Work[ItemT, ResultT], output: ChunkedOutput) -> dict[str, Any]:
    """Do what the output does not hold yet; records are appended in the order of items.

    Returns:
        The output's state: `seconds` of work over all attempts, and what the parts add up to.

    Raises:
        DataError: every item of the first chunk failed; the message carries the first failure.
    """
    if output.complete:
        return output.state
    if not output.state:
        output.state = {"seconds": 0.0, **work.start}
    numbers = iter(range(output.chunks, work.chunks))

    def write(_: int, part: Part) -> None:
        _append(output, part.records, part.beside, part.state)

    asyncio.run(_work(work, lambda: next(numbers, None), write))
    output.finish(output.state)
    return output.state


def run_claimed(work: Work[ItemT, ResultT], folder: ClaimFolder) -> None:
    """Do chunks that no other worker does, until all are done; returns when the last one is, whoever did it.

    Args:
        work: the same for all workers.
        folder: shared by them; its number of chunks is that of the work.

    Raises:
        DataError: as `run`.
    """

    def write(number: int, part: Part) -> None:
        files = {"records": encode_lines(part.records), "beside": encode_lines(part.beside)}
        folder.finish(number, files, part.state)

    asyncio.run(_work(work, folder.claim, write, lambda: folder.all_done))


def gather(folder: ClaimFolder, output: ChunkedOutput) -> dict[str, Any]:
    """Put the finished chunks of a shared run into one output, as a single worker would have written it.

    Returns the output's state; its `seconds` are those of all workers together.
    """
    for number in range(output.chunks, folder.chunks):
        _append(output, _lines(folder, number, "records"), _lines(folder, number, "beside"), folder.state(number))
    if not output.complete:
        output.finish(output.state)
    return output.state


def collect(work: Work[ItemT, ResultT]) -> list[ResultT]:
    """The results of all items, in order, written nowhere. Errors as in `run`."""
    found: list[ResultT] = []
    numbers = iter(range(work.chunks))

    def keep(_: Sequence[ItemT], results: Sequence[ResultT]) -> Part:
        found.extend(results)
        return Part(())

    asyncio.run(_work(replace(work, part=keep), lambda: next(numbers, None), lambda _, __: None))
    return found


def _append(
    output: ChunkedOutput,
    records: Sequence[Mapping[str, Any]],
    beside: Sequence[Mapping[str, Any]],
    state: Mapping[str, Any],
) -> None:
    output.append(records, _sum(output.state, state), beside if output.companion is not None else ())


def _sum(one: Any, other: Any) -> Any:
    """Two states as one; see `Part.state`."""
    if isinstance(one, Mapping):
        both = one.keys() & other.keys()
        return {**one, **other, **{name: _sum(one[name], other[name]) for name in both}}
    return round(one + other, 3) if isinstance(one, float) else one + other


def _lines(folder: ClaimFolder, number: int, suffix: str) -> list[dict[str, Any]]:
    where = f"{folder.folder}: chunk {number}, {suffix}"
    return [parse_json_line(line, where) for line in folder.read(number, suffix).splitlines()]


async def _work(
    work: Work[ItemT, ResultT],
    take: Callable[[], int | None],
    write: Callable[[int, Part], None],
    complete: Callable[[], bool] = lambda: True,
) -> None:
    """Work on chunks, and write each when it and all begun before it are done; see `work_through`."""
    room = asyncio.Semaphore(work.in_flight)
    mark = time.monotonic()

    async def one(item: ItemT) -> ResultT:
        async with room:
            return await work.one(item)

    def items(number: int) -> Sequence[ItemT]:
        return work.items[number * work.chunk : (number + 1) * work.chunk]

    async def end(number: int, tasks: list[asyncio.Task[ResultT]]) -> None:
        nonlocal mark
        results = await asyncio.gather(*tasks)
        errors = [error for error in map(work.error, items(number), results) if error is not None]
        if number == 0 and len(errors) == len(results):
            raise DataError(f"all of the first {len(results)} {work.what} failed; {errors[0]}")
        now = time.monotonic()
        part = work.part(items(number), results)
        state = {"seconds": round(now - mark, 3), **part.state}
        mark = now
        write(number, Part(part.records, part.beside, state))

    ahead = 1 + -(-work.in_flight // work.chunk)
    with _patient_collector():
        await work_through(
            take,
            lambda number: [asyncio.create_task(one(item)) for item in items(number)],
            end,
            ahead=ahead,
            complete=complete,
        )


@contextmanager
def _patient_collector() -> Iterator[None]:
    """Python's cycle collector runs less often: it would look at the trees of all items in work again and again, for
    half of the time that searches themselves take."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _COLLECT_EVERY) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
