"""Step labels by rollouts from every prefix: Math-Shepherd (arXiv 2312.08935, section 3.3).

The policy solves a problem several times; solutions that end wrong are cut after every step and finished k times from
there. The share of rollouts that end right is the value of the prefix. How a value becomes a target (equation 3, any
right; equation 4, the share) is decided when a PRM is trained. The value of a whole solution is known from its grade.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from prmkit.annotation.estimate import AnswerJudge, Estimator
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError
from prmkit.search.budget import Budget
from prmkit.search.sampling import sample_traces, solution_text
from prmkit.seeding import derive_seed
from prmkit.types import Engine, Grader, Problem, SamplingParams, Trace

__all__ = ["SOURCE", "AnnotationCounts", "MathShepherdParams", "ProblemLabels", "annotate_problem", "annotate_trace"]

SOURCE = "math-shepherd"


@dataclass(frozen=True, slots=True)
class MathShepherdParams:
    """What is sampled and which solutions are labelled.

    Attributes:
        solutions_per_problem: solutions sampled of every problem; at least 1.
        wrong_per_problem: distinct wrong solutions labelled by rollouts, in the order sampled; null takes all.
        right_per_problem: distinct right solutions kept as positives, those sampled most often first; null keeps all,
            0 none. Solutions that are right by luck (errors that cancel) are seldom sampled twice.
        skip_unsolved: label no solution of a problem that none of them solves. Where the policy hardly ever succeeds,
            right prefixes have no right rollout either and are labelled wrong.
        estimate_right: label right solutions by rollouts too. If false, each of their prefixes has the value 1, on
            the evidence of the one rollout that the solution itself is: exact for "any right", generous as a share.
        rollouts: k, rollouts behind every value; at least 1. The paper has 8.
        reuse_rollouts: take over rollouts from a shorter prefix that pass through a longer one, and sample the rest.
        stop_at_first_zero: leave prefixes behind the first one without a right rollout unlabelled (null). Cheaper, and
            the same to a training that masks the steps behind the first error.
        sampling: how solutions are sampled.
        rollout_sampling: how rollouts are sampled; null samples them like solutions.
        seed: of the run.
    """

    solutions_per_problem: int = 8
    wrong_per_problem: int | None = 3
    right_per_problem: int | None = 1
    skip_unsolved: bool = False
    estimate_right: bool = False
    rollouts: int = 8
    reuse_rollouts: bool = True
    stop_at_first_zero: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rollout_sampling: SamplingParams | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("solutions_per_problem", "rollouts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"annotate.{name}", getattr(self, name), "an integer of at least 1")
        for name in ("wrong_per_problem", "right_per_problem"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"annotate.{name}", value, "an integer of at least 0, or null for all")


@dataclass(frozen=True, slots=True)
class AnnotationCounts:
    """How labels came about; adds up with `+`. Tokens and calls are the budget's to count.

    Attributes:
        problems: problems worked on, failed ones included.
        failed: problems that failed.
        solved: problems that some solution got right.
        solutions: solutions sampled; `right` of them are right, `cut_off` did not finish.
        records: solutions labelled.
        values: steps with a value.
        prefixes: distinct prefixes estimated by rollouts.
        rollouts: rollouts sampled from prefixes; `inherited` more were taken over from shorter ones.
    """

    problems: int = 0
    failed: int = 0
    solved: int = 0
    solutions: int = 0
    right: int = 0
    cut_off: int = 0
    records: int = 0
    values: int = 0
    prefixes: int = 0
    rollouts: int = 0
    inherited: int = 0

    def __add__(self, other: AnnotationCounts) -> AnnotationCounts:
        return AnnotationCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class ProblemLabels:
    """Records of one problem, wrong solutions first, and how they came about."""

    records: tuple[StepLabels, ...]
    counts: AnnotationCounts


async def annotate_problem(
    problem: Problem, engine: Engine, grader: Grader, params: MathShepherdParams, policy: str, budget: Budget
) -> ProblemLabels:
    """Sample solutions of a problem and label those that `params` picks. Cut-off solutions are not labelled.

    Args:
        problem: what to solve.
        engine: the policy.
        grader: extracts and grades answers.
        params: see MathShepherdParams.
        policy: name of the policy, for the records.
        budget: pays for everything.
    """
    seed = derive_seed(params.seed, "annotate", problem.id)
    traces = await sample_traces(problem, engine, params.solutions_per_problem, params.sampling, seed, budget)
    judge = AnswerJudge(problem, grader)
    finished = [trace for trace in traces if trace.finish == "stop"]
    verdicts = judge.right([solution_text(_texts(trace), engine.format) for trace in finished])
    estimator = Estimator(
        problem,
        engine,
        judge,
        params.rollouts,
        params.rollout_sampling or params.sampling,
        params.seed,
        budget,
        reuse=params.reuse_rollouts,
    )

    async def label(trace: Trace, correct: bool) -> StepLabels:
        if correct and not params.estimate_right:
            values, rollouts = _certain(len(trace.steps))
        else:
            values, rollouts = await annotate_trace(trace, correct, estimator, params.stop_at_first_zero)
        separator = engine.format.spec.policy.separator
        return StepLabels(
            problem.id,
            problem.question,
            problem.answer,
            _texts(trace),
            values,
            rollouts,
            source=SOURCE,
            policy=policy,
            separator=separator,
            correct=correct,
        )

    records = tuple(await asyncio.gather(*(label(*picked) for picked in _pick(finished, verdicts, params))))
    counts = AnnotationCounts(
        problems=1,
        solved=int(any(verdicts)),
        solutions=len(traces),
        right=sum(verdicts),
        cut_off=len(traces) - len(finished),
        records=len(records),
        values=sum(value is not None for record in records for value in record.values),
        prefixes=estimator.estimated,
        rollouts=budget.spent.samples - len(traces),
        inherited=estimator.inherited,
    )
    return ProblemLabels(records, counts)


async def annotate_trace(
    trace: Trace, correct: bool, estimator: Estimator, stop_at_first_zero: bool = False
) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    """Values of a finished trace's steps, and the rollouts behind each.

    The last step's value is the grade of the whole trace, resting on the trace itself. Prefixes are taken in order, so
    that each can take over rollouts from the one before it.

    Args:
        trace: finished, with at least one step.
        correct: is its answer right?
        estimator: of the same problem.
        stop_at_first_zero: the values behind the first zero are None, with 0 rollouts.
    """
    values: list[float | None] = [None] * len(trace.steps)
    counts = [0] * len(trace.steps)
    values[-1], counts[-1] = float(correct), 1
    for end in range(1, len(trace.steps)):
        estimate = await estimator.estimate(trace.steps[:end])
        values[end - 1], counts[end - 1] = estimate.value, len(estimate.rollouts)
        if stop_at_first_zero and estimate.value == 0.0:
            values[end:], counts[end:] = [None] * (len(values) - end), [0] * (len(counts) - end)
            break
    return tuple(values), tuple(counts)


def _pick(traces: Sequence[Trace], verdicts: Sequence[bool], params: MathShepherdParams) -> list[tuple[Trace, bool]]:
    """The finished traces to label, each with its verdict: wrong ones first."""
    if params.skip_unsolved and not any(verdicts):
        return []
    graded = list(zip(traces, verdicts, strict=True))
    wrong = _distinct(trace for trace, right in graded if not right)
    right = _distinct(trace for trace, right in graded if right)
    often = Counter(map(_texts, traces))
    right.sort(key=lambda trace: -often[_texts(trace)])
    picked = [(trace, False) for trace in wrong[: params.wrong_per_problem]]
    return picked + [(trace, True) for trace in right[: params.right_per_problem]]


def _certain(n_steps: int) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    return (1.0,) * n_steps, (1,) * n_steps


def _texts(trace: Trace) -> tuple[str, ...]:
    return tuple(step.text for step in trace.steps)


def _distinct(traces: Iterable[Trace]) -> list[Trace]:
    """The first traces with different steps, in order; those without any step are left out."""
    first: dict[tuple[str, ...], Trace] = {}
    for trace in traces:
        if trace.steps:
            first.setdefault(_texts(trace), trace)
    return list(first.values())
