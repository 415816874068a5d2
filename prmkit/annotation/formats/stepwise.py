"""Formats with a field for steps and one for labels: TRL's stepwise supervision, chains of thought, the texts with
`<extra_0>` of Qwen's PRMs; and the files that OpenR trains on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prmkit.annotation.formats.fields import get, label_values, strip_numbers, texts
from prmkit.annotation.formats.tally import Tally
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["lines", "parse_chain_of_thoughts", "parse_extra_0", "parse_openr", "parse_trl"]

_OPENR_TAGS = ("\n\n\n\n\n", "ки")


def parse_trl(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`prompt` (a text, or a conversation of one turn), `completions` and `labels`: one record.

    "Step i:" is taken off where every step begins so (`trl-lib/math_shepherd`).
    """
    prompt = record.get("prompt")
    question = _asked(prompt, where) if isinstance(prompt, list) else prompt
    return _listed(record, ("prompt", question), "completions", "trl", where)


def parse_chain_of_thoughts(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`question`, `chain_of_thoughts` and `labels` (1 and -1): one record."""
    return _listed(record, ("question", record.get("question")), "chain_of_thoughts", "chain-of-thoughts", where)


def parse_extra_0(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`query`, `response` (a list of steps) and `labels`: one record. Any `text` with the tags is not read."""
    return _listed(record, ("query", record.get("query")), "response", "extra-0", where)


def parse_openr(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`question`, `process` with a tag after every step, and `label` or `labels`: one a tag, or one alone."""
    process = get(record, "process", str, where)
    tag = next((tag for tag in _OPENR_TAGS if tag in process), None)
    if tag is None:
        raise DataError(f"{where}: process: got no step tag; accepted: text with 'ки' or five newlines after a step")
    pieces = process.split(tag)
    if not pieces[-1].strip():
        pieces.pop()
    name = "label" if "label" in record else "labels"
    values = label_values(record.get(name), len(pieces), f"{where}: {name}")
    return [_record(get(record, "question", str, where), strip_numbers(pieces), values, "openr")]


def _asked(conversation: list[Any], where: str) -> str:
    """The question of a conversation that has one turn; a system message before it is left out."""
    turns = [turn for turn in conversation if not (isinstance(turn, Mapping) and turn.get("role") == "system")]
    if len(turns) != 1 or not isinstance(turns[0], Mapping) or turns[0].get("role") != "user":
        raise DataError(f"{where}: prompt: got {shown(conversation)}; accepted: a text, or one message of role user")
    content: str = get(turns[0], "content", str, f"{where}: prompt")
    return content


def _listed(
    record: Mapping[str, Any], asked: tuple[str, Any], steps_field: str, source: str, where: str
) -> list[StepLabels]:
    name, question = asked
    steps = texts(record, steps_field, where)
    if not isinstance(question, str):
        raise DataError(f"{where}: {name}: got {shown(question)}; accepted: a string")
    values = label_values(record.get("labels"), len(steps), f"{where}: labels")
    return [_record(question, strip_numbers(steps), values, source)]


def _record(question: str, steps: Sequence[str], values: Sequence[float | None], source: str) -> StepLabels:
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
