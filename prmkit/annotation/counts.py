"""What every annotation method reports beside its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from prmkit.annotation.records import StepLabels

if TYPE_CHECKING:
    from prmkit.annotation.tree import SearchTree

__all__ = ["AnnotationCounts", "ProblemLabels", "most_frequent"]


@dataclass(frozen=True, slots=True)
class AnnotationCounts:
    """How labels came about; adds up with `+`. Tokens and calls are the budget's to count.

    Attributes:
        problems: problems worked on, failed ones included.
        failed: problems that failed.
        solved: problems that some solution got right.
        solutions: solutions sampled from the bare question; `right` of them are right, `cut_off` did not finish.
        records: solutions labelled.
        values: steps with a value.
        labels: distinct prefixes that end before the solution does and whose label is known, from a value of their own
            or from that of a longer prefix.
        prefixes: distinct prefixes estimated by rollouts.
        rollouts: rollouts sampled from them; `inherited` more were taken over from shorter prefixes.
        searches: binary searches; `repeats` more were left out because their outcome was known.
        answered: solutions and rollouts, of those sampled, that have a final answer.
    """

    problems: int = 0
    failed: int = 0
    solved: int = 0
    solutions: int = 0
    right: int = 0
    cut_off: int = 0
    records: int = 0
    values: int = 0
    labels: int = 0
    prefixes: int = 0
    rollouts: int = 0
    inherited: int = 0
    searches: int = 0
    repeats: int = 0
    answered: int = 0

    def __add__(self, other: AnnotationCounts) -> AnnotationCounts:
        return AnnotationCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class ProblemLabels:
    """Records of one problem, wrong solutions first, how they came about, and the search tree where there is one."""

    records: tuple[StepLabels, ...]
    counts: AnnotationCounts
    tree: SearchTree | None = None


def most_frequent(
    solutions: Iterable[tuple[str, ...]], among: Sequence[tuple[str, ...]], limit: int | None
) -> list[tuple[str, ...]]:
    """Distinct non-empty solutions, those that occur most often among all sampled ones first, then by appearance.

    A solution that is right by luck (errors that cancel) is seldom sampled twice.

    Args:
        solutions: steps of each.
        among: steps of all that were sampled.
        limit: how many; None gives all.
    """
    often = Counter(among)
    distinct = [steps for steps in dict.fromkeys(solutions) if steps]
    return sorted(distinct, key=lambda steps: -often[steps])[:limit]
