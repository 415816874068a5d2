"""Fields of foreign JSON objects, taken out with errors that name place, field and value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["fraction", "get", "label_values", "optional_text", "strip_numbers", "texts", "without_number"]

_NUMBERED = re.compile(r"\s*Step\s*:?\s*(\d+)\s*:", re.IGNORECASE)
_WORDS = {"str": "a string", "list": "a list", "dict": "an object", "int": "an integer"}
_SIGNS = {"+": 1.0, "-": 0.0}


def get(record: Any, name: str, kind: type, where: str) -> Any:
    """The field `name`, of type `kind` (str, list, dict or int); DataError otherwise."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: got {shown(record)}; accepted: an object")
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{where}: {name}: got {shown(value)}; accepted: {_WORDS[kind.__name__]}")
    return value


def texts(record: Any, name: str, where: str) -> list[str]:
    """A field that is a list of strings, or of messages with such a `content`; DataError otherwise."""
    found = []
    for number, item in enumerate(get(record, name, list, where)):
        text = item.get("content") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise DataError(f"{where}: {name}[{number}]: got {shown(item)}; accepted: a string")
        found.append(text)
    return found


def optional_text(record: Mapping[str, Any], name: str, where: str) -> str | None:
    """A field that may be missing or null: a string, or a number as one; DataError otherwise."""
    value = record.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise DataError(f"{where}: {name}: got {shown(value)}; accepted: a string, a number or null")
    return str(value)


def fraction(value: Any, where: str) -> float:
    """A number in [0, 1]; DataError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise DataError(f"{where}: got {shown(value)}; accepted: a number in [0, 1]")
    return float(value)


def label_values(labels: Any, count: int, where: str) -> tuple[float | None, ...]:
    """Values of `count` steps from their labels: a list, or one label alone for one step.

    A label is true or false, "+" or "-", a number in [0, 1], 1 or -1, or null. In a record with -1 all others are 1 or
    null: a 0 beside it may be read as neutral or as wrong, and is refused.
    """
    listed = labels if isinstance(labels, list) else [labels]
    if len(listed) != count:
        got = f"{len(listed)} labels" if isinstance(labels, list) else "one label"
        raise DataError(f"{where}: got {got} for {count} steps; accepted: one a step")
    signed = any(type(label) is int and label == -1 for label in listed)
    return tuple(_label_value(label, signed, f"{where}[{number}]") for number, label in enumerate(listed))


def _label_value(label: Any, signed: bool, where: str) -> float | None:
    if label is None:
        return None
    if isinstance(label, bool):
        return float(label)
    if isinstance(label, str):
        if label.strip() not in _SIGNS:
            raise DataError(f"{where}: got {shown(label)}; accepted: '+' or '-'")
        return _SIGNS[label.strip()]
    if signed:
        if label not in (1, -1):
            raise DataError(f"{where}: got {shown(label)} beside -1; accepted: 1, -1 or null")
        return float(label == 1)
    return fraction(label, where)


def strip_numbers(steps: Sequence[str]) -> tuple[str, ...]:
    """Steps without white space around them, and without "Step i:" where every one begins so, counted from 1."""
    matches = [_NUMBERED.match(step) for step in steps]
    if any(match is None or int(match[1]) != number for number, match in enumerate(matches, start=1)):
        return tuple(step.strip() for step in steps)
    return tuple(without_number(step) for step in steps)


def without_number(step: str) -> str:
    """A step without white space around it, and without "Step i:" before it."""
    return _NUMBERED.sub("", step, count=1).strip() if _NUMBERED.match(step) else step.strip()
