"""Many problems, each solved by one search or several: graded rows in problem order, killed and resumed at will.

A bounded number of searches is in work at any time, and all of them share the engine and the scorer. Rows are written a
chunk of problems at a time; the next chunks begin while the last searches of one are being finished, so that batches
stay full. What a row holds depends on the problem, the search and its seed alone, as far as the engine's samples do:
scored tokens are counted as if the search had the scorer to itself.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from prmkit.chunks import ChunkedOutput, encode_lines
from prmkit.claims import ClaimFolder
from prmkit.errors import ConfigError, DataError, EngineLostError, PrmkitError
from prmkit.io import parse_json_line
from prmkit.scoring.ensemble import EnsembleScorer
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.result import SearchMethod
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.search.sampling import sample_traces, solution_text
from prmkit.steps import BoundStepFormat
from prmkit.types import Engine, Grader, Problem, SamplingParams, StepScorer, StepScores, Trace, Usage
from prmkit.windows import work_through

__all__ = [
    "RunParams",
    "Searcher",
    "gather_rows",
    "grade_traces",
    "run_claimed_search",
    "run_search",
    "search_all",
    "solve",
]

# What may go wrong with one problem without saying anything about the others: its text, its data, a server's reply.
# Everything else is a defect or the end of the engine, and ends the run; what was acknowledged stays.
ISOLATED = (PrmkitError, ValueError, OSError)

_COLLECT_EVERY = 100_000  # new objects between two looks of the cycle collector at the youngest; Python has 700

OnRow = Callable[[SearchRow], None]


@dataclass(frozen=True, slots=True)
class RunParams:
    """How a run treats every problem.

    Attributes:
        in_flight: searches in work at once; at least 1.
        greedy: sampling of one greedy trace a row; None leaves it out.
        limits: what may be spent on one problem by a search that has no limits of its own (the greedy trace is not
            counted).
        chunk: problems written at once, and the unit of resuming; at least 1.
    """

    in_flight: int = 64
    greedy: SamplingParams | None = None
    limits: BudgetLimits = field(default_factory=BudgetLimits)
    chunk: int = 8

    def __post_init__(self) -> None:
        for name in ("in_flight", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer of at least 1")
        if self.greedy is not None and self.greedy.temperature != 0.0:
            raise ConfigError("greedy.temperature", self.greedy.temperature, "0")


@dataclass(frozen=True, slots=True)
class Searcher:
    """A search that problems go through: who solves, scores and judges.

    Attributes:
        method: the search with its parameters.
        engine: the policy.
        scorer: the PRM; None leaves traces without scores.
        grader: extracts and compares answers.
        name, budget: see SearchRow.
        limits: what may be spent on one problem; None takes those of the run.
    """

    method: SearchMethod
    engine: Engine
    scorer: StepScorer | None
    grader: Grader
    name: str = ""
    budget: int | None = None
    limits: BudgetLimits | None = None


def grade_traces(
    problem: Problem, traces: Sequence[Trace], grader: Grader, fmt: BoundStepFormat
) -> tuple[TraceRecord, ...]:
    """Extract, group and grade the answers of one problem's traces; every distinct text and answer once."""
    texts = [tuple(step.text for step in trace.steps) for trace in traces]
    extracted = {steps: grader.extract(solution_text(steps, fmt)) for steps in dict.fromkeys(texts)}
    answers = list(dict.fromkeys(extracted.values()))
    groups = dict(zip(answers, grader.group(answers), strict=True))
    grades = dict(zip(answers, grader.grade([(answer, problem.answer) for answer in answers]), strict=True))
    return tuple(
        TraceRecord(
            steps=steps,
            finish=trace.finish,
            answer=extracted[steps],
            group=groups[extracted[steps]],
            correct=trace.finish == "stop" and grades[extracted[steps]].correct,
            tokens=trace.n_tokens,
            scores=None if trace.scores is None else trace.scores.values,
        )
        for trace, steps in zip(traces, texts, strict=True)
    )


async def solve(problem: Problem, searcher: Searcher, params: RunParams) -> SearchRow:
    """One problem's row. A failure of this problem alone becomes a row that says so."""
    budget = Budget(searcher.limits or params.limits)
    row = SearchRow(
        problem.id,
        problem.question,
        problem.answer,
        (),
        level=problem.level,
        source=problem.source,
        method=searcher.name,
        budget=searcher.budget,
    )
    scorer = None if searcher.scorer is None else _counting(searcher.scorer)
    try:
        greedy: list[Trace] = []
        if params.greedy is not None:
            greedy = await sample_traces(problem, searcher.engine, 1, params.greedy, 0, Budget())
        found = await searcher.method(problem, searcher.engine, scorer, budget=budget)
        graded = grade_traces(problem, [*found.traces, *greedy], searcher.grader, searcher.engine.format)
    except EngineLostError:
        raise
    except ISOLATED as error:
        return replace(row, usage=_counted(budget), error=f"{type(error).__name__}: {error}")
    return replace(
        row,
        traces=graded[: len(found.traces)],
        greedy=graded[-1] if greedy else None,
        usage=_counted(budget),
        tree=found.nodes,
    )


def run_search(
    problems: Sequence[Problem],
    searchers: Searcher | Sequence[Searcher],
    output: ChunkedOutput,
    params: RunParams,
    on_row: OnRow | None = None,
) -> float:
    """Solve what the output does not hold yet; rows are appended in the order of problems, then of searchers.

    Args:
        problems: all problems of the run, the same in every attempt.
        searchers: every problem goes through each of them.
        output: where rows go, and where a resumed run goes on.
        params: see RunParams.
        on_row: called with every new row as soon as it is done, in order of completion.

    Returns:
        Seconds of work, over all attempts.

    Raises:
        DataError: every search of the first chunk failed; the message carries the first failure.
    """
    if output.complete:
        return float(output.state["seconds"])
    before, start = float(output.state.get("seconds", 0.0)), time.monotonic()

    def seconds() -> dict[str, float]:
        return {"seconds": round(before + time.monotonic() - start, 3)}

    def write(_: int, rows: list[SearchRow]) -> None:
        output.append([row.to_json() for row in rows], seconds())

    numbers = iter(range(output.chunks, -(-len(problems) // params.chunk)))
    work = _Work(problems, _several(searchers), params, on_row)
    asyncio.run(work.run(lambda: next(numbers, None), write))
    output.finish(seconds())
    return float(output.state["seconds"])


def run_claimed_search(
    problems: Sequence[Problem],
    searchers: Searcher | Sequence[Searcher],
    folder: ClaimFolder,
    params: RunParams,
    on_row: OnRow | None = None,
) -> None:
    """Solve chunks that no other worker does, until all are done; returns when the last one is, whoever did it.

    Args:
        problems, searchers, params, on_row: as in `run_search`.
        folder: shared by the workers; its number of chunks is that of the run.
    """
    mark = time.monotonic()

    def write(number: int, rows: list[SearchRow]) -> None:
        nonlocal mark
        before, mark = mark, time.monotonic()
        lines = encode_lines([row.to_json() for row in rows])
        folder.finish(number, {"rows": lines}, {"seconds": round(mark - before, 3)})

    work = _Work(problems, _several(searchers), params, on_row)
    asyncio.run(work.run(folder.claim, write, lambda: folder.all_done))


def gather_rows(folder: ClaimFolder, output: ChunkedOutput) -> float:
    """Put the finished chunks of a shared run into one output, as a single worker would have written it.

    Returns the seconds of all workers together.
    """
    seconds = float(output.state.get("seconds", 0.0))
    for number in range(output.chunks, folder.chunks):
        where = f"{folder.folder}: chunk {number}"
        rows = [parse_json_line(line, where) for line in folder.read(number, "rows").splitlines()]
        seconds = round(seconds + float(folder.state(number)["seconds"]), 3)
        output.append(rows, {"seconds": seconds})
    if not output.complete:
        output.finish({"seconds": seconds})
    return float(output.state["seconds"])


def search_all(
    problems: Sequence[Problem],
    searchers: Searcher | Sequence[Searcher],
    params: RunParams,
    on_row: OnRow | None = None,
) -> list[SearchRow]:
    """The rows of `run_search`, kept in memory. Arguments and errors as there."""
    found: list[SearchRow] = []
    numbers = iter(range(-(-len(problems) // params.chunk)))
    work = _Work(problems, _several(searchers), params, on_row)
    asyncio.run(work.run(lambda: next(numbers, None), lambda _, rows: found.extend(rows)))
    return found


@contextmanager
def _patient_collector() -> Iterator[None]:
    """Python's cycle collector runs less often: it would look at the trees of all searches in work again and again, for
    half of the time that searches themselves take."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _COLLECT_EVERY) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _several(searchers: Searcher | Sequence[Searcher]) -> tuple[Searcher, ...]:
    return (searchers,) if isinstance(searchers, Searcher) else tuple(searchers)


class _Work:
    """The problems of a run, in chunks."""

    def __init__(
        self,
        problems: Sequence[Problem],
        searchers: tuple[Searcher, ...],
        params: RunParams,
        on_row: OnRow | None,
    ) -> None:
        self._problems = problems
        self._searchers = searchers
        self._params = params
        self._on_row = on_row
        self._room = asyncio.Semaphore(params.in_flight)

    async def run(
        self,
        take: Callable[[], int | None],
        write: Callable[[int, list[SearchRow]], None],
        complete: Callable[[], bool] = lambda: True,
    ) -> None:
        """Work on chunks, and write each when it and all begun before it are done; see `work_through`."""

        async def end(number: int, tasks: list[asyncio.Task[SearchRow]]) -> None:
            rows = await asyncio.gather(*tasks)
            if number == 0 and all(row.error is not None for row in rows):
                raise DataError(f"all of the first {len(rows)} searches failed; {rows[0].problem_id}: {rows[0].error}")
            write(number, rows)

        ahead = 1 + -(-self._params.in_flight // (self._params.chunk * len(self._searchers)))
        with _patient_collector():
            await work_through(take, self._begin, end, ahead=ahead, complete=complete)

    def _begin(self, number: int) -> list[asyncio.Task[SearchRow]]:
        part = self._problems[number * self._params.chunk : (number + 1) * self._params.chunk]
        return [asyncio.create_task(self._one(problem, searcher)) for problem in part for searcher in self._searchers]

    async def _one(self, problem: Problem, searcher: Searcher) -> SearchRow:
        async with self._room:
            row = await solve(problem, searcher, self._params)
        if self._on_row is not None:
            self._on_row(row)
        return row


def _counted(budget: Budget) -> Usage:
    return replace(budget.spent, seconds=0.0)


def _counting(scorer: StepScorer) -> StepScorer:
    """The scorer as one search pays for it."""
    if isinstance(scorer, EnsembleScorer):
        return scorer.wrapped(_counting)
    return _OwnTokens(scorer) if isinstance(scorer, _HasFormat) else scorer


@runtime_checkable
class _HasFormat(Protocol):
    """A scorer whose input is known token by token."""

    @property
    def format(self) -> BoundStepFormat: ...

    async def score(self, question: str, steps: Sequence[str]) -> StepScores: ...


class _OwnTokens:
    """Counts every distinct token that one search has scored once, whatever the scorer still knows from others.

    Otherwise the cost of a search would depend on which other one had asked about the same steps before.
    """

    def __init__(self, scorer: _HasFormat) -> None:
        self._scorer = scorer
        self._seen: set[int] = set()  # a chained hash for every distinct prefix
        self._ends: dict[tuple[str, ...], tuple[int, int]] = {}  # its hash and length, behind known steps

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        scores = await self._scorer.score(question, steps)
        return replace(scores, encoded_tokens=self._new_tokens(question, tuple(steps)))

    def _new_tokens(self, question: str, steps: tuple[str, ...]) -> int:
        if not steps:
            return 0
        encoded = self._scorer.format.encode_steps(question, steps)
        end = encoded.positions[-1] + 1
        key, start = self._ends.get(steps[:-1], (0, 0))
        before = len(self._seen)
        for token in encoded.input_ids[start:end]:
            key = hash((key, token))
            self._seen.add(key)
        self._ends[steps] = (key, end)
        return len(self._seen) - before
