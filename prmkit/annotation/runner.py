"""Many problems and their step-label records, for `prmkit.jobs.runner`.

What a problem's records are depends on the problem and the seed alone, as far as the engine's samples do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from prmkit.annotation.counts import AnnotationCounts, ProblemLabels
from prmkit.annotation.methods import get_method
from prmkit.annotation.traces import Candidates
from prmkit.errors import ConfigError
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.jobs.runner import Failure, Part, Work, isolated
from prmkit.jobs.runner import run as run_work
from prmkit.protocols import Engine, Grader
from prmkit.records import Problem, Usage
from prmkit.search.budget import Budget

__all__ = ["AnnotationRun", "Workers", "annotation_work", "run_annotation"]


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
_Result = tuple[ProblemLabels | Failure, Usage]


def annotation_work(
    problems: Sequence[Problem],
    workers: Workers,
    run: AnnotationRun,
    on_problem: Show | None = None,
    before: Mapping[str, Any] | None = None,
) -> Work[Problem, _Result]:
    """The labelling of problems, for `prmkit.jobs.runner`.

    Records go to the output and trees to its companion. A problem that fails alone is left out, counted, and named in
    the state with its error. The state holds `counts` (AnnotationCounts), `usage` and `failures`.

    Args:
        problems: all problems of the run, the same in every attempt.
        workers: see Workers.
        run: see AnnotationRun.
        on_problem: called with counts and usage so far whenever a problem is done.
        before: the state that an earlier attempt left, for `on_problem`.
    """
    annotate = get_method(run.method).annotate
    if run.candidates is not None:
        annotate = partial(annotate, candidates=run.candidates)
    counts = AnnotationCounts(**(before or {}).get("counts", {}))
    usage = Usage(**(before or {}).get("usage", {}))

    async def one(problem: Problem) -> _Result:
        nonlocal counts, usage
        budget = Budget()
        result = await isolated(annotate(problem, workers.engine, workers.grader, run.params, run.policy, budget))
        spent = replace(budget.spent, seconds=0.0)
        counts, usage = counts + _counts(result), usage + spent
        if on_problem is not None:
            on_problem(counts, usage)
        return result, spent

    return Work(
        problems,
        one,
        _part,
        lambda problem, result: f"{problem.id}: {result[0].error}" if isinstance(result[0], Failure) else None,
        run.chunk,
        run.in_flight,
        start=_state(AnnotationCounts(), Usage(), []),
    )


def run_annotation(
    problems: Sequence[Problem],
    workers: Workers,
    output: ChunkedOutput,
    run: AnnotationRun,
    on_problem: Show | None = None,
) -> dict[str, Any]:
    """Annotate what the output does not hold yet: `annotation_work`, by this process alone; returns the state."""
    return run_work(annotation_work(problems, workers, run, on_problem, output.state), output)


def _part(problems: Sequence[Problem], results: Sequence[_Result]) -> Part:
    labels = [result for result, _ in results if isinstance(result, ProblemLabels)]
    failures = [
        {"problem_id": problem.id, "error": result.error}
        for problem, (result, _) in zip(problems, results, strict=True)
        if isinstance(result, Failure)
    ]
    counts = sum((_counts(result) for result, _ in results), AnnotationCounts())
    usage = sum((spent for _, spent in results), Usage())
    return Part(
        [record.to_json() for result in labels for record in result.records],
        [result.tree.to_json() for result in labels if result.tree is not None],
        _state(counts, usage, failures),
    )


def _counts(result: ProblemLabels | Failure) -> AnnotationCounts:
    return result.counts if isinstance(result, ProblemLabels) else AnnotationCounts(problems=1, failed=1)


def _state(counts: AnnotationCounts, usage: Usage, failures: list[dict[str, str]]) -> dict[str, Any]:
    spent = {name: value for name, value in asdict(usage).items() if name != "seconds"}
    return {"counts": asdict(counts), "usage": spent, "failures": failures}
