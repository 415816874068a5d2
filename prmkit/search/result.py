"""What a search of one problem gives back: its traces, and the tree that it explored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from prmkit.protocols import Engine, StepScorer
from prmkit.records import FinishReason, Problem, Trace
from prmkit.search.budget import Budget

__all__ = ["SearchMethod", "SearchResult", "TreeNode"]


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A distinct step that was tried behind its parent; a record that goes into JSON.

    Attributes:
        parent: index of the node it goes on from; None for the root, which is node 0 and stands for the question.
        depth: steps from the root, 0 there.
        text: the step; empty where nothing but blanks or the end of sequence was written.
        action: how it was written: "step", "rollout" (whole remainder), "lookahead", or an action of rStar.
        count: samples that wrote it.
        tokens: tokens generated for all of them. The tokens of a tree add up to those of its search.
        finish: as in Trace; None for a step that others may follow.
        score: the PRM's probability that the step is right; None when not scored.
        value: what the search ranked it by, or the mean of what was backed up through it; None when it had none.
        visits: simulations that went through it.
        prior: probability of the step among its siblings; None when the search uses none.
        kept: a trace of the result goes through it.
    """

    parent: int | None = None
    depth: int = 0
    text: str = ""
    action: str = "step"
    count: int = 1
    tokens: int = 0
    finish: FinishReason | None = None
    score: float | None = None
    value: float | None = None
    visits: int = 0
    prior: float | None = None
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """Fields that differ from their defaults: a tree has many nodes."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value != field.default}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TreeNode:
        """Inverse of `to_json`. TypeError for an unknown field."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The end of a search.

    Attributes:
        traces: candidates for the answer, finished ones first; a trace that several samples wrote is there as often.
            Those that a limit cut off have finish "length" and may not vote.
        nodes: all that was tried, parents before children; empty for methods whose traces already show it all.
    """

    traces: tuple[Trace, ...]
    nodes: tuple[TreeNode, ...] = ()


class SearchMethod(Protocol):
    """A search with its parameters bound, as `prmkit.search.methods.make_method` gives it."""

    async def __call__(
        self, problem: Problem, engine: Engine, scorer: StepScorer | None, *, budget: Budget
    ) -> SearchResult: ...
