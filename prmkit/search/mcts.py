"""Monte-Carlo tree search over steps with PUCT (Silver et al. 2017, equation of the selection step)."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from prmkit.aggregate import AGGREGATIONS, Aggregation
from prmkit.errors import ConfigError, DataError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Problem
from prmkit.search.budget import Budget
from prmkit.search.explorer import Explorer, StepwiseParams, check_at_least
from prmkit.search.result import SearchResult
from prmkit.search.tree import Node, back_up, descend
from prmkit.seeding import derive_seed

__all__ = ["MCTSParams", "mcts"]

Leaf = Literal["prm", "rollout"]
Prior = Literal["frequency", "probability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MCTSParams(StepwiseParams):
    """How to search; with the fields of StepwiseParams.

    Attributes:
        simulations: at most; each selects, expands, evaluates and backs up.
        width: next steps drawn behind a node when it is expanded.
        c_puct: weight of exploration against value; at least 0.
        prior: of a step among its siblings: "frequency", its share of the samples; "probability", that of its tokens
            under the policy, divided by the sum over the siblings.
        leaf: value of a leaf: "prm", its own scores; "rollout", those of solutions completed behind it, which are
            candidates for the answer too.
        rollouts: completions behind a leaf with leaf = "rollout".
        aggregation: makes a value from scores.
        noise: share of Dirichlet noise in the priors at the root, in [0, 1]; 0 is none.
        noise_alpha: concentration of that noise; above 0.
    """

    simulations: int = 32
    width: int = 4
    c_puct: float = 1.0
    prior: Prior = "frequency"
    leaf: Leaf = "rollout"
    rollouts: int = 1
    aggregation: Aggregation = "last"
    noise: float = 0.0
    noise_alpha: float = 0.3

    def __post_init__(self) -> None:
        StepwiseParams.__post_init__(self)
        check_at_least(self, simulations=1, width=1, rollouts=1)
        for name, accepted in (
            ("prior", ("frequency", "probability")),
            ("leaf", ("prm", "rollout")),
            ("aggregation", AGGREGATIONS),
        ):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"search.{name}", getattr(self, name), " | ".join(accepted))
        if not self.c_puct >= 0.0:
            raise ConfigError("search.c_puct", self.c_puct, "a number of at least 0")
        if not 0.0 <= self.noise <= 1.0:
            raise ConfigError("search.noise", self.noise, "a number in [0, 1]")
        if not self.noise_alpha > 0.0:
            raise ConfigError("search.noise_alpha", self.noise_alpha, "a number above 0")


async def mcts(
    problem: Problem, engine: Engine, scorer: StepScorer | None, params: MCTSParams, budget: Budget
) -> SearchResult:
    """Every simulation goes down by PUCT to a node without branches, expands it, goes on to the best new branch,
    evaluates that and backs its value up. The traces are all solutions finished on the way.

    A branch a of s is ranked by Q(a) + c_puct * P(a) * sqrt(N(s)) / (1 + N(a)), N(s) at least 1. Q(a) is the mean of
    what was backed up through a; before that its own value (leaf = "prm"), or that of s (leaf = "rollout", 0 at the
    root). When no solution is finished in the end, one is completed behind the most visited leaf.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; needed.
        params: see MCTSParams.
        budget: pays for everything.
    """
    search = _Search(problem, Explorer(problem, engine, scorer, params, budget), params)
    for _ in range(params.simulations):
        if budget.exhausted:
            break
        await search.simulate()
    if not search.explorer.finished():
        await search.complete()
    return await search.explorer.harvest(search.explorer.finished() or [search.favourite()])


class _Search:
    """The branches that simulations choose among."""

    def __init__(self, problem: Problem, explorer: Explorer, params: MCTSParams) -> None:
        self.explorer = explorer
        self._params = params
        self._branches: dict[Node, list[Node]] = {}
        self._noise = random.Random(derive_seed(params.seed, "noise", problem.id))

    async def simulate(self) -> None:
        leaf = descend(self.explorer.root, self._branches, self._puct)
        if leaf.open:
            await self._expand(leaf)
            leaf = descend(leaf, self._branches, self._puct)
        ends = [leaf]
        if leaf.open and self._params.leaf == "rollout":
            (ends,) = await self.explorer.roll_out([(leaf, self._params.rollouts)])
        if ends != [self.explorer.root] and ends:  # else the budget ended before there was anything to evaluate
            back_up(leaf, await self._mean_value(ends))

    async def complete(self) -> None:
        """Write the remainder behind the favourite."""
        leaf = self.favourite()
        if leaf.open:
            await self.explorer.roll_out([(leaf, 1)])

    def favourite(self) -> Node:
        """The leaf at the end of the most visited branches; the better one of equals."""
        return descend(self.explorer.root, self._branches, lambda _, node: node.visits + (node.value or 0.0) / 2.0)

    def _puct(self, node: Node, branch: Node) -> float:
        explore = self._params.c_puct * (branch.prior or 0.0) * math.sqrt(max(1, node.visits)) / (1 + branch.visits)
        return (branch.value or 0.0) + explore

    async def _expand(self, node: Node) -> None:
        (drawn,) = await self.explorer.expand([(node, self._params.width)])
        branches = self._branches[node] = list(dict.fromkeys(drawn))
        if self._params.leaf == "prm":
            await self.explorer.score(branches)
        for branch, prior in zip(branches, self._priors(drawn, branches, node is self.explorer.root), strict=True):
            branch.prior = prior
            own = self._params.leaf == "prm"
            branch.value = self.explorer.value(branch, self._params.aggregation) if own else node.value

    async def _mean_value(self, ends: list[Node]) -> float:
        await self.explorer.score(ends)
        return math.fsum(self.explorer.value(end, self._params.aggregation) for end in ends) / len(ends)

    def _priors(self, drawn: list[Node], branches: list[Node], noisy: bool) -> list[float]:
        if self._params.prior == "frequency":
            counts = Counter(drawn)
            weights = [float(counts[branch]) for branch in branches]
        else:
            if any(len(branch.logprobs) != len(branch.token_ids) for branch in branches):
                raise DataError('search.prior = "probability" needs log-probabilities; the engine gives none')
            logs = [math.fsum(branch.logprobs) for branch in branches]
            weights = [math.exp(log - max(logs)) for log in logs]
        priors = [weight / math.fsum(weights) for weight in weights]
        if not noisy or self._params.noise == 0.0:
            return priors
        gammas = [self._noise.gammavariate(self._params.noise_alpha, 1.0) for _ in priors]
        share, total = self._params.noise, math.fsum(gammas) or 1.0
        return [(1.0 - share) * prior + share * gamma / total for prior, gamma in zip(priors, gammas, strict=True)]
