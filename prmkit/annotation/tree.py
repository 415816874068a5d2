"""The tree that a search for first errors leaves behind: which prefixes were estimated, and what was searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["SearchTree", "SearchedSolution", "TreeState", "build_states"]

TREE_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TreeState:
    """A prefix with a Monte-Carlo value.

    Attributes:
        parent: index of the longest other state that it continues; None for the bare question.
        steps: texts from there on.
        right, rollouts: right ones among the rollouts behind the value; the value is their ratio.
        inherited: those of the rollouts that were sampled from shorter prefixes.
        visits: times one of its rollouts was picked for a search.
    """

    parent: int | None
    steps: tuple[str, ...]
    right: int
    rollouts: int
    inherited: int
    visits: int


@dataclass(frozen=True, slots=True)
class SearchedSolution:
    """A wrong solution that was searched for its first error.

    Attributes:
        state: index of the state it was sampled from.
        steps: texts of the whole solution.
        first_error: index of its first wrong step; None when the search ran out of rollouts.
    """

    state: int
    steps: tuple[str, ...]
    first_error: int | None


@dataclass(frozen=True, slots=True)
class SearchTree:
    """All of one problem.

    Attributes:
        problem_id, question, answer: of the problem.
        states: the bare question first, parents before their children.
        solutions: in the order searched.
        dropped: why the problem was left out: its first rollouts solved it "always" or "never". None when it was not.
    """

    problem_id: str
    question: str
    answer: str
    states: tuple[TreeState, ...]
    solutions: tuple[SearchedSolution, ...]
    dropped: Literal["always", "never"] | None = None

    def to_json(self) -> dict[str, Any]:
        """One JSON line."""
        return {"schema": TREE_SCHEMA, **asdict(self)}


def build_states(
    found: Mapping[tuple[int, ...], TreeState], texts: Mapping[tuple[int, ...], Sequence[str]]
) -> tuple[tuple[TreeState, ...], dict[tuple[int, ...], int]]:
    """States by token ids put into a tree: shortest first, each under the longest one that it continues.

    Args:
        found: token ids -> state with neither parent nor steps; the empty prefix is among them.
        texts: token ids -> texts of all its steps.

    Returns:
        The states, and the index of each by its token ids.
    """
    order = sorted(found, key=len)  # stable: equal lengths stay in the order found
    index = {ids: number for number, ids in enumerate(order)}
    states: list[TreeState] = []
    for ids in order:
        parent = next((p for p in reversed(order[: index[ids]]) if len(p) < len(ids) and ids[: len(p)] == p), None)
        state = found[ids]
        states.append(
            TreeState(
                None if parent is None else index[parent],
                tuple(texts[ids][0 if parent is None else len(texts[parent]) :]),
                state.right,
                state.rollouts,
                state.inherited,
                state.visits,
            )
        )
    return tuple(states), index
