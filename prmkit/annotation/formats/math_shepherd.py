"""Math-Shepherd (arXiv 2312.08935): a text with `ки` after every step, and the same text with + or - in its place;
and OpenRLHF's form of it, with a list of labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from prmkit.annotation.formats.fields import get, label_values, without_number
from prmkit.annotation.formats.tally import Tally
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError

__all__ = ["lines", "parse", "parse_openrlhf", "split_question"]

_TAG = "ки"
_FIRST_STEP = re.compile(r"(?:^|(?<=\s))Step\s*1\s*:", re.IGNORECASE)


def parse(record: Mapping[str, Any], where: str, strip_prefix: bool = True) -> list[StepLabels]:
    """The record of one line: `input`, and `label` with + or - in the place of each tag."""
    text = get(record, "input", str, where)
    values = _tag_values(text, get(record, "label", str, where), where)
    found = _record(text, values, "math-shepherd", where, strip_prefix)
    last = found.values[-1] if found.values else None
    return [replace(found, correct=None if last is None else last > 0)]


def parse_openrlhf(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """OpenRLHF's form: `input`, and `value`, `label` or `labels` with one entry a tag."""
    text = get(record, "input", str, where)
    name = next((name for name in ("value", "label", "labels") if name in record), "value")
    values = label_values(record.get(name), text.count(_TAG), f"{where}: {name}")
    return [_record(text, values, "openrlhf", where)]


def _record(
    text: str, tag_values: Iterable[float | None], source: str, where: str, strip_prefix: bool = True
) -> StepLabels:
    """The record of a text with tags and their values.

    The question is what stands before "Step 1:". Two slips of the published file are read for what they mean: a tag
    at the end of the question, before "Step 1:", labels nothing and is passed over; a first step without "Step 1:"
    begins after the question mark, if there is one.
    """
    pieces = text.split(_TAG)
    if len(pieces) < 2:
        raise DataError(f"{where}: input: got no {_TAG!r}; accepted: text with {_TAG!r} after every step")
    values = list(tag_values)
    if not _FIRST_STEP.search(pieces[0]) and _FIRST_STEP.match(pieces[1].lstrip()):
        question = pieces.pop(0).strip()
        values.pop(0)
    else:
        question, pieces[0] = split_question(pieces[0], f"{where}: input")
    if pieces[-1].strip():
        values.append(None)  # text behind the last tag: a step that nobody labelled
    else:
        pieces.pop()
    steps = tuple(without_number(piece) if strip_prefix else piece.strip() for piece in pieces)
    return StepLabels(
        problem_id=question_id(question),
        question=question,
        answer=None,
        steps=steps,
        values=tuple(values),
        rollouts=(0,) * len(steps),
        source=source,
        policy="",
    )


def split_question(opening: str, where: str) -> tuple[str, str]:
    """Question and first step. A question may itself speak of a "Step 1:": the last one before the first tag counts."""
    starts = [match.start() for match in _FIRST_STEP.finditer(opening)]
    if not starts and "?" in opening:
        starts = [opening.rindex("?") + 1]
    if not starts or not opening[starts[-1] :].strip():
        raise DataError(f"{where}: no 'Step 1:' before the first label; it ends the question")
    return opening[: starts[-1]].strip(), opening[starts[-1] :]


def _tag_values(text: str, label: str, where: str) -> Iterator[float]:
    """1.0 or 0.0 for every tag: `label` is `text` with + or - in the place of each tag."""
    place = 0
    for piece in text.split(_TAG)[:-1]:
        sign = label[place + len(piece) : place + len(piece) + 1]
        if label[place : place + len(piece)] != piece or sign not in ("+", "-"):
            raise DataError(
                f"{where}: label: differs from input at character {place}; accepted: the input with + or - in "
                f"place of each {_TAG!r}"
            )
        yield float(sign == "+")
        place += len(piece) + 1


def lines(records: Iterable[StepLabels], tally: Tally) -> Iterator[dict[str, Any]]:
    """One line a record. DataError for a text that would be read back as another: one that holds the tag, say."""
    for number, record in enumerate(records, start=1):
        steps, rest = tally.labelled(tally.hard(record, infer=True), "\n")
        if not steps:
            tally.dropped_records += 1
            continue
        texts = [f"Step {i}: {text} " for i, (text, _) in enumerate(steps, start=1)]
        signs = ["+" if value > 0 else "-" for _, value in steps]
        behind = f"\nStep {len(steps) + 1}: {rest}" if rest else ""
        line = {
            "input": f"{record.question} " + "\n".join(text + _TAG for text in texts) + behind,
            "label": f"{record.question} "
            + "\n".join(text + sign for text, sign in zip(texts, signs, strict=True))
            + behind,
        }
        texts = [text for text, _ in steps] + [rest] * bool(rest)
        if not _reads_back(line, record.question, texts):
            raise DataError(
                f"record {number} ({record.problem_id}): math-shepherd cannot hold its text, which contains "
                f"{_TAG!r}, or a 'Step 1:' in its first step. Choose another format."
            )
        yield line


def _reads_back(line: Mapping[str, Any], question: str, texts: list[str]) -> bool:
    if any(_TAG in text for text in (question, *texts)):
        return False
    (again,) = parse(line, "record")
    return (again.question, list(again.steps)) == (question.strip(), [text.strip() for text in texts])
