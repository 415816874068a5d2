"""The step-label record: one solution of one problem, with a Monte-Carlo or human value for each of its steps.

One record is one JSON line. Everything that labels steps writes it, every reader of another format converts into it,
and PRM training reads nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from prmkit.errors import DataError
from prmkit.json_objects import located, shown

__all__ = ["RECORD_SCHEMA", "StepLabels", "question_id"]

RECORD_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StepLabels:
    """Labels of the steps of one solution.

    Attributes:
        problem_id: the problem it solves; the same for all solutions of a problem, so that splits can go by problem.
        question: text shown to the policy, without any prompt template.
        answer: gold final answer; None when unknown.
        steps: [S] texts in order, without separators or step tags.
        values: [S] value in [0, 1] of the prefix that ends with each step: the share of rollouts from there that end
            right, or a human verdict (1 right, 0 wrong). None where not estimated.
        rollouts: [S] rollouts behind each value; 0 where there were none.
        source: what made it, e.g. "math-shepherd" or "omegaprm".
        policy: what wrote the steps, e.g. a model's name; "" when unknown.
        tree: identity of the search tree it was cut from, any JSON value; None when there was none.
        separator: text that the policy puts behind each step; None when unknown. Data with another separator than
            the step format's is refused by training.
        correct: is the solution's final answer right? None when unknown, or when it has none.
    """

    problem_id: str
    question: str
    answer: str | None
    steps: tuple[str, ...]
    values: tuple[float | None, ...]
    rollouts: tuple[int, ...]
    source: str
    policy: str
    tree: Any = None
    separator: str | None = None
    correct: bool | None = None

    def __post_init__(self) -> None:
        for name in ("problem_id", "question", "source", "policy"):
            _check_text(name, getattr(self, name))
        for name in ("answer", "separator"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        for number, step in enumerate(self.steps):
            _check_text(f"steps[{number}]", step)
        for name, items in (("values", self.values), ("rollouts", self.rollouts)):
            if len(items) != len(self.steps):
                raise DataError(f"{name}: got {len(items)} entries for {len(self.steps)} steps; accepted: one a step")
        self._check_numbers()
        if self.correct is not None and not isinstance(self.correct, bool):
            raise DataError(f"correct: got {shown(self.correct)}; accepted: true, false or null")
        if not _is_plain(self.tree, 32):
            raise DataError(f"tree: got {shown(self.tree)}; accepted: a JSON value of at most 32 levels")

    def _check_numbers(self) -> None:
        for number, value in enumerate(self.values):
            if value is not None and not (_is_number(value) and 0.0 <= value <= 1.0):
                raise DataError(f"values[{number}]: got {shown(value)}; accepted: a number in [0, 1], or null")
        for number, count in enumerate(self.rollouts):
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise DataError(f"rollouts[{number}]: got {shown(count)}; accepted: an integer of at least 0")

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, `schema` first."""
        return {
            "schema": RECORD_SCHEMA,
            "problem_id": self.problem_id,
            "question": self.question,
            "answer": self.answer,
            "steps": list(self.steps),
            "values": list(self.values),
            "rollouts": list(self.rollouts),
            "source": self.source,
            "policy": self.policy,
            "tree": self.tree,
            "separator": self.separator,
            "correct": self.correct,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "record") -> StepLabels:
        """Inverse of `to_json`. Fields it does not know are left out; `tree`, `separator`, `correct` may be missing.

        Args:
            value: a JSON object.
            where: file:line, put before the message of an error.

        Raises:
            DataError: another schema, a missing field, or a value that the record refuses.
        """
        schema = value.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise DataError(f"{where}: schema: got {shown(schema)}; accepted: {RECORD_SCHEMA}")
        if schema > RECORD_SCHEMA:
            raise DataError(
                f"{where}: schema: got {schema}; this version of prmkit reads up to {RECORD_SCHEMA}. Update prmkit."
            )
        fields = dict.fromkeys(("tree", "separator", "correct"))
        for name in ("problem_id", "question", "answer", "source", "policy"):
            fields[name] = _required(value, name, where)
        for name in ("steps", "values", "rollouts"):
            items = _required(value, name, where)
            if not isinstance(items, Sequence) or isinstance(items, str):
                raise DataError(f"{where}: {name}: got {shown(items)}; accepted: a list")
            fields[name] = tuple(items)
        fields.update({name: value[name] for name in ("tree", "separator", "correct") if name in value})
        with located(where):
            return cls(**fields)  # type: ignore[arg-type]


def question_id(question: str) -> str:
    """A problem id for data that brings none: a hash of the question, so that equal questions share it."""
    return "q" + hashlib.blake2b(question.strip().encode(), digest_size=8).hexdigest()


def _required(value: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in value:
        raise DataError(f"{where}: {name}: missing; a step-label record has it")
    return value[name]


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name}: got {shown(value)}; accepted: a string")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_plain(value: object, levels: int) -> bool:
    """True for a finite JSON value of so many levels."""
    if value is None or isinstance(value, str | int):
        return True
    if isinstance(value, float):
        return isfinite(value)
    if levels > 0 and isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item, levels - 1) for name, item in value.items())
    return levels > 0 and isinstance(value, list | tuple) and all(_is_plain(item, levels - 1) for item in value)
