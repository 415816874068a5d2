"""MiPS: the share of right rollouts from every prefix of every solution (arXiv 2402.02658, section 3.2).

Solutions are labelled alike whether they end right or wrong, and the share itself is the target: train with
`targets.kind: soft`. The estimates are Math-Shepherd's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prmkit.annotation import math_shepherd
from prmkit.annotation.counts import ProblemLabels
from prmkit.protocols import Engine, Grader
from prmkit.records import Problem, SamplingParams
from prmkit.search.budget import Budget

__all__ = ["SOURCE", "MiPSParams", "annotate_problem"]

SOURCE = "mips"


@dataclass(frozen=True, slots=True)
class MiPSParams:
    """What is sampled.

    Attributes:
        solutions_per_problem: solutions sampled of every problem, all labelled once each; at least 1.
        rollouts: k, rollouts behind every value; at least 1.
        reuse_rollouts: take over rollouts from a shorter prefix that pass through a longer one, and sample the rest.
        sampling: how solutions are sampled.
        rollout_sampling: how rollouts are sampled; null samples them like solutions.
        seed: of the run.
    """

    solutions_per_problem: int = 8
    rollouts: int = 8
    reuse_rollouts: bool = True
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rollout_sampling: SamplingParams | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.brute_force()

    def brute_force(self) -> math_shepherd.MathShepherdParams:
        """The same as parameters of `math_shepherd.annotate_problem`, which checks them."""
        return math_shepherd.MathShepherdParams(
            solutions_per_problem=self.solutions_per_problem,
            wrong_per_problem=None,
            right_per_problem=None,
            estimate_right=True,
            rollouts=self.rollouts,
            reuse_rollouts=self.reuse_rollouts,
            sampling=self.sampling,
            rollout_sampling=self.rollout_sampling,
            seed=self.seed,
        )


async def annotate_problem(
    problem: Problem, engine: Engine, grader: Grader, params: MiPSParams, policy: str, budget: Budget
) -> ProblemLabels:
    """Sample solutions of a problem and label all that are distinct; see `math_shepherd.annotate_problem`."""
    return await math_shepherd.annotate_problem(
        problem, engine, grader, params.brute_force(), policy, budget, source=SOURCE
    )
