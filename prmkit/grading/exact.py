"""Grading by equality of text, for tasks whose answers have one spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prmkit.records import Grade

__all__ = ["ExactGrader"]


class ExactGrader:
    """Answers are equal when their texts are, surrounding space aside.

    Args:
        extractor: final answer of a whole solution text, None when there is none.
    """

    def __init__(self, extractor: Callable[[str], str | None]) -> None:
        self._extractor = extractor

    def extract(self, text: str) -> str | None:
        return self._extractor(text)

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        return [Grade(answer is not None and answer.strip() == gold.strip()) for answer, gold in pairs]

    def group(self, answers: Sequence[str | None]) -> list[int]:
        numbers: dict[str, int] = {}
        return [-1 if answer is None else numbers.setdefault(answer.strip(), len(numbers)) for answer in answers]
