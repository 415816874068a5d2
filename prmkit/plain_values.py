"""Records from plain values, nested as in YAML or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_args, get_origin, get_type_hints

from prmkit.errors import ConfigError

__all__ = ["build_record"]


def build_record(kind: Any, value: Any, path: str) -> Any:
    """A value of a type from plain data: mappings become dataclasses, lists become tuples.

    Args:
        kind: a dataclass, a tuple of one type, any of these or None; values of other types stay as they are.
        value: plain data.
        path: key of the value, for errors.

    Raises:
        ConfigError: a field that the dataclass does not have, or what it refuses.
    """
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(build_record(get_args(kind)[0], item, f"{path}.{number}") for number, item in enumerate(value))
    record = next((member for member in (kind, *get_args(kind)) if is_dataclass(member)), None)
    if record is None or not isinstance(value, Mapping):
        return value
    known = [field.name for field in fields(record)]
    for name in value:
        if name not in known:
            raise ConfigError(f"{path}.{name}", value[name], f"the fields {', '.join(known)}")
    hints = get_type_hints(record)
    return cast(Callable[..., Any], record)(
        **{name: build_record(hints[name], item, f"{path}.{name}") for name, item in value.items()}
    )
