"""Compute-optimal search: the method that suits a problem's estimated difficulty (Snell et al., arXiv 2408.03314,
section 3.2: difficulty as the mean score that a PRM gives to a few samples)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prmkit.aggregate import AGGREGATIONS, Aggregation, aggregate
from prmkit.errors import ConfigError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Problem, SamplingParams
from prmkit.search.best_of_n import score_traces
from prmkit.search.budget import Budget
from prmkit.search.result import SearchMethod, SearchResult
from prmkit.search.sampling import sample_traces
from prmkit.seeding import derive_seed

__all__ = ["ComputeOptimalParams", "MethodChoice", "compute_optimal"]


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """A method and its parameters as values, e.g. from YAML.

    Attributes:
        method: a name in `prmkit.search.methods.METHODS`.
        params: fields of its parameters; what is left out has its default.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComputeOptimalParams:
    """How to estimate difficulty, and what to do about it.

    Attributes:
        probes: samples that difficulty is estimated from; they are candidates for the answer too.
        sampling: how they are sampled.
        aggregation: makes a probe's score; one that did not finish, or has no steps, counts 0.
        thresholds: mean scores in [0, 1] between two bins of difficulty, ascending.
        methods: what to do in each bin, hardest first; one more than there are thresholds.
        seed: of the run's probes; methods have their own.
    """

    probes: int = 4
    sampling: SamplingParams = field(default_factory=SamplingParams)
    aggregation: Aggregation = "last"
    thresholds: tuple[float, ...] = (0.5,)
    methods: tuple[MethodChoice, ...] = (MethodChoice("dvts"), MethodChoice("best_of_n"))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ConfigError("search.probes", self.probes, "an integer of at least 1")
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError("search.aggregation", self.aggregation, " | ".join(AGGREGATIONS))
        ascending = all(low < high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not ascending or not all(0.0 <= threshold <= 1.0 for threshold in self.thresholds):
            raise ConfigError("search.thresholds", self.thresholds, "ascending numbers in [0, 1]")
        if len(self.methods) != len(self.thresholds) + 1:
            raise ConfigError("search.methods", f"{len(self.methods)} methods", "one more than there are thresholds")


async def compute_optimal(
    problem: Problem,
    engine: Engine,
    scorer: StepScorer | None,
    params: ComputeOptimalParams,
    budget: Budget,
    *,
    choices: Sequence[SearchMethod],
) -> SearchResult:
    """The chosen method's result with the probes' traces in front; the tree is that of the method alone.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; needed.
        params: see ComputeOptimalParams.
        budget: pays for everything; the method has what the probes leave.
        choices: `params.methods`, made.

    Raises:
        ConfigError: there is no PRM.
    """
    if scorer is None:
        raise ConfigError("prm", None, "a PRM: difficulty is estimated from its scores")
    seed = derive_seed(params.seed, "search", "probe", problem.id)
    probes = await sample_traces(problem, engine, params.probes, params.sampling, seed, budget)
    probes = await score_traces(problem, probes, scorer, budget)
    scores = [0.0 if probe.scores is None else aggregate(probe.scores.values, params.aggregation) for probe in probes]
    mean = math.fsum(scores) / len(scores) if scores else 0.0
    found = await choices[bisect_right(params.thresholds, mean)](problem, engine, scorer, budget=budget)
    return replace(found, traces=(*probes, *found.traces))
