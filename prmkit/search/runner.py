"""Many problems: a bounded number of them in flight, graded rows in problem order, killed and resumed at will.

Problems are taken in chunks, and a chunk is what resuming repeats: every chunk meets an idle engine, so that the same
problems share batches in a run that was killed and in one that was not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from prmkit.chunks import ChunkedOutput
from prmkit.errors import ConfigError, DataError, PrmkitError
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.result import SearchMethod
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.search.sampling import sample_traces, solution_text
from prmkit.steps import BoundStepFormat
from prmkit.types import Engine, Grader, Problem, SamplingParams, StepScorer, Trace, Usage

__all__ = ["RunParams", "Searcher", "grade_traces", "run_search", "solve"]

# What may go wrong with one problem without saying anything about the others: its text, its data, a server's reply.
# Everything else is a defect or the end of the engine, and ends the run; what was acknowledged stays.
ISOLATED = (PrmkitError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class RunParams:
    """How a run treats every problem.

    Attributes:
        in_flight: problems worked on at once, and the unit of resuming; at least 1.
        greedy: sampling of the one greedy trace a problem; None leaves it out.
        limits: what may be spent on one problem (the greedy trace is not counted).
    """

    in_flight: int = 64
    greedy: SamplingParams | None = None
    limits: BudgetLimits = field(default_factory=BudgetLimits)

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise ConfigError("in_flight", self.in_flight, "an integer of at least 1")
        if self.greedy is not None and self.greedy.temperature != 0.0:
            raise ConfigError("greedy.temperature", self.greedy.temperature, "0")


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


@dataclass(frozen=True, slots=True)
class Searcher:
    """Who solves, scores and judges.

    Attributes:
        method: the search with its parameters.
        engine: the policy.
        scorer: the PRM; None leaves traces without scores.
        grader: extracts and compares answers.
    """

    method: SearchMethod
    engine: Engine
    scorer: StepScorer | None
    grader: Grader


async def solve(problem: Problem, searcher: Searcher, params: RunParams) -> SearchRow:
    """One problem's row. A failure of this problem alone becomes a row that says so."""
    budget = Budget(params.limits)
    row = SearchRow(problem.id, problem.question, problem.answer, (), level=problem.level, source=problem.source)
    try:
        greedy: list[Trace] = []
        if params.greedy is not None:
            greedy = await sample_traces(problem, searcher.engine, 1, params.greedy, 0, Budget())
        found = await searcher.method(problem, searcher.engine, searcher.scorer, budget=budget)
        graded = grade_traces(problem, [*found.traces, *greedy], searcher.grader, searcher.engine.format)
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
    searcher: Searcher,
    output: ChunkedOutput,
    params: RunParams,
    on_row: Callable[[SearchRow], None] | None = None,
) -> float:
    """Solve what the output does not hold yet; rows are appended in problem order.

    Args:
        problems: all problems of the run, the same in every attempt.
        searcher: see Searcher.
        output: where rows go, and where a resumed run goes on.
        params: see RunParams.
        on_row: called with every new row as soon as it is done, in order of completion.

    Returns:
        Seconds of work, over all attempts.

    Raises:
        DataError: every problem of the first chunk failed; the message carries the first failure.
    """
    if output.complete:
        return float(output.state["seconds"])
    return asyncio.run(_run(problems, searcher, output, params, on_row))


async def _run(
    problems: Sequence[Problem],
    searcher: Searcher,
    output: ChunkedOutput,
    params: RunParams,
    on_row: Callable[[SearchRow], None] | None,
) -> float:
    before, start = float(output.state.get("seconds", 0.0)), time.monotonic()

    async def one(problem: Problem) -> SearchRow:
        row = await solve(problem, searcher, params)
        if on_row is not None:
            on_row(row)
        return row

    def seconds() -> float:
        return round(before + time.monotonic() - start, 3)

    for first in range(output.chunks * params.in_flight, len(problems), params.in_flight):
        rows = await asyncio.gather(*map(one, problems[first : first + params.in_flight]))
        if first == 0 and all(row.error is not None for row in rows):
            raise DataError(f"all of the first {len(rows)} problems failed; {rows[0].problem_id}: {rows[0].error}")
        output.append([row.to_json() for row in rows], {"seconds": seconds()})
    output.finish({"seconds": seconds()})
    return float(output.state["seconds"])


def _counted(budget: Budget) -> Usage:
    return replace(budget.spent, seconds=0.0)
