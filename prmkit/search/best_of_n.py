"""Best-of-N: n independent samples, scored. Which of them to believe is decided afterwards (`prmkit.aggregate`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prmkit.errors import ConfigError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Problem, SamplingParams, Trace
from prmkit.search.budget import Budget
from prmkit.search.result import SearchResult
from prmkit.search.sampling import sample_traces
from prmkit.seeding import derive_seed

__all__ = ["BestOfNParams", "CoTParams", "best_of_n", "chain_of_thought", "score_traces"]


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
) -> SearchResult:
    """n traces in sample order, with the scores of those that finished.

    Traces with the same steps are scored once. Cut-off traces may not vote and are not scored. A budget's limits give
    fewer traces, an exhausted one gives none.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; None leaves every trace without scores.
        params: see BestOfNParams.
        budget: pays for everything.
    """
    seed = derive_seed(params.seed, "search", problem.id)
    traces = await sample_traces(problem, engine, params.n, params.sampling, seed, budget)
    return SearchResult(tuple(await score_traces(problem, traces, scorer, budget)))


@dataclass(frozen=True, slots=True)
class CoTParams:
    """How to sample the one solution; temperature 0 is greedy. Attributes as in BestOfNParams."""

    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))
    seed: int = 0


async def chain_of_thought(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: CoTParams, budget: Budget
) -> SearchResult:
    """One trace: best-of-1. Arguments as in `best_of_n`."""
    return await best_of_n(problem, engine, scorer, BestOfNParams(1, params.sampling, params.seed), budget)


async def score_traces(
    problem: Problem, traces: Sequence[Trace], scorer: StepScorer | None, budget: Budget
) -> list[Trace]:
    """The traces of a problem, those that finished with their scores; as they are without a PRM."""
    if scorer is None:
        return list(traces)
    texts = [tuple(step.text for step in trace.steps) if trace.finish == "stop" else () for trace in traces]
    distinct = [steps for steps in dict.fromkeys(texts) if steps]
    values = await budget.score_all(scorer, problem.question, distinct)
    scores = dict(zip(distinct, values, strict=True))
    return [replace(trace, scores=scores.get(steps)) for trace, steps in zip(traces, texts, strict=True)]
