"""Step labels for solutions that a search wrote: first errors of the ones that its PRM believed, by binary search.

A search under a PRM looks for what the PRM scores high, and so finds the errors that it does not know; samples of the
policy alone hold few of them. The wrong solutions that score highest in the rows of `prm search` are cut in the middle,
as in OmegaPRM (arXiv 2406.06592, section 3.3), and rollouts of the policy from there tell on which side the first error
lies. A PRM that is trained on these labels together with those of plain samples is not misled in the same way again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prmkit.aggregate import AGGREGATIONS, Aggregation, log_aggregate
from prmkit.annotation.counts import AnnotationCounts, ProblemLabels, most_frequent
from prmkit.annotation.estimate import AnswerJudge, Estimate, Estimator, Sampling
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import Engine, Grader
from prmkit.records import Problem, SamplingParams
from prmkit.search.budget import Budget
from prmkit.search.rows import SearchRow, TraceRecord

__all__ = ["SOURCE", "Candidates", "TracesParams", "annotate_problem", "problems_of"]

SOURCE = "search-traces"

Candidates = Mapping[str, Sequence[TraceRecord]]
"""Solutions of every problem, by problem id, in the order of the rows that they come from."""


@dataclass(frozen=True, slots=True)
class TracesParams:
    """Which solutions are labelled, and how.

    Attributes:
        wrong_per_problem: distinct wrong solutions searched for their first errors, those of the highest score first,
            or in their order where there are no scores; at least 0, null takes all.
        right_per_problem: distinct right solutions kept as positives, those found most often first; null keeps all,
            0 none.
        aggregation: makes a solution's score from those of its steps.
        rollouts: k, rollouts behind every value; at least 1.
        threshold: a prefix counts as wrong when its value is at most this, in [0, 1); see OmegaPRM's.
        reuse_rollouts: take over rollouts from a shorter prefix that pass through a longer one, and sample the rest.
        sampling: how rollouts are sampled.
        seed: of the run.
    """

    wrong_per_problem: int | None = 4
    right_per_problem: int | None = 1
    aggregation: Aggregation = "product"
    rollouts: int = 8
    threshold: float = 0.0
    reuse_rollouts: bool = True
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("wrong_per_problem", "right_per_problem"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"annotate.{name}", value, "an integer of at least 0, or null for all")
        if self.rollouts < 1:
            raise ConfigError("annotate.rollouts", self.rollouts, "an integer of at least 1")
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError("annotate.threshold", self.threshold, "a number in [0, 1)")
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError("annotate.aggregation", self.aggregation, " | ".join(AGGREGATIONS))


def problems_of(rows: Iterable[SearchRow]) -> tuple[list[Problem], dict[str, tuple[TraceRecord, ...]]]:
    """The problems of search rows, in order of appearance, and all solutions found for each, whatever the search.

    Raises:
        DataError: rows of one problem disagree about its question or answer.
    """
    problems: dict[str, Problem] = {}
    traces: dict[str, list[TraceRecord]] = {}
    for row in rows:
        problem = Problem(row.problem_id, row.question, row.answer, level=row.level, source=row.source)
        if problems.setdefault(row.problem_id, problem) != problem:
            raise DataError(f"rows of problem {row.problem_id!r} differ in question, answer, level or source")
        traces.setdefault(row.problem_id, []).extend(row.traces)
    return list(problems.values()), {name: tuple(found) for name, found in traces.items()}


async def annotate_problem(
    problem: Problem,
    engine: Engine,
    grader: Grader,
    params: TracesParams,
    policy: str,
    budget: Budget,
    *,
    candidates: Candidates,
) -> ProblemLabels:
    """Label solutions of a problem: wrong ones by their first error, right ones as positives.

    Cut-off solutions are left out, and so is a problem that none of its solutions gets right: a right prefix has no
    right rollout there either. Records are one for each distinct prefix that ends with a first error; steps before it
    that were not probed have no value, a longer right prefix vouches for them.

    Args:
        problem: whose solutions.
        engine: the policy that finishes prefixes.
        grader: extracts and grades answers of rollouts.
        params: see TracesParams.
        policy: name of what wrote the solutions, for the records.
        budget: pays for the rollouts.
        candidates: solutions by problem id.
    """
    traces = candidates.get(problem.id, ())
    finished = [trace for trace in traces if trace.finish == "stop" and trace.steps]
    right = [trace.steps for trace in finished if trace.correct]
    sampling = Sampling(params.rollouts, params.sampling, params.seed, params.reuse_rollouts)
    estimator = Estimator(problem, engine, AnswerJudge(problem, grader), sampling, budget)
    wrong = [_Bisection(steps, engine.format) for steps in _believed(finished, params)] if right else []
    while going := [solution for solution in wrong if solution.first_error is None]:
        estimates = await estimator.estimate([solution.probe() for solution in going])
        for solution, estimate in zip(going, estimates, strict=True):
            assert estimate is not None  # there is no limit
            solution.learn(estimate, params.threshold)
    kept = most_frequent(right, [trace.steps for trace in finished], params.right_per_problem)
    distinct: dict[tuple[str, ...], _Bisection] = {}
    for solution in wrong:
        distinct.setdefault(solution.beginning(), solution)
    labels = [
        *((found.steps, *found.labels(), False) for found in distinct.values()),
        *((steps, (1.0,) * len(steps), (1,) * len(steps), True) for steps in kept),
    ]
    separator = engine.format.spec.policy.separator
    records = tuple(
        StepLabels(
            *(problem.id, problem.question, problem.answer, steps, values, rollouts, SOURCE, policy),
            separator=separator,
            correct=correct,
        )
        for steps, values, rollouts, correct in labels
    )
    counts = AnnotationCounts(
        problems=1,
        solved=int(bool(right)),
        solutions=len(traces),
        right=len(right),
        cut_off=sum(trace.finish != "stop" for trace in traces),
        records=len(records),
        values=sum(value is not None for record in records for value in record.values),
        labels=len({prefix for solution in wrong for prefix in solution.known()}),
        prefixes=estimator.estimated,
        rollouts=estimator.sampled,
        inherited=estimator.inherited,
        searches=len(wrong),
        answered=estimator.answered,
    )
    return ProblemLabels(records, counts)


def _believed(finished: Sequence[TraceRecord], params: TracesParams) -> list[tuple[str, ...]]:
    """Steps of the wrong solutions to search: the best-scored first; those without scores behind them, in order."""
    scores: dict[tuple[str, ...], float] = {}
    for trace in finished:
        if not trace.correct:
            scores[trace.steps] = log_aggregate(trace.scores, params.aggregation) if trace.scores else -float("inf")
    return sorted(scores, key=lambda steps: -scores[steps])[: params.wrong_per_problem]


class _Bisection:
    """The search for one wrong solution's first error: it lies behind `low` right steps and within the first `high`."""

    def __init__(self, steps: tuple[str, ...], fmt: BoundStepFormat) -> None:
        self.steps = steps
        self._low, self._high = 0, len(steps)
        self._found: dict[int, Estimate] = {}
        separator = fmt.spec.policy.separator
        self._ids = [tuple(fmt.encode_piece(step + separator)) for step in steps]

    @property
    def first_error(self) -> int | None:
        """Index of the first wrong step; None while it is not known."""
        return self._high - 1 if self._high - self._low == 1 else None

    @property
    def _middle(self) -> int:
        return (self._low + self._high) // 2

    def probe(self) -> tuple[int, ...]:
        """Token ids of the prefix whose value is to be told next."""
        return tuple(token for ids in self._ids[: self._middle] for token in ids)

    def learn(self, estimate: Estimate, threshold: float) -> None:
        """Take the value of the prefix that was probed."""
        middle = self._middle
        self._found[middle] = estimate
        if estimate.value > threshold:
            self._low = middle
        else:
            self._high = middle

    def beginning(self) -> tuple[str, ...]:
        """The steps up to the first error."""
        return self.steps[: self._high]

    def known(self) -> list[tuple[str, ...]]:
        """Prefixes, shorter than the whole, whose label is known: the right ones, and the one with the first error."""
        ends = [*range(1, self._low + 1), *([self._high] if self._high < len(self.steps) else [])]
        return [self.steps[:end] for end in ends]

    def labels(self) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
        """Values of the steps, and the rollouts behind each; nothing behind the first error."""
        values: list[float | None] = [None] * len(self.steps)
        rollouts = [0] * len(self.steps)
        for end, estimate in self._found.items():
            if end <= self._high:
                values[end - 1], rollouts[end - 1] = estimate.value, len(estimate.rollouts)
        if self._high == len(self.steps):
            values[-1], rollouts[-1] = 0.0, 1  # the grade of the whole
        return tuple(values), tuple(rollouts)
