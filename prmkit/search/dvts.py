"""Diverse verifier tree search: independent greedy trees under a PRM (Beeching et al. 2024, "Scaling test-time compute
with open models")."""

from __future__ import annotations

from prmkit.protocols import Engine, StepScorer
from prmkit.records import Problem
from prmkit.search.beam import BeamParams, rank
from prmkit.search.budget import Budget
from prmkit.search.explorer import Explorer
from prmkit.search.result import SearchResult
from prmkit.search.tree import Node, distinct

__all__ = ["dvts"]


async def dvts(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: BeamParams, budget: Budget
) -> SearchResult:
    """n / width trees; each draws `width` next steps a round and goes on from its best one, whatever the others do.

    A tree ends when its best candidate is finished, and gives all finished candidates of that round. Trees may meet in
    the same steps; what they draw there is independent all the same.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; needed.
        params: see BeamParams.
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
