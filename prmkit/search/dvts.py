"""Diverse verifier tree search: independent greedy trees under a PRM (Beeching et al. 2024, "Scaling test-time compute
with open models")."""

from __future__ import annotations

from dataclasses import dataclass

from prmkit.aggregate import AGGREGATIONS, Aggregation
from prmkit.errors import ConfigError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Problem
from prmkit.search.beam import rank
from prmkit.search.budget import Budget
from prmkit.search.explorer import Explorer, StepwiseParams, check_at_least
from prmkit.search.result import SearchResult
from prmkit.search.tree import Node, distinct

__all__ = ["DVTSParams", "dvts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DVTSParams(StepwiseParams):
    """How many trees, and how wide; with the fields of StepwiseParams.

    Attributes:
        n: candidates per round over all trees; a multiple of `width`.
        width: next steps drawn per tree and round, so that there are n / width trees.
        aggregation: ranks candidates by the scores of their steps.
        lookahead: greedy steps written after a candidate, whose scores rank it; 0 ranks it by its own.
    """

    n: int = 16
    width: int = 4
    aggregation: Aggregation = "last"
    lookahead: int = 0

    def __post_init__(self) -> None:
        StepwiseParams.__post_init__(self)
        check_at_least(self, n=1, width=1, lookahead=0)
        if self.n % self.width:
            raise ConfigError("search.n", self.n, f"a multiple of search.width = {self.width}")
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError("search.aggregation", self.aggregation, " | ".join(AGGREGATIONS))


async def dvts(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: DVTSParams, budget: Budget
) -> SearchResult:
    """n / width trees; each draws `width` next steps a round and goes on from its best one, whatever the others do.

    A tree ends when its best candidate is finished, and gives all finished candidates of that round. Trees may meet in
    the same steps; what they draw there is independent all the same.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; needed.
        params: see DVTSParams.
        budget: pays for everything.
    """
    explorer = Explorer(problem, engine, scorer, params, budget)
    ends: list[Node] = []
    tips = [explorer.root] * (params.n // params.width)
    while tips and not budget.exhausted:
        drawn = await explorer.expand([(tip, params.width) for tip in tips])
        await rank(explorer, distinct(drawn), params.aggregation, params.lookahead)
        following: list[Node] = []
        for tip, samples in zip(tips, drawn, strict=True):
            alive = [node for node in samples if node.finish in (None, "stop")]
            best = max(alive, key=lambda node: node.value or 0.0, default=None)
            if best is None:  # dead ends only, or nothing: the tree ends here, unless the budget did
                ends += [] if samples else [tip]
            elif best.open:
                following.append(best)
            else:
                ends += [node for node in alive if not node.open]
        tips = following
    return await explorer.harvest([*ends, *tips])
