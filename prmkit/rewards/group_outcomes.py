"""What the outcomes of groups can teach: a group whose solutions are all right, or all wrong, has no outcome signal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["GroupCounts", "count_groups"]


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """Groups by their outcomes. Adds up over processes.

    Attributes:
        judged: groups with at least one solution that the verifier judged.
        all_wrong, all_right: of those, groups whose judged solutions are all wrong, and all right.
    """

    judged: int = 0
    all_wrong: int = 0
    all_right: int = 0

    def __add__(self, other: GroupCounts) -> GroupCounts:
        return GroupCounts(
            self.judged + other.judged, self.all_wrong + other.all_wrong, self.all_right + other.all_right
        )


def count_groups(groups: Iterable[Sequence[bool]]) -> GroupCounts:
    """Count groups of verdicts, True for right; an empty group was not judged."""
    judged = [verdicts for verdicts in groups if verdicts]
    return GroupCounts(
        len(judged), sum(not any(verdicts) for verdicts in judged), sum(all(verdicts) for verdicts in judged)
    )
