"""Best-of-N: n independent samples, scored. Which of them to believe is decided afterwards (`prmkit.aggregate`)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from prmkit.errors import ConfigError
from prmkit.search.budget import Budget
from prmkit.search.sampling import sample_traces
from prmkit.seeding import derive_seed
from prmkit.types import Engine, Problem, SamplingParams, StepScorer, Trace

__all__ = ["BestOfNParams", "best_of_n"]


@dataclass(frozen=True, slots=True)
class BestOfNParams:
    """How to sample.

    Attributes:
        n: samples a problem; at least 1.
        sampling: how each is sampled.
        seed: of the run; the seed of a problem is derived from it and the problem's id.
    """

    n: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError("best_of_n.n", self.n, "an integer of at least 1")


async def best_of_n(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: BestOfNParams, budget: Budget
) -> list[Trace]:
    """n traces in sample order, with the scores of those that finished.

    Traces with the same steps are scored once. Cut-off traces may not vote and are not scored. A budget with a limit
    on samples gives fewer traces, an exhausted one gives none.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; None leaves every trace without scores.
        params: see BestOfNParams.
        budget: pays for everything.
    """
    n = budget.samples_left(params.n)
    if n == 0:
        return []
    seed = derive_seed(params.seed, "search", problem.id)
    traces = await sample_traces(problem, engine, n, params.sampling, seed, budget)
    return traces if scorer is None else await _scored(problem, traces, scorer, budget)


async def _scored(problem: Problem, traces: list[Trace], scorer: StepScorer, budget: Budget) -> list[Trace]:
    texts = [tuple(step.text for step in trace.steps) if trace.finish == "stop" else () for trace in traces]
    distinct = [steps for steps in dict.fromkeys(texts) if steps]
    values = await asyncio.gather(*(budget.score(scorer, problem.question, steps) for steps in distinct))
    scores = dict(zip(distinct, values, strict=True))
    return [replace(trace, scores=scores.get(steps)) for trace, steps in zip(traces, texts, strict=True)]
