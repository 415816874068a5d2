"""Growing, scoring and harvesting the tree of one problem: what all step-wise searches share.

Next steps are drawn with the separator as a stop string. Every call takes all nodes of a round, so that the engine and
the scorer see them together, and the randomness behind a node is a function of (run's seed, problem, prefix, how often
the node was gone on from): a search does not depend on other problems, nor on the order in which replies come.

Equal steps behind one node are one node with a count. A step that hits a limit is a dead end: it is paid for, is not
scored and is not gone on from. A bare end of sequence finishes its parent's solution, with the parent's scores; a blank
step changes nothing but the tokens.

As long as nothing is finished, the tokens of one whole trace are kept back. When they are all that is left, the best
node at hand is completed with them, so that a search with a limit ends with an answer; it then goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prmkit.aggregate import Aggregation, aggregate
from prmkit.errors import ConfigError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Completion, GenerationRequest, Problem, SamplingParams, Step, StepScores, Trace
from prmkit.search.budget import Budget
from prmkit.search.result import SearchResult, TreeNode
from prmkit.search.tree import Node, solution_steps
from prmkit.seeding import derive_seed

__all__ = ["Explorer", "StepwiseParams", "check_at_least"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepwiseParams:
    """How steps are drawn, by every step-wise search.

    Attributes:
        sampling: how tokens are drawn; `max_tokens` bounds a whole trace, which must fit the model's context with its
            prompt; `stop` ends a trace.
        step_tokens: tokens of a step at most; a longer step is a dead end.
        max_steps: steps of a trace at most; a longer trace is cut off.
        seed: of the run.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    step_tokens: int = 256
    max_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, step_tokens=1, max_steps=1)


def check_at_least(params: object, **least: int) -> None:
    """ConfigError for the first field of a record that is below its least value."""
    for name, bound in least.items():
        value = getattr(params, name)
        if value < bound:
            raise ConfigError(f"search.{name}", value, f"an integer of at least {bound}")


class Explorer:
    """The tree of one problem, and the means to grow and score it.

    Args:
        problem: what to solve.
        engine: the policy.
        scorer: the PRM; None for searches that never call `score`.
        params: how steps are drawn.
        budget: pays for everything.

    Attributes:
        root: the question.
        nodes: all nodes, in order of creation.
        budget: as given.

    Raises:
        ConfigError: a stop string that the end of a step always comes before.
    """

    def __init__(
        self, problem: Problem, engine: Engine, scorer: StepScorer | None, params: StepwiseParams, budget: Budget
    ) -> None:
        self._problem = problem
        self._engine = engine
        self._scorer = scorer
        self._params = params
        self._separator = engine.format.spec.policy.separator
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._secured = False
        self._spare: Node | None = None
        self._scores: dict[tuple[str, ...], tuple[float, ...]] = {(): ()}
        self.budget = budget
        self.root = Node()
        self.nodes = [self.root]
        if any(self._separator in stop for stop in params.sampling.stop):
            raise ConfigError(
                "search.sampling.stop", params.sampling.stop, f"strings without the separator {self._separator!r}"
            )

    # -- growing ----------------------------------------------------------------------------------------------------

    async def expand(
        self, wants: Sequence[tuple[Node, int]], *, action: str = "step", temperature: float | None = None
    ) -> list[list[Node]]:
        """Draw next steps behind open nodes, all in one round.

        Args:
            wants: nodes, and how many steps to draw behind each; a node may come several times.
            action: what to call the new nodes.
            temperature: in place of that of the parameters.

        Returns:
            For every node its samples in order, equal ones as the same node; fewer when the budget is exhausted.
        """
        sampling = self._params.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        sampling = replace(sampling, stop=(self._separator, *sampling.stop))
        requests = [self._request(node, n, sampling, self._params.step_tokens, "step") for node, n in wants]
        replies = await self._draw(requests, [node for node, _ in wants])
        return [
            [self._next(node, completion, action) for completion in completions]
            for (node, _), completions in zip(wants, replies, strict=True)
        ]

    async def roll_out(self, wants: Sequence[tuple[Node, int]], *, action: str = "rollout") -> list[list[Node]]:
        """Draw the whole remainder behind open nodes; as `expand`, and every sample is the last node of its steps."""
        sampling = self._params.sampling
        requests = [self._request(node, n, sampling, sampling.max_tokens, "rollout") for node, n in wants]
        replies = await self.budget.generate_all(self._engine, requests)
        return [
            [self._remainder(node, completion, action) for completion in completions]
            for (node, _), completions in zip(wants, replies, strict=True)
        ]

    async def _draw(self, requests: list[GenerationRequest], nodes: list[Node]) -> list[list[Completion]]:
        """Completions of requests, with what it takes to finish a trace kept back until one is finished."""
        if self._secured:
            return await self.budget.generate_all(self._engine, requests)
        longest = self._params.sampling.max_tokens
        replies = await self.budget.generate_all(self._engine, requests, keep=longest)
        missing = [
            (reply, replace(request, n=request.n - len(reply), seed=derive_seed(request.seed, "secured")))
            for reply, request in zip(replies, requests, strict=True)
            if len(reply) < request.n
        ]
        if missing and not self.budget.exhausted:
            self._secured = True
            best = max(nodes, key=lambda node: node.value or 0.0)
            (completed,) = await self.roll_out([(best, 1)])
            self._spare = completed[0] if completed else None
            more = await self.budget.generate_all(self._engine, [request for _, request in missing])
            for (reply, _), completions in zip(missing, more, strict=True):
                reply += completions
        return replies

    async def ask(self, wants: Sequence[tuple[Node, str, int]]) -> list[list[Completion]]:
        """Draw lines under prompts of the caller's, all in one round; what they mean is the caller's to `attach`.

        Args:
            wants: nodes that are asked about, text to be put in place of the question, and lines wanted.
        """
        sampling = replace(self._params.sampling, stop=(self._separator, *self._params.sampling.stop))
        sampling = replace(sampling, max_tokens=min(self._params.step_tokens, sampling.max_tokens))
        requests = [
            GenerationRequest(ids, n, self._seed(node, "ask", ids), sampling)
            for node, ids, n in ((node, self._prompt(text), n) for node, text, n in wants)
        ]
        return await self.budget.generate_all(self._engine, requests)

    def question(self, node: Node) -> str:
        """The question in the words that a node's solution goes on from."""
        return next((step.question for step in reversed(node.path()) if step.question), self._problem.question)

    def _request(self, node: Node, n: int, sampling: SamplingParams, longest: int, stream: str) -> GenerationRequest:
        written = node.token_ids_so_far()
        ids = self._prompt(self.question(node)) + written
        room = self._params.sampling.max_tokens - len(written)
        limited = replace(sampling, max_tokens=min(longest, room))
        return GenerationRequest(ids, n, self._seed(node, stream, ids), limited)

    def _prompt(self, text: str) -> tuple[int, ...]:
        if text not in self._prompts:
            self._prompts[text] = self._engine.format.prompt_ids(text)
        return self._prompts[text]

    def _seed(self, node: Node, stream: str, ids: Sequence[int]) -> int:
        node.rounds += 1
        return derive_seed(self._params.seed, "search", stream, self._problem.id, node.rounds, *ids)

    def _next(self, parent: Node, completion: Completion, action: str) -> Node:
        """The child that a completion of one step makes."""
        text = self._separator.join(self._engine.format.split_text(completion.text))
        child = Node(parent, text, completion.token_ids, completion.logprobs, action)
        child.finish = None if completion.stop_reason == self._separator else completion.finish_reason
        child.weight_version = completion.weight_version
        return self.attach(child, len(completion.token_ids))

    def _remainder(self, node: Node, completion: Completion, action: str) -> Node:
        """The last of the nodes that a completion to the end makes."""
        ids, logprobs = completion.token_ids, completion.logprobs
        steps = self._engine.format.split_ids(ids, logprobs) or (Step("", ids, logprobs),)
        paid = 0
        for step in steps:
            child = Node(node, step.text, step.token_ids, step.logprobs, action)
            child.finish = completion.finish_reason if step is steps[-1] else None
            child.weight_version = completion.weight_version
            node = self.attach(child, len(step.token_ids))
            paid += len(step.token_ids)
            if not node.open:
                break
        node.tokens += len(ids) - paid  # what came behind a limit is paid for, and not kept
        return node

    def attach(self, child: Node, tokens: int) -> Node:
        """Put a sample into the tree: as one more of the node that its parent has already for it, or as a new one.

        Args:
            child: has its parent, and is not in the tree.
            tokens: generated for the sample.
        """
        assert child.parent is not None
        sampling = self._params.sampling
        if child.open and (
            child.depth >= self._params.max_steps or len(child.token_ids_so_far()) >= sampling.max_tokens
        ):
            child.finish = "length"
        known = next((sibling for sibling in child.parent.children if _same(sibling, child)), None)
        if known is None:
            known = child
            known.index = len(self.nodes)
            child.parent.children.append(child)
            self.nodes.append(child)
        known.count += 1
        known.tokens += tokens
        self._secured = self._secured or known.finish == "stop"
        return known

    # -- scoring ----------------------------------------------------------------------------------------------------

    async def score(self, nodes: Sequence[Node]) -> None:
        """Score nodes that are not dead ends, all in one round and every distinct solution once.

        Raises:
            ConfigError: there is no PRM.
        """
        if self._scorer is None:
            raise ConfigError("prm", None, "a PRM: this search is guided by its scores")
        alive = [node for node in nodes if node.finish in (None, "stop")]
        new = [texts for texts in dict.fromkeys(node.texts() for node in alive) if texts not in self._scores]
        replies = await self.budget.score_all(self._scorer, self._problem.question, new)
        self._scores.update(zip(new, (reply.values for reply in replies), strict=True))
        for node in alive:
            worded = [step for step in node.line() if step.text]
            for step, score in zip(worded, self._scores[node.texts()], strict=True):
                step.score = score

    def value(self, node: Node, how: Aggregation) -> float:
        """A scored node's aggregated score, in [0, 1]; 0 for a dead end and for a solution without steps."""
        values = self._scores[node.texts()] if node.finish in (None, "stop") else ()
        return aggregate(values, how) if values else 0.0

    # -- harvesting -------------------------------------------------------------------------------------------------

    def finished(self) -> list[Node]:
        """Nodes that end a solution, each as often as it was drawn, in order of creation."""
        return [node for node in self.nodes if node.finish == "stop" for _ in range(node.count)]

    async def harvest(self, ends: Sequence[Node]) -> SearchResult:
        """The end of the search: the traces that end with these nodes, finished ones first, and the whole tree.

        When none of them is finished, the one that was completed with the last tokens comes in front. With no node at
        all the longest solution so far is the one trace, cut off. Finished ones that are not scored yet are, if there
        is a PRM.
        """
        written = [node for node in ends if node is not self.root]
        if self._spare is not None and all(node.finish != "stop" for node in written):
            written.insert(0, self._spare)
        if not written and len(self.nodes) > 1:
            written = [max(self.nodes, key=lambda node: node.depth)]
        ordered = sorted(written, key=lambda node: node.finish != "stop")
        traced = list(dict.fromkeys(ordered))
        if self._scorer is not None:
            await self.score([node for node in traced if node.finish == "stop"])
        traces = {node: self._trace(node) for node in traced}
        kept = {node for end in traced for node in end.path()}
        return SearchResult(
            tuple(traces[node] for node in ordered), tuple(_record(node, node in kept) for node in self.nodes)
        )

    def _trace(self, node: Node) -> Trace:
        """The solution that ends with a node; cut off ("length") when the node is open."""
        values = self._scores.get(node.texts())
        return Trace(
            self._problem.id,
            solution_steps(node.line()),
            node.finish or "length",
            scores=StepScores(values) if values else None,
            weight_version=node.weight_version,
        )


def _same(node: Node, other: Node) -> bool:
    """Do two children of one node stand for the same step?"""
    return (node.text, node.question, node.action, node.finish) == (
        other.text,
        other.question,
        other.action,
        other.finish,
    )


def _record(node: Node, kept: bool) -> TreeNode:
    return TreeNode(
        parent=None if node.parent is None else node.parent.index,
        depth=node.depth,
        text=node.text if node.question is None else node.question,
        action=node.action,
        count=node.count,
        tokens=node.tokens,
        finish=node.finish,
        score=node.score,
        value=node.value,
        visits=node.visits,
        prior=node.prior,
        kept=kept,
    )
