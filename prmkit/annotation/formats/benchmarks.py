"""Benchmarks of first errors: ProcessBench (arXiv 2412.06559) and PRMBench (arXiv 2501.03124).

Steps before the first error are right, the wrong ones wrong. Later steps have no value: a value is that of a prefix,
and the prefixes that hold an error are not judged there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prmkit.annotation.formats.fields import get, texts
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["parse_prmbench", "parse_processbench"]


def parse_processbench(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`problem`, `steps` and `label`: the first wrong step, counted from 0, or -1 for none."""
    steps, first = texts(record, "steps", where), get(record, "label", int, where)
    if not -1 <= first < len(steps):
        raise DataError(f"{where}: label: got {first}; accepted: -1 for no error, or a step in 0..{len(steps) - 1}")
    correct = record.get("final_answer_correct")
    question = get(record, "problem", str, where)
    return [_record(question, steps, [] if first < 0 else [first], "processbench", correct)]


def parse_prmbench(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`modified_question`, `modified_process` and `error_steps`: the wrong steps, counted from 1; empty for none.

    The original process is not read: it was not judged.
    """
    steps = texts(record, "modified_process", where)
    wrong = get(record, "error_steps", list, where)
    for number in wrong:
        if type(number) is not int or not 1 <= number <= len(steps):
            raise DataError(f"{where}: error_steps: got {shown(number)}; accepted: steps in 1..{len(steps)}")
    question = get(record, "modified_question" if "modified_question" in record else "question", str, where)
    return [_record(question, steps, [number - 1 for number in wrong], "prmbench", None)]


def _record(question: str, steps: Sequence[str], wrong: Sequence[int], source: str, correct: Any) -> StepLabels:
    """The record of a solution whose wrong steps are known, by index."""
    first = min(wrong, default=len(steps))
    return StepLabels(
        problem_id=question_id(question),
        question=question.strip(),
        answer=None,
        steps=tuple(step.strip() for step in steps),
        values=tuple(1.0 if i < first else 0.0 if i in wrong else None for i in range(len(steps))),
        rollouts=(0,) * len(steps),
        source=source,
        policy="",
        correct=correct,
    )
