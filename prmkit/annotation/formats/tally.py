"""What writers of foreign formats share: labels made hard, unlabelled steps joined to the next, and counts of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import step_verdicts

__all__ = ["Rated", "Tally"]

Rated = list[tuple[str, float | None]]
"""Steps as (text, value); None where there is no value."""


@dataclass(slots=True)
class Tally:
    """Counts what a format cannot hold.

    Attributes:
        threshold: a value above it is a right step, in formats that know right and wrong only.
        hardened: values strictly between 0 and 1 that became right or wrong.
        joined_steps: unlabelled steps that became the beginning of the next labelled one.
        dropped_steps: unlabelled steps behind the last labelled one that were left out.
        dropped_records: records without a labelled step that were left out.
        repeated_records: records left out since they, or a continuation of theirs, stand in the line already.
    """

    threshold: float = 0.0
    hardened: int = 0
    joined_steps: int = 0
    dropped_steps: int = 0
    dropped_records: int = 0
    repeated_records: int = 0

    def hard(self, record: StepLabels, infer: bool = False) -> Rated:
        """Every step as right (1.0), wrong (0.0) or not labelled (None).

        With `infer`, a step without a value is right when a later one is; see `step_verdicts`.
        """
        self.hardened += sum(value is not None and 0.0 < value < 1.0 for value in record.values)
        verdicts: Sequence[bool | None] = [None if value is None else value > self.threshold for value in record.values]
        if infer:
            verdicts = step_verdicts(record.values, self.threshold)
        return [
            (text, None if right is None else float(right)) for text, right in zip(record.steps, verdicts, strict=True)
        ]

    def labelled(self, rated: Rated, joiner: str) -> tuple[list[tuple[str, float]], str]:
        """Steps as (text, value), unlabelled ones joined to the next, and the text behind the last labelled one."""
        steps: list[tuple[str, float]] = []
        open_texts: list[str] = []
        for text, value in rated:
            open_texts.append(text)
            if value is not None:
                steps.append((joiner.join(open_texts), value))
                self.joined_steps += len(open_texts) - 1
                open_texts = []
        return steps, joiner.join(open_texts)
