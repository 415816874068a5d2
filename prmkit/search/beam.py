"""Beam search over steps under a PRM, with optional lookahead (Snell et al., arXiv 2408.03314, section 5.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prmkit.aggregate import AGGREGATIONS, Aggregation
from prmkit.errors import ConfigError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Problem
from prmkit.search.budget import Budget
from prmkit.search.explorer import Explorer, StepwiseParams, check_at_least
from prmkit.search.result import SearchResult
from prmkit.search.tree import Node, distinct

__all__ = ["BeamParams", "beam_search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams(StepwiseParams):
    """How wide to search; with the fields of StepwiseParams.

    Attributes:
        n: candidates a round; a multiple of `width`.
        width: next steps drawn behind each beam, so that n / width beams are kept.
        aggregation: ranks candidates by the scores of their steps.
        lookahead: greedy steps written behind a candidate, whose scores rank it; 0 ranks it by its own.
        merge_equal: equal candidates share one place in the beam, and a step that the policy seldom writes is gone on
            from as much as one that it always writes. If false every sample takes a place, so that a step keeps as many
            as it was drawn, and cannot fill the beam by its score alone: wide beams are misled less.
        max_children: so many next steps of one beam are kept at most (maximum candidates per node, Freitag and
            Al-Onaizan, arXiv 1702.01806); at least 1, null keeps all that rank high enough, which is plain beam search.
            A mistake that scores high takes at most this many times as many places in every round.
    """

    n: int = 16
    width: int = 4
    aggregation: Aggregation = "last"
    lookahead: int = 0
    merge_equal: bool = False
    max_children: int | None = 2

    def __post_init__(self) -> None:
        StepwiseParams.__post_init__(self)
        check_at_least(self, n=1, width=1, lookahead=0)
        if self.n % self.width:
            raise ConfigError("search.n", self.n, f"a multiple of search.width = {self.width}")
        if self.max_children is not None:
            check_at_least(self, max_children=1)
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError("search.aggregation", self.aggregation, " | ".join(AGGREGATIONS))


async def beam_search(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: BeamParams, budget: Budget
) -> SearchResult:
    """Draw n first steps; keep the best n / width, draw `width` next steps behind each, and so on.

    Finished candidates leave the beam and are traces of the result, whatever their rank; the search ends with the n-th
    of them. Open beams end as cut-off traces when the budget does.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; needed.
        params: see BeamParams.
        budget: pays for everything, lookahead included.
    """
    explorer = Explorer(problem, engine, scorer, params, budget)
    finished: list[Node] = []
    wants = [(explorer.root, params.n)]
    while wants and len(finished) < params.n and not budget.exhausted:
        drawn = await explorer.expand(wants)
        candidates = distinct(drawn)
        await rank(explorer, candidates, params.aggregation, params.lookahead)
        finished += [node for samples in drawn for node in samples if node.finish == "stop"]
        beams = _best(wants, [distinct([samples]) for samples in drawn] if params.merge_equal else drawn, params)
        wants = [(node, count * params.width) for node, count in Counter(beams).items()]
    return await explorer.harvest([*finished, *(node for node, _ in wants)])


def _best(wants: Sequence[tuple[Node, int]], drawn: Sequence[Sequence[Node]], params: BeamParams) -> list[Node]:
    """The open candidates to go on from, best first; a node once for every place that it takes."""
    most = params.width if params.max_children is None else params.max_children
    room = {node: samples // params.width * most for node, samples in wants}
    places = [(child, node) for (node, _), children in zip(wants, drawn, strict=True) for child in children]
    kept: list[Node] = []
    for child, node in sorted(places, key=lambda place: -(place[0].value or 0.0)):
        if child.open and room[node] and len(kept) < params.n // params.width:
            room[node] -= 1
            kept.append(child)
    return kept


async def rank(explorer: Explorer, nodes: Sequence[Node], how: Aggregation, lookahead: int = 0) -> None:
    """Set the values of new nodes to their aggregated scores, or to those of what a greedy lookahead finds behind."""
    ahead = {node: node for node in nodes}
    for _ in range(lookahead):
        going = [node for node in nodes if ahead[node].open]
        steps = await explorer.expand([(ahead[node], 1) for node in going], action="lookahead", temperature=0.0)
        for node, found in zip(going, steps, strict=True):
            if found and found[0].finish in (None, "stop"):
                ahead[node] = found[0]
    await explorer.score(list(ahead.values()))
    for node in nodes:
        node.value = explorer.value(ahead[node], how)
