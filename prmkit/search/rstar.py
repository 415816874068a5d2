"""rStar: tree search with several kinds of moves, rewarded by self-consistency (Qi et al., arXiv 2408.06195).

Simulations (section 3.2): go down by UCT, Q(a) + c * sqrt(ln N(s) / N(a)) with Q the mean reward, untried branches
first; expand with every move that applies; write the remainder behind one new branch; back up the reward of its end,
the share of all ends so far that give an equivalent answer. Then (section 3.3) a second model completes every solution
from a part of its steps, and solutions it does not agree with are discarded.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from prmkit.errors import ConfigError
from prmkit.protocols import Engine, Grader, StepScorer
from prmkit.records import Completion, Problem
from prmkit.search.actions import PLAIN_ACTIONS, Action, render
from prmkit.search.budget import Budget
from prmkit.search.consistency import Answers, disagreeing
from prmkit.search.explorer import Explorer, StepwiseParams, check_at_least
from prmkit.search.result import SearchResult
from prmkit.search.tree import Node, back_up, descend
from prmkit.seeding import derive_seed

__all__ = ["RStarParams", "rstar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RStarParams(StepwiseParams):
    """How to search; with the fields of StepwiseParams.

    Attributes:
        simulations: at most.
        exploration: the constant c of UCT; at least 0.
        actions: the moves; PLAIN_ACTIONS for any policy, RSTAR_ACTIONS for one that follows instructions.
        mask_from, mask_to: share of its steps that the discriminator is shown of a solution, drawn evenly between the
            two; 0 <= mask_from <= mask_to < 1.
    """

    simulations: int = 16
    exploration: float = 1.4
    actions: tuple[Action, ...] = PLAIN_ACTIONS
    mask_from: float = 0.2
    mask_to: float = 0.8

    def __post_init__(self) -> None:
        StepwiseParams.__post_init__(self)
        check_at_least(self, simulations=1)
        if not self.exploration >= 0.0:
            raise ConfigError("search.exploration", self.exploration, "a number of at least 0")
        if not 0.0 <= self.mask_from <= self.mask_to < 1.0:
            raise ConfigError("search.mask_from", self.mask_from, f"a number in [0, search.mask_to = {self.mask_to}]")
        if not any(action.kind in ("step", "rest") for action in self.actions):
            raise ConfigError("search.actions", self.actions, "at least one move of kind step or rest")


async def rstar(
    problem: Problem,
    engine: Engine,
    scorer: StepScorer | None,
    params: RStarParams,
    budget: Budget,
    *,
    grader: Grader,
    discriminator: Engine | None = None,
) -> SearchResult:
    """The traces are all solutions finished on the way, less those that the discriminator refutes (unless it refutes
    all of them). Solutions it could not complete within the budget stay.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; None leaves traces without scores. The search itself does not use it.
        params: see RStarParams.
        budget: pays for everything, the discriminator included.
        grader: extracts and compares answers; it is not told the gold answer.
        discriminator: the second model; None skips that part.
    """
    explorer = Explorer(problem, engine, scorer, params, budget)
    answers = Answers(grader, engine.format)
    search = _Search(problem, engine, explorer, params, answers)
    for _ in range(params.simulations):
        if budget.exhausted:
            break
        await search.simulate()
    ends = explorer.finished()
    if discriminator is not None and ends:
        refuted = await disagreeing(
            problem, ends, discriminator, answers, params, (params.mask_from, params.mask_to), budget
        )
        ends = [node for node in ends if node not in refuted] or ends
    return await explorer.harvest(ends)


class _Search:
    """The branches that simulations choose among."""

    def __init__(
        self, problem: Problem, engine: Engine, explorer: Explorer, params: RStarParams, answers: Answers
    ) -> None:
        self._explorer = explorer
        self._params = params
        self._answers = answers
        self._format = engine.format
        self._kinds = {action.name: action.kind for action in params.actions}
        self._branches: dict[Node, list[Node]] = {}
        self._random = random.Random(derive_seed(params.seed, "rstar", problem.id))

    async def simulate(self) -> None:
        leaf = descend(self._explorer.root, self._branches, self._uct)
        if leaf.open:
            self._branches[leaf] = await self._expand(leaf)
            leaf = self._random.choice(self._branches[leaf] or [leaf])
        if leaf.open:
            (tips,) = await self._explorer.roll_out([(leaf, 1)])
            if not tips:  # the budget ended
                return
            leaf = tips[0]
        back_up(leaf, self._reward(leaf))

    def _uct(self, node: Node, branch: Node) -> float:
        if branch.visits == 0:
            return math.inf
        spread = math.sqrt(math.log(max(1, node.visits)) / branch.visits)
        return (branch.value or 0.0) + self._params.exploration * spread

    def _reward(self, leaf: Node) -> float:
        """Share of the ends so far whose answer is equivalent to this one's; 0 without an answer."""
        if leaf.finish != "stop":
            return 0.0
        ends = self._explorer.finished()
        classes = self._answers.classes(ends)
        own = classes[ends.index(leaf)]
        return 0.0 if own < 0 else classes.count(own) / len(ends)

    async def _expand(self, node: Node) -> list[Node]:
        found: list[Node] = []
        for action in self._params.actions:
            if action.kind == "step":
                found += (await self._explorer.expand([(node, action.samples)], action=action.name))[0]
            elif action.kind == "rest":
                found += (await self._explorer.roll_out([(node, action.samples)], action=action.name))[0]
            elif self._applies(action, node):
                found += await self._ask(action, node)
        return list(dict.fromkeys(found))

    def _applies(self, action: Action, node: Node) -> bool:
        if action.kind == "rephrase":
            return node is self._explorer.root
        posed = self._kinds.get(node.action) in ("subquestion", "answer_again") and "?" in node.text
        return posed or action.kind == "subquestion"

    async def _ask(self, action: Action, node: Node) -> list[Node]:
        """Nodes that a prompted move makes; a reply that is blank or cut off makes a dead end."""
        again = action.kind == "answer_again"
        subquestion = node.text.partition("?")[0] + "?" if again else ""
        steps = node.texts()[:-1] if again else node.texts()
        prompt = render(action.prompt, self._explorer.question(node), steps, subquestion)
        (replies,) = await self._explorer.ask([(node, prompt, action.samples)])
        return [
            self._explorer.attach(self._child(action, node, reply, subquestion), len(reply.token_ids))
            for reply in replies
        ]

    def _child(self, action: Action, node: Node, reply: Completion, subquestion: str) -> Node:
        text = " ".join(self._format.split_text(reply.text))
        child = Node(node, action=action.name, weight_version=reply.weight_version)
        if not text or reply.finish_reason != "stop":
            child.finish = "length"
        elif action.kind == "rephrase":
            child.question = text
        else:
            child.text = f"{subquestion} {text}".strip()
            child.token_ids = tuple(self._format.encode_piece(child.text + self._format.spec.policy.separator))
            child.replaces = action.kind == "answer_again"
        return child
