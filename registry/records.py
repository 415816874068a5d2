"""Frozen dataclasses from JSON, every field checked, and back. Errors name the field by its full path."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from prmkit.errors import DataError, PrmkitError

__all__ = ["decode", "encode"]

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A JSON value of a record: dataclasses become objects, tuples lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: Any, where: str) -> T:
    """Inverse of `encode` for a dataclass of dataclasses, tuples, mappings and plain values.

    Args:
        kind: the dataclass.
        value: parsed JSON. A field with a default may be absent; an unknown one is refused.
        where: what errors begin with, e.g. `math@3`.

    Raises:
        DataError: a field is missing, unknown or of another type.
    """
    result: T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _optional(kind, value, where)
    if origin is tuple:
        _check(isinstance(value, list), where, value, "a list")
        (item, _) = get_args(kind)
        return tuple(_decode(item, element, f"{where}[{index}]") for index, element in enumerate(value))
    if origin is not None:  # Mapping[str, X]
        _check(isinstance(value, dict), where, value, "an object")
        item = get_args(kind)[1]
        return {key: _decode(item, element, f"{where}.{key}") for key, element in value.items()}
    if kind is Any:
        return value
    if kind is float:
        _check(isinstance(value, (int, float)) and not isinstance(value, bool), where, value, "a number")
        return float(value)
    plain = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _check(plain, where, value, f"a value of type {kind.__name__}")
    return value


def _optional(kind: Any, value: Any, where: str) -> Any:
    if value is None:
        return None
    (item,) = (argument for argument in get_args(kind) if argument is not types.NoneType)
    return _decode(item, value, where)


def _record(kind: Any, value: Any, where: str) -> Any:
    _check(isinstance(value, dict), where, value, "an object")
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            raise DataError(f"{where}.{name}: no such field; known: {', '.join(hints)}")
    values = {name: _decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items() if name in value}
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise DataError(f"{where}.{missing[0]}: missing")
    try:
        return kind(**values)
    except PrmkitError as error:
        raise DataError(f"{where}: {error}") from None


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _check(condition: bool, where: str, value: Any, accepted: str) -> None:
    if not condition:
        raise DataError(f"{where}: got {str(value)[:80]!r}; accepted: {accepted}")
