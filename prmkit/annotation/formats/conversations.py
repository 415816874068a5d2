"""RLHFlow's conversations: the user gives a step, the assistant's answer is its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prmkit.annotation.formats.fields import get, label_values, without_number
from prmkit.annotation.formats.math_shepherd import split_question
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["parse"]

_TAG = "ки"


def parse(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """`conversations`: turns of user and assistant, the question before the first step; one record.

    A last step without an answer has no value. A system message before the first turn is left out.
    """
    field = "conversations" if "conversations" in record else "messages"
    turns = [_turn(turn, f"{where}: {field}[{i}]") for i, turn in enumerate(get(record, field, list, where))]
    if turns and turns[0][0] == "system":
        turns = turns[1:]
    for number, (role, _) in enumerate(turns):
        if role != ("user", "assistant")[number % 2]:
            raise DataError(f"{where}: {field}: got a turn of {shown(role)}; accepted: user and assistant by turns")
    pieces = [content.strip().removesuffix(_TAG) for _, content in turns[::2]]
    if not pieces:
        raise DataError(f"{where}: {field}: got no turn; accepted: a step of the user, its label by the assistant, ...")
    question, pieces[0] = split_question(pieces[0], f"{where}: {field}[0]")
    labels: list[str | None] = [content for _, content in turns[1::2]]
    labels += [None] * (len(pieces) - len(labels))
    return [
        StepLabels(
            problem_id=question_id(question),
            question=question,
            answer=None,
            steps=tuple(without_number(piece) for piece in pieces),
            values=label_values(labels, len(pieces), f"{where}: {field}: labels"),
            rollouts=(0,) * len(pieces),
            source="rlhflow",
            policy="",
        )
    ]


def _turn(turn: Any, where: str) -> tuple[str, str]:
    """(role, content) of a turn."""
    return get(turn, "role", str, where), get(turn, "content", str, where)
