"""Step labels by rollouts from every prefix: Math-Shepherd (arXiv 2312.08935, section 3.3).

The policy solves a problem several times; solutions that end wrong are cut after every step and finished k times from
there. The share of rollouts that end right is the value of the prefix. How a value becomes a target (equation 3, any
right; equation 4, the share) is decided when a PRM is trained. The value of a whole solution is known from its grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prmkit.annotation.counts import AnnotationCounts, ProblemLabels, most_frequent
from prmkit.annotation.estimate import AnswerJudge, Estimator, Sampling, ids_of
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError
from prmkit.protocols import Engine, Grader
from prmkit.records import Problem, SamplingParams, Trace
from prmkit.search.budget import Budget
from prmkit.search.sampling import sample_traces, solution_text
from prmkit.seeding import derive_seed

__all__ = ["SOURCE", "MathShepherdParams", "annotate_problem", "annotate_solutions"]

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


async def annotate_problem(
    problem: Problem,
    engine: Engine,
    grader: Grader,
    params: MathShepherdParams,
    policy: str,
    budget: Budget,
    source: str = SOURCE,
) -> ProblemLabels:
    """Sample solutions of a problem and label those that `params` picks. Cut-off solutions are not labelled.

    Args:
        problem: what to solve.
        engine: the policy.
        grader: extracts and grades answers.
        params: see MathShepherdParams.
        policy: name of the policy, for the records.
        budget: pays for everything.
        source: name of the method, for the records.
    """
    seed = derive_seed(params.seed, "annotate", problem.id)
    traces = await sample_traces(problem, engine, params.solutions_per_problem, params.sampling, seed, budget)
    judge = AnswerJudge(problem, grader)
    finished = [trace for trace in traces if trace.finish == "stop"]
    verdicts = judge.right([solution_text(_texts(trace), engine.format) for trace in finished])
    sampling = Sampling(params.rollouts, params.rollout_sampling or params.sampling, params.seed, params.reuse_rollouts)
    estimator = Estimator(problem, engine, judge, sampling, budget)
    picked = _pick(finished, verdicts, params)
    rolled = [solution for solution in picked if params.estimate_right or not solution[1]]
    estimated = await annotate_solutions(rolled, estimator, params.stop_at_first_zero)
    labels = dict(zip(rolled, estimated, strict=True))
    records = tuple(
        StepLabels(
            problem.id,
            problem.question,
            problem.answer,
            _texts(trace),
            *labels.get((trace, correct), _certain(len(trace.steps))),
            source=source,
            policy=policy,
            separator=engine.format.spec.policy.separator,
            correct=correct,
        )
        for trace, correct in picked
    )
    counts = AnnotationCounts(
        problems=1,
        solved=int(any(verdicts)),
        solutions=len(traces),
        right=sum(verdicts),
        cut_off=len(traces) - len(finished),
        records=len(records),
        values=sum(value is not None for record in records for value in record.values),
        labels=estimator.estimated,
        prefixes=estimator.estimated,
        rollouts=estimator.sampled,
        inherited=estimator.inherited,
        answered=judge.answered,
    )
    return ProblemLabels(records, counts)


async def annotate_solutions(
    solutions: Sequence[tuple[Trace, bool]], estimator: Estimator, stop_at_first_zero: bool = False
) -> list[tuple[tuple[float | None, ...], tuple[int, ...]]]:
    """Values of the steps of finished solutions, and the rollouts behind each.

    A solution's last value is its own grade, resting on itself. The others are estimated from the first step on, all
    solutions at the same time, so that each prefix can take over rollouts from those it continues.

    Args:
        solutions: (trace with at least one step, is its answer right?) each.
        estimator: of the same problem.
        stop_at_first_zero: the values behind the first zero are None, with 0 rollouts.
    """
    values: list[list[float | None]] = [[None] * (len(t.steps) - 1) + [float(right)] for t, right in solutions]
    counts = [[0] * (len(trace.steps) - 1) + [1] for trace, _ in solutions]
    going = list(range(len(solutions)))
    end = 0
    while going := [number for number in going if end + 1 < len(values[number])]:
        end += 1
        estimates = await estimator.estimate([ids_of(solutions[number][0].steps[:end]) for number in going])
        for number, estimate in zip(list(going), estimates, strict=True):
            assert estimate is not None  # there is no limit
            values[number][end - 1], counts[number][end - 1] = estimate.value, len(estimate.rollouts)
            if stop_at_first_zero and estimate.value == 0.0:
                left = len(values[number]) - end
                values[number][end:], counts[number][end:] = [None] * left, [0] * left
                going.remove(number)
    return [(tuple(v), tuple(c)) for v, c in zip(values, counts, strict=True)]


def _pick(traces: Sequence[Trace], verdicts: Sequence[bool], params: MathShepherdParams) -> list[tuple[Trace, bool]]:
    """The finished traces to label, each with its verdict: wrong ones first."""
    if params.skip_unsolved and not any(verdicts):
        return []
    first = {_texts(trace): trace for trace in reversed(traces) if trace.steps}
    graded = list(zip(map(_texts, traces), verdicts, strict=True))
    wrong = list(dict.fromkeys(steps for steps, right in graded if steps and not right))
    right = most_frequent((steps for steps, right in graded if right), [s for s, _ in graded], params.right_per_problem)
    picked = [(first[steps], False) for steps in wrong[: params.wrong_per_problem]]
    return picked + [(first[steps], True) for steps in right]


def _certain(n_steps: int) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    return (1.0,) * n_steps, (1,) * n_steps


def _texts(trace: Trace) -> tuple[str, ...]:
    return tuple(step.text for step in trace.steps)
