"""REBASE: a budget of samples shared among open steps by their scores (Wu et al., arXiv 2408.00724, section 3.2)."""

from __future__ import annotations

import math
from collections import Counter
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

__all__ = ["RebaseParams", "rebase", "share_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebaseParams(StepwiseParams):
    """How to share; with the fields of StepwiseParams.

    Attributes:
        n: samples in the first round; every finished solution takes one of them away from later rounds.
        balance: temperature of the softmax over values; towards 0 the best step takes all, above about 1 all take the
            same.
        aggregation: makes a step's value from the scores up to it.
    """

    n: int = 16
    balance: float = 0.1
    aggregation: Aggregation = "last"

    def __post_init__(self) -> None:
        StepwiseParams.__post_init__(self)
        check_at_least(self, n=1)
        if not self.balance > 0.0:
            raise ConfigError("search.balance", self.balance, "a number above 0")
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError("search.aggregation", self.aggregation, " | ".join(AGGREGATIONS))


async def rebase(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: RebaseParams, budget: Budget
) -> SearchResult:
    """Draw n first steps; share the samples that are left among the open steps by `share_out`, and so on.

    A step drawn several times counts as often. The paper rounds every share; here the largest remainders are rounded
    up, so that the shares add up. Dead ends give their samples back.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; needed.
        params: see RebaseParams.
        budget: pays for everything.
    """
    explorer = Explorer(problem, engine, scorer, params, budget)
    finished: list[Node] = []
    wants = {explorer.root: params.n}
    while wants and not budget.exhausted:
        drawn = await explorer.expand(list(wants.items()))
        await rank(explorer, distinct(drawn), params.aggregation)
        samples = [node for of_node in drawn for node in of_node]
        finished += [node for node in samples if node.finish == "stop"]
        counts = Counter(node for node in samples if node.open)
        shares = share_out(
            params.n - len(finished), list(counts.values()), [node.value or 0.0 for node in counts], params.balance
        )
        wants = {node: share for node, share in zip(counts, shares, strict=True) if share}
    return await explorer.harvest([*finished, *wants])


def share_out(total: int, counts: list[int], values: list[float], balance: float) -> list[int]:
    """Shares proportional to count * exp(value / balance), in whole numbers that add up to the total.

    Args:
        total: what to share; at least 0.
        counts: how often each one is there.
        values: in [0, 1], one each.
        balance: above 0.
    """
    if not counts:
        return []
    best = max(values)
    weights = [count * math.exp((value - best) / balance) for count, value in zip(counts, values, strict=True)]
    exact = [total * weight / math.fsum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    order = sorted(range(len(shares)), key=lambda place: shares[place] - exact[place])
    for place in order[: total - sum(shares)]:
        shares[place] += 1
    return shares
