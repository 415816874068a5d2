"""Many problems: step-label records written chunk by chunk, killed and resumed at will, measured against exact truth
where a task can give it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prmkit.annotation.math_shepherd import AnnotationCounts, MathShepherdParams, ProblemLabels, annotate_problem
from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR, first_error
from prmkit.chunks import ChunkedOutput
from prmkit.errors import ConfigError, DataError, PrmkitError
from prmkit.search.budget import Budget
from prmkit.types import Engine, Grader, Problem, Usage, VerifiableTask

__all__ = ["AnnotationRun", "LabelTruth", "compare_with_truth", "run_annotation"]

# As in prmkit.search.runner: what may go wrong with one problem alone.
_ISOLATED = (PrmkitError, ValueError, OSError)


@dataclass(frozen=True, slots=True)
class LabelTruth:
    """Labels against exact truth, a step counting as right when its value is above 0; adds up with `+`.

    Attributes:
        steps: labelled steps up to and including the first that is truly wrong; `steps_agree` of them agree.
        solutions: solutions; `first_error_agree` of them have the first error where it truly is (or truly none).
        wrong_solutions, wrong_first_error_agree: the same, for solutions that end wrong.
    """

    steps: int = 0
    steps_agree: int = 0
    solutions: int = 0
    first_error_agree: int = 0
    wrong_solutions: int = 0
    wrong_first_error_agree: int = 0

    def __add__(self, other: LabelTruth) -> LabelTruth:
        return LabelTruth(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def figures(self) -> dict[str, float | None]:
        """Shares in [0, 1]; None where nothing was counted."""
        pairs = {
            "step_accuracy": (self.steps_agree, self.steps),
            "first_error_accuracy": (self.first_error_agree, self.solutions),
            "first_error_accuracy_wrong_solutions": (self.wrong_first_error_agree, self.wrong_solutions),
        }
        return {name: part / whole if whole else None for name, (part, whole) in pairs.items()}


def compare_with_truth(record: StepLabels, truth: Sequence[bool]) -> LabelTruth:
    """Counts of one record. `truth`: [S] is each step right, from `VerifiableTask.check`."""
    true_error = next((index for index, right in enumerate(truth) if not right), NO_ERROR)
    relevant = len(truth) if true_error == NO_ERROR else true_error + 1
    labelled = [
        (value > 0.0, right)
        for value, right in zip(record.values[:relevant], truth[:relevant], strict=True)
        if value is not None
    ]
    agree = int(first_error(record.values, correct=record.correct) == true_error)
    wrong = int(not record.correct)
    return LabelTruth(
        steps=len(labelled),
        steps_agree=sum(label == right for label, right in labelled),
        solutions=1,
        first_error_agree=agree,
        wrong_solutions=wrong,
        wrong_first_error_agree=agree * wrong,
    )


@dataclass(frozen=True, slots=True)
class AnnotationRun:
    """How a run goes about its problems.

    Attributes:
        params: of every problem.
        policy: name of the policy, for the records.
        in_flight: problems worked on at once, and the unit of resuming; at least 1.
        truth: task that checks steps exactly; None where there is none.
    """

    params: MathShepherdParams = field(default_factory=MathShepherdParams)
    policy: str = ""
    in_flight: int = 100
    truth: VerifiableTask | None = None

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise ConfigError("in_flight", self.in_flight, "an integer of at least 1")


def run_annotation(
    problems: Sequence[Problem],
    engine: Engine,
    grader: Grader,
    output: ChunkedOutput,
    run: AnnotationRun,
    on_problem: Callable[[AnnotationCounts, Usage], None] | None = None,
) -> dict[str, Any]:
    """Annotate what the output does not hold yet; records are appended in problem order.

    A problem that fails alone is left out, counted, and named in the state with its error.

    Args:
        problems: all problems of the run, the same in every attempt.
        engine, grader: the policy and the judge of answers.
        output: where records go, and where a resumed run goes on.
        run: see AnnotationRun.
        on_problem: called with counts and usage so far whenever a problem is done.

    Returns:
        The output's state: `seconds` over all attempts, `counts` (AnnotationCounts), `usage`, `failures`, and with a
        verifiable task `truth` (shares) and `truth_counts` (LabelTruth).

    Raises:
        DataError: every problem of the first chunk failed; the message carries the first failure.
    """
    if output.complete:
        return output.state
    return asyncio.run(_Totals(output, run, on_problem).run(problems, engine, grader))


class _Totals:
    """Running totals of a run, from the state of the output on."""

    def __init__(
        self, output: ChunkedOutput, run: AnnotationRun, on_problem: Callable[[AnnotationCounts, Usage], None] | None
    ) -> None:
        self._output = output
        self._run = run
        self._on_problem = on_problem or (lambda _, __: None)
        self._counts = AnnotationCounts(**output.state.get("counts", {}))
        self._truth = LabelTruth(**output.state.get("truth_counts", {}))
        self._usage = Usage(**output.state.get("usage", {}))
        self._failures: list[dict[str, str]] = list(output.state.get("failures", []))
        self._before = float(output.state.get("seconds", 0.0))
        self._start = time.monotonic()

    async def run(self, problems: Sequence[Problem], engine: Engine, grader: Grader) -> dict[str, Any]:
        size = self._run.in_flight
        for first in range(self._output.chunks * size, len(problems), size):
            chunk = problems[first : first + size]
            results = await asyncio.gather(*(self._one(problem, engine, grader) for problem in chunk))
            failures = [
                {"problem_id": problem.id, "error": result}
                for problem, result in zip(chunk, results, strict=True)
                if isinstance(result, str)
            ]
            if first == 0 and len(failures) == len(chunk):
                raise DataError(f"all of the first {len(chunk)} problems failed; {failures[0]}")
            self._failures += failures
            done = [(p, r) for p, r in zip(chunk, results, strict=True) if isinstance(r, ProblemLabels)]
            self._check(done)
            self._output.append([record.to_json() for _, r in done for record in r.records], self._state())
        self._output.finish(self._state())
        return self._output.state

    async def _one(self, problem: Problem, engine: Engine, grader: Grader) -> ProblemLabels | str:
        """The problem's labels, or why it failed."""
        budget = Budget()
        result: ProblemLabels | str
        try:
            result = await annotate_problem(problem, engine, grader, self._run.params, self._run.policy, budget)
            self._counts += result.counts
        except _ISOLATED as error:
            result = f"{type(error).__name__}: {error}"
            self._counts += AnnotationCounts(problems=1, failed=1)
        self._usage += replace(budget.spent, seconds=0.0)
        self._on_problem(self._counts, self._usage)
        return result

    def _check(self, done: Sequence[tuple[Problem, ProblemLabels]]) -> None:
        if self._run.truth is None:
            return
        for problem, result in done:
            for record in result.records:
                self._truth += compare_with_truth(record, self._run.truth.check(problem, record.steps))

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "seconds": round(self._before + time.monotonic() - self._start, 3),
            "counts": asdict(self._counts),
            "usage": {name: value for name, value in asdict(self._usage).items() if name != "seconds"},
            "failures": self._failures,
        }
        if self._run.truth is not None:
            state |= {"truth": self._truth.figures(), "truth_counts": asdict(self._truth)}
        return state
