"""The tree of one problem while a search grows it: nodes, and the solution that leads to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prmkit.records import FinishReason, Step

__all__ = ["Node", "back_up", "descend", "distinct", "solution_steps"]

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Node:
    """A step behind its parent's steps; the root has none. Compared by identity.

    Attributes:
        parent: None at the root.
        text: the step without its separator; empty where nothing but blanks or the end of sequence was written.
        token_ids: how it stands in the prefix of what follows.
        logprobs: of token_ids; empty when unknown.
        action: see TreeNode.
        finish: None while it may be gone on from.
        weight_version: of the policy that wrote it.
        question: the question that what follows is shown, when it was put in other words here.
        replaces: it stands in place of its parent's step.
        children: in order of creation, those of all actions.
        index: place in the tree, in order of creation.
        rounds: how often it was gone on from; every round has its own randomness.
        count, tokens, score, value, visits, prior: see TreeNode.
    """

    parent: Node | None = None
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    action: str = "step"
    finish: FinishReason | None = None
    weight_version: int = 0
    question: str | None = None
    replaces: bool = False
    children: list[Node] = field(default_factory=list)
    index: int = 0
    rounds: int = 0
    count: int = 0
    tokens: int = 0
    score: float | None = None
    value: float | None = None
    visits: int = 0
    prior: float | None = None
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.depth = 0 if self.parent is None else self.parent.depth + 1

    @property
    def open(self) -> bool:
        """May it be gone on from?"""
        return self.finish is None

    def path(self) -> list[Node]:
        """Nodes from the root to this one, both included."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def line(self) -> list[Node]:
        """Nodes that make up the solution so far: the path less the root, replaced steps and other wordings."""
        nodes: list[Node] = []
        for node in self.path()[1:]:
            if node.replaces:
                nodes.pop()
            if node.question is None:
                nodes.append(node)
        return nodes

    def token_ids_so_far(self) -> tuple[int, ...]:
        """Token ids of the solution so far, behind the prompt."""
        return tuple(token for node in self.line() for token in node.token_ids)

    def texts(self) -> tuple[str, ...]:
        """Texts of the solution's steps so far, blank ones left out."""
        return tuple(node.text for node in self.line() if node.text)


def solution_steps(line: list[Node]) -> tuple[Step, ...]:
    """Steps of a line as `BoundStepFormat.split_ids` would give them: blanks join the next step, or else the last."""
    steps: list[Step] = []
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    for node in line:
        ids, logprobs = ids + node.token_ids, logprobs + node.logprobs
        if node.text:
            steps.append(_step(node.text, ids, logprobs))
            ids, logprobs = (), ()
    if ids and steps:
        last = steps[-1]
        steps[-1] = _step(last.text, last.token_ids + ids, last.logprobs + logprobs)
    return tuple(steps)


def _step(text: str, ids: tuple[int, ...], logprobs: tuple[float, ...]) -> Step:
    """A step; log-probabilities that are known for a part of it only are left out."""
    return Step(text, ids, logprobs if len(logprobs) == len(ids) else ())


def distinct(samples: list[list[T]]) -> list[T]:
    """Every item of the lists once, in order of first appearance."""
    return list(dict.fromkeys(item for drawn in samples for item in drawn))


def descend(root: Node, branches: Mapping[Node, list[Node]], rank: Callable[[Node, Node], float]) -> Node:
    """The node without branches that is reached from the root by the best-ranked branch at every node.

    Args:
        root: where to begin.
        branches: nodes to choose among behind a node.
        rank: of (node, branch); among equals the first branch is taken.
    """
    node = root
    while branches.get(node):
        parent = node
        node = max(branches[parent], key=lambda branch: rank(parent, branch))
    return node


def back_up(leaf: Node, value: float) -> None:
    """Count a simulation on the whole path to a leaf, whose nodes' values become the means of what was backed up."""
    for node in leaf.path():
        node.visits += 1
        before = 0.0 if node.value is None or node.visits == 1 else node.value
        node.value = before + (value - before) / node.visits
