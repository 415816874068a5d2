"""Many problems, each solved by one search or several: graded rows in problem order, for `prmkit.jobs.runner`.

All searches in work share the engine and the scorer. What a row holds depends on the problem, the search and its seed
alone, as far as the engine's samples do: scored tokens are counted as if the search had the scorer to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.jobs.runner import Failure, Part, Work, collect, isolated, run
from prmkit.protocols import Engine, Grader, StepScorer
from prmkit.records import Problem, SamplingParams, StepScores, Trace, Usage
from prmkit.scoring.ensemble import EnsembleScorer
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.result import SearchMethod
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.search.sampling import sample_traces, solution_text

__all__ = [
    "RunParams",
    "Searcher",
    "grade_traces",
    "run_search",
    "search_all",
    "search_work",
    "solve",
]

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

    async def search() -> SearchRow:
        greedy: list[Trace] = []
        if params.greedy is not None:
            greedy = await sample_traces(problem, searcher.engine, 1, params.greedy, 0, Budget())
        found = await searcher.method(problem, searcher.engine, scorer, budget=budget)
        graded = grade_traces(problem, [*found.traces, *greedy], searcher.grader, searcher.engine.format)
        traces, best = graded[: len(found.traces)], graded[-1] if greedy else None
        return replace(row, traces=traces, greedy=best, tree=found.nodes)

    result = await isolated(search())
    if isinstance(result, Failure):
        result = replace(row, error=result.error)
    return replace(result, usage=_counted(budget))


def search_work(
    problems: Sequence[Problem],
    searchers: Searcher | Sequence[Searcher],
    params: RunParams,
    on_row: OnRow | None = None,
) -> Work[tuple[Problem, Searcher], SearchRow]:
    """Every problem through every searcher, for `prmkit.jobs.runner`: a row each, in the order of problems, then of
    searchers.

    Args:
        problems: all problems of the run, the same in every attempt.
        searchers: every problem goes through each of them.
        params: see RunParams.
        on_row: called with every new row as soon as it is done, in order of completion.
    """
    several = (searchers,) if isinstance(searchers, Searcher) else tuple(searchers)

    async def one(item: tuple[Problem, Searcher]) -> SearchRow:
        row = await solve(*item, params)
        if on_row is not None:
            on_row(row)
        return row

    return Work(
        [(problem, searcher) for problem in problems for searcher in several],
        one,
        lambda _, rows: Part([row.to_json() for row in rows]),
        lambda _, row: None if row.error is None else f"{row.problem_id}: {row.error}",
        params.chunk * len(several),
        params.in_flight,
        "searches",
    )


def run_search(
    problems: Sequence[Problem],
    searchers: Searcher | Sequence[Searcher],
    output: ChunkedOutput,
    params: RunParams,
    on_row: OnRow | None = None,
) -> float:
    """Solve what the output does not hold yet: `search_work`, by this process alone; returns the seconds of work."""
    return float(run(search_work(problems, searchers, params, on_row), output)["seconds"])


def search_all(
    problems: Sequence[Problem],
    searchers: Searcher | Sequence[Searcher],
    params: RunParams,
    on_row: OnRow | None = None,
) -> list[SearchRow]:
    """The rows of `search_work`, kept in memory."""
    return collect(search_work(problems, searchers, params, on_row))


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
