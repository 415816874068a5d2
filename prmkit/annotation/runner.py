"""Many problems: step-label records written chunk by chunk, killed and resumed at will, alone or shared among workers.

A bounded number of problems is in work at any time. The next chunk begins while the last problems of the one before are
being finished, so that an engine's batch stays full from the first problem to the last. Chunks are written in order.
What a problem's records are depends on the problem and the seed alone, as far as the engine's samples do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from prmkit.annotation.counts import AnnotationCounts, ProblemLabels
from prmkit.annotation.methods import get_method
from prmkit.annotation.traces import Candidates
from prmkit.chunks import ChunkedOutput, encode_lines
from prmkit.claims import ClaimFolder
from prmkit.errors import ConfigError, DataError, EngineLostError, PrmkitError
from prmkit.io import parse_json_line
from prmkit.search.budget import Budget
from prmkit.types import Engine, Grader, Problem, Usage
from prmkit.windows import work_through

__all__ = ["AnnotationRun", "Workers", "gather_chunks", "run_annotation", "run_claimed"]

# What may go wrong with one problem without saying anything about the others: its text, its data, a server's reply.
_ISOLATED = (PrmkitError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class AnnotationRun:
    """How a run goes about its problems.

    Attributes:
        method: a name in `prmkit.annotation.methods`.
        params: of every problem; of the method's own class.
        policy: name of the policy, for the records.
        in_flight: problems worked on at once; at least 1.
        chunk: problems written at once, and the unit of resuming and sharing; at least 1.
        candidates: solutions by problem id, for a method that labels given ones; None for all others.
    """

    method: str
    params: Any
    policy: str = ""
    in_flight: int = 100
    chunk: int = 50
    candidates: Candidates | None = None

    def __post_init__(self) -> None:
        for name in ("in_flight", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer of at least 1")
        if not isinstance(self.params, get_method(self.method).params):
            raise ConfigError("params", type(self.params).__name__, get_method(self.method).params.__name__)
        if get_method(self.method).from_rows != (self.candidates is not None):
            expected = "the solutions to label" if self.candidates is None else f"null: {self.method} samples its own"
            raise ConfigError("candidates", self.candidates, expected)


@dataclass(frozen=True, slots=True)
class Workers:
    """Who labels and judges: the policy, and the grader of its answers."""

    engine: Engine
    grader: Grader


Show = Callable[[AnnotationCounts, Usage], None]


@dataclass(frozen=True, slots=True)
class _Totals:
    """What chunks add up to."""

    counts: AnnotationCounts = field(default_factory=AnnotationCounts)
    usage: Usage = field(default_factory=Usage)
    failures: tuple[dict[str, str], ...] = ()
    seconds: float = 0.0

    def __add__(self, other: _Totals) -> _Totals:
        return _Totals(
            self.counts + other.counts,
            self.usage + other.usage,
            self.failures + other.failures,
            self.seconds + other.seconds,
        )

    def to_state(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "counts": asdict(self.counts),
            "usage": {name: value for name, value in asdict(self.usage).items() if name != "seconds"},
            "failures": list(self.failures),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _Totals:
        return cls(
            AnnotationCounts(**state.get("counts", {})),
            Usage(**state.get("usage", {})),
            tuple(state.get("failures", ())),
            float(state.get("seconds", 0.0)),
        )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A finished chunk: records and trees in problem order, and what they cost."""

    records: list[dict[str, Any]]
    trees: list[dict[str, Any]]
    totals: _Totals


def run_annotation(
    problems: Sequence[Problem],
    workers: Workers,
    output: ChunkedOutput,
    run: AnnotationRun,
    on_problem: Show | None = None,
) -> dict[str, Any]:
    """Annotate what the output does not hold yet; records are appended in problem order, trees to its companion.

    A problem that fails alone is left out, counted, and named in the state with its error.

    Args:
        problems: all problems of the run, the same in every attempt.
        workers: see Workers.
        output: where records go, and where a resumed run goes on.
        run: see AnnotationRun.
        on_problem: called with counts and usage so far whenever a problem is done.

    Returns:
        The output's state: `seconds` over all attempts, `counts` (AnnotationCounts), `usage` and `failures`.

    Raises:
        DataError: every problem of the first chunk failed; the message carries the first failure.
    """
    if output.complete:
        return output.state
    written = _Totals.from_state(output.state)

    def write(_: int, chunk: _Chunk) -> None:
        nonlocal written
        written += chunk.totals
        output.append(chunk.records, written.to_state(), beside=chunk.trees if output.companion is not None else ())

    numbers = iter(range(output.chunks, -(-len(problems) // run.chunk)))
    window = _Window(problems, workers, run, written, on_problem)
    asyncio.run(window.run(lambda: next(numbers, None), lambda: True, write))
    output.finish(written.to_state())
    return output.state


def run_claimed(
    problems: Sequence[Problem],
    workers: Workers,
    folder: ClaimFolder,
    run: AnnotationRun,
    on_problem: Show | None = None,
) -> None:
    """Annotate chunks that no other worker does, until all are done; returns when the last one is, whoever did it.

    Args:
        problems, workers, run, on_problem: as in `run_annotation`.
        folder: shared by the workers; its number of chunks is that of the run.
    """

    def write(number: int, chunk: _Chunk) -> None:
        files = {"records": encode_lines(chunk.records), "trees": encode_lines(chunk.trees)}
        folder.finish(number, files, chunk.totals.to_state())

    window = _Window(problems, workers, run, _Totals(), on_problem)
    asyncio.run(window.run(folder.claim, lambda: folder.all_done, write))


def gather_chunks(folder: ClaimFolder, output: ChunkedOutput) -> dict[str, Any]:
    """Put the finished chunks of a shared run into one output, as a single worker would have written it.

    `seconds` in the state are those of all workers together.
    """
    totals = _Totals.from_state(output.state)
    for number in range(output.chunks, folder.chunks):
        totals += _Totals.from_state(folder.state(number))
        trees = _lines(folder, number, "trees") if output.companion is not None else []
        output.append(_lines(folder, number, "records"), totals.to_state(), beside=trees)
    if not output.complete:
        output.finish(totals.to_state())
    return output.state


def _lines(folder: ClaimFolder, number: int, suffix: str) -> list[dict[str, Any]]:
    where = f"{folder.folder}: chunk {number}, {suffix}"
    return [parse_json_line(line, where) for line in folder.read(number, suffix).splitlines()]


class _Window:
    """Problems in work: those of one chunk, and of the next as soon as there is room."""

    def __init__(
        self, problems: Sequence[Problem], workers: Workers, run: AnnotationRun, before: _Totals, show: Show | None
    ) -> None:
        self._problems = problems
        self._workers = workers
        self._run = run
        self._shown = before
        self._show = show or (lambda _, __: None)
        self._annotate = get_method(run.method).annotate
        if run.candidates is not None:
            self._annotate = partial(self._annotate, candidates=run.candidates)
        self._room = asyncio.Semaphore(run.in_flight)
        self._mark = time.monotonic()

    async def run(
        self, take: Callable[[], int | None], complete: Callable[[], bool], write: Callable[[int, _Chunk], None]
    ) -> None:
        """Work on chunks, and write each when it and all begun before it are done.

        Args:
            take: the number of a chunk to begin; None when there is none at the moment.
            complete: is there nothing left to wait for?
            write: what to do with a finished chunk.
        """
        await work_through(
            take,
            self._begin,
            lambda number, tasks: self._end(number, tasks, write),
            ahead=1 + -(-self._run.in_flight // self._run.chunk),
            complete=complete,
        )

    def _begin(self, number: int) -> list[asyncio.Task[tuple[ProblemLabels | str, Usage]]]:
        size = self._run.chunk
        return [asyncio.create_task(self._one(p)) for p in self._problems[number * size : (number + 1) * size]]

    async def _end(
        self,
        number: int,
        tasks: Sequence[asyncio.Task[tuple[ProblemLabels | str, Usage]]],
        write: Callable[[int, _Chunk], None],
    ) -> None:
        results = await asyncio.gather(*tasks)
        problems = self._problems[number * self._run.chunk :][: len(tasks)]
        failures = tuple(
            {"problem_id": problem.id, "error": result}
            for problem, (result, _) in zip(problems, results, strict=True)
            if isinstance(result, str)
        )
        if number == 0 and len(failures) == len(tasks):
            raise DataError(f"all of the first {len(tasks)} problems failed; {failures[0]}")
        labels = [result for result, _ in results if isinstance(result, ProblemLabels)]
        failed = AnnotationCounts(problems=len(failures), failed=len(failures))
        counts = sum((result.counts for result in labels), failed)
        usage = sum((spent for _, spent in results), Usage())
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        write(
            number,
            _Chunk(
                [record.to_json() for result in labels for record in result.records],
                [result.tree.to_json() for result in labels if result.tree is not None],
                _Totals(counts, usage, failures, seconds),
            ),
        )

    async def _one(self, problem: Problem) -> tuple[ProblemLabels | str, Usage]:
        """The problem's labels, or why it failed; and what it cost."""
        async with self._room:
            budget = Budget()
            result: ProblemLabels | str
            try:
                result = await self._annotate(
                    problem, self._workers.engine, self._workers.grader, self._run.params, self._run.policy, budget
                )
                counts = result.counts
            except EngineLostError:
                raise
            except _ISOLATED as error:
                result = f"{type(error).__name__}: {error}"
                counts = AnnotationCounts(problems=1, failed=1)
            usage = replace(budget.spent, seconds=0.0)
            self._shown += _Totals(counts, usage)
            self._show(self._shown.counts, self._shown.usage)
            return result, usage
