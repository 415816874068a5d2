"""Flat formats of published training sets: TRL's stepwise supervision, and the files that OpenR trains on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prmkit.annotation.formats.fields import fraction, get, strip_numbers
from prmkit.annotation.formats.tally import Tally
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError

__all__ = ["lines", "parse_openr", "parse_trl"]

_OPENR_TAGS = ("\n\n\n\n\n", "ки")


def parse_trl(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`prompt`, `completions` (texts) and `labels` (booleans, or numbers in [0, 1]): one record.

    "Step i:" is taken off where every step begins so (`trl-lib/math_shepherd`).
    """
    steps = get(record, "completions", list, where)
    for number, step in enumerate(steps):
        if not isinstance(step, str):
            raise DataError(f"{where}: completions[{number}]: got {step!r}; accepted: a string")
    values = _values(get(record, "labels", list, where), f"{where}: labels")
    return [_record(get(record, "prompt", str, where), strip_numbers(steps), values, "trl", where)]


def parse_openr(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`question`, `process` with a tag behind every step, and one `label` a tag: "+" or "-", or a number in [0, 1]."""
    process = get(record, "process", str, where)
    tag = next((tag for tag in _OPENR_TAGS if tag in process), None)
    if tag is None:
        raise DataError(f"{where}: process: got no step tag; accepted: text with 'ки' or five newlines behind a step")
    pieces = process.split(tag)
    if not pieces[-1].strip():
        pieces.pop()
    signs = {"+": 1.0, "-": 0.0}
    name = "label" if "label" in record else "labels"
    labels = [signs.get(label, label) if isinstance(label, str) else label for label in get(record, name, list, where)]
    values = _values(labels, f"{where}: {name}")
    return [_record(get(record, "question", str, where), strip_numbers(pieces), values, "openr", where)]


def _values(labels: Sequence[Any], where: str) -> list[float | None]:
    return [
        None if label is None else fraction(int(label) if isinstance(label, bool) else label, f"{where}[{number}]")
        for number, label in enumerate(labels)
    ]


def _record(question: str, steps: Sequence[str], values: Sequence[float | None], source: str, where: str) -> StepLabels:
    if len(steps) != len(values):
        raise DataError(f"{where}: got {len(values)} labels for {len(steps)} steps; accepted: one a step")
    return StepLabels(
        problem_id=question_id(question),
        question=question.strip(),
        answer=None,
        steps=tuple(steps),
        values=tuple(values),
        rollouts=(0,) * len(steps),
        source=source,
        policy="",
    )


def lines(records: Iterable[StepLabels], tally: Tally) -> Iterator[dict[str, Any]]:
    """TRL's form, one line a record, labels as booleans: its trainer cuts fractions down to 0."""
    for record in records:
        steps, rest = tally.labelled(tally.hard(record, infer=True), "\n")
        if not steps:
            tally.dropped_records += 1
            continue
        tally.dropped_steps += bool(rest)
        yield {
            "prompt": record.question,
            "completions": [text for text, _ in steps],
            "labels": [value > 0 for _, value in steps],
        }
