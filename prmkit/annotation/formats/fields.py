"""Fields of foreign JSON objects, taken out with errors that name place, field and value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prmkit.errors import DataError

__all__ = ["fraction", "get", "strip_numbers"]

_NUMBERED = re.compile(r"\s*Step\s*(\d+)\s*:", re.IGNORECASE)
_WORDS = {"str": "a string", "list": "a list", "dict": "an object"}


def get(record: Any, name: str, kind: type, where: str) -> Any:
    """The field `name`, of type `kind` (str, list or dict); DataError otherwise."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: got {type(record).__name__}; accepted: an object")
    value = record.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{where}: {name}: got {value!r}; accepted: {_WORDS[kind.__name__]}")
    return value


def fraction(value: Any, where: str) -> float:
    """A number in [0, 1]; DataError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise DataError(f"{where}: got {value!r}; accepted: a number in [0, 1]")
    return float(value)


def strip_numbers(steps: Sequence[str]) -> tuple[str, ...]:
    """Steps without white space around them, and without "Step i:" where every one begins so, counted from 1."""
    matches = [_NUMBERED.match(step) for step in steps]
    if any(match is None or int(match[1]) != number for number, match in enumerate(matches, start=1)):
        return tuple(step.strip() for step in steps)
    return tuple(step[match.end() :].strip() for step, match in zip(steps, matches, strict=True) if match)
