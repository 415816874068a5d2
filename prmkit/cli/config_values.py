"""Values of settings: what a text on the command line means for a setting of a kind, and whether a value fits it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from prmkit.cli.signatures import (
    ANYTHING,
    Choice,
    ClassOf,
    Kind,
    ListOf,
    MappingOf,
    Named,
    Plain,
    Record,
    Signature,
    Union,
    exists,
    signature,
)
from prmkit.cli.yaml_text import load_value
from prmkit.errors import PrmkitError

__all__ = ["Schema", "check", "describe", "from_text", "is_reference", "members"]

Schema = Mapping[str, Signature]  # signatures of the groups of a command, which have no class of their own

_NULLS = ("null", "Null", "NULL", "~")
_NUMBERS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}


def is_reference(value: Any) -> bool:
    """True if a value is text with an interpolation, which is known only when the whole config is."""
    return isinstance(value, str) and "${" in value


def members(kind: Kind) -> tuple[Kind, ...]:
    """The kinds of which one is meant."""
    return kind.members if isinstance(kind, Union) else (kind,)


def from_text(text: str, kind: Kind) -> Any:
    """The value that a text from the command line means for a setting.

    `null` and `~` are None where None is accepted. A setting that takes text only takes any text as it is; others are
    read as YAML, and text is kept where it is one of the choices, or fits nothing else.
    """
    accepted = members(kind)
    if text in _NULLS and (Plain("null") in accepted or ANYTHING in accepted):
        return None
    if is_reference(text):
        return text
    others = [member for member in accepted if member not in (Plain("str"), Plain("null"))]
    others = [member for member in others if not isinstance(member, Named)]
    takes_text = Plain("str") in accepted or any(isinstance(member, Named) for member in accepted)
    if takes_text and not others:
        return text
    if any(isinstance(member, Choice) and text in member.values for member in others):
        return text
    value = load_value(text)
    if takes_text and not any(_fits(value, member) for member in others):
        return text
    return value


def _fits(value: Any, kind: Kind) -> bool:
    """True if a value may be one of a kind; the settings inside a mapping are not looked at."""
    if is_reference(value) or kind == ANYTHING:
        return True
    match kind:
        case Union():
            return any(_fits(value, member) for member in kind.members)
        case Choice():
            return any(value == choice and type(value) is type(choice) for choice in kind.values)
        case Named():
            return isinstance(value, str)  # whether it is a name there is looked up last
        case ListOf():
            return isinstance(value, (list, tuple))
        case MappingOf() | Record():
            return isinstance(value, dict)
        case ClassOf():
            return isinstance(value, (dict, str))
        case Plain("null"):
            return value is None
        case Plain("bool"):
            return isinstance(value, bool)
        case Plain("str"):
            return isinstance(value, str)
        case Plain():
            whole = kind.name != "int" or not isinstance(value, float) or value.is_integer()
            return isinstance(value, (*_NUMBERS[kind.name], float)) and not isinstance(value, bool) and whole


def describe(kind: Kind) -> str:
    """The kind in a user's words, e.g. "int | null"."""
    match kind:
        case Union():
            return " | ".join(dict.fromkeys(describe(member) for member in kind.members))
        case Choice():
            return " | ".join(map(str, kind.values))
        case Named():
            return " | ".join(kind.catalogue)
        case ListOf(item):
            return "a list" if item == ANYTHING else f"a list of {describe(item)}"
        case MappingOf():
            return "a mapping"
        case Record(path):
            return f"the settings of {path.rpartition('.')[2]}"
        case ClassOf(path):
            return f"a {path.rpartition('.')[2]} (class_path and init_args)"
        case Plain(name):
            return name
    raise AssertionError(kind)


def check(value: Any, kind: Kind, where: str, schema: Schema | None = None) -> None:
    """Refuse what cannot be right: an unknown setting, a value of another kind, a class that is not there.

    Raises:
        PrmkitError: with the full key, the value, what is accepted and the nearest match.
    """
    if isinstance(value, str) and not _fits(value, kind):
        value = load_value(value)  # quoted numbers are numbers
    if is_reference(value) or kind == ANYTHING:
        return
    if not _fits(value, kind):
        raise PrmkitError(_wrong(value, kind, where))
    accepted = members(kind)
    named = next((member for member in accepted if isinstance(member, Named)), None)
    if named is not None and isinstance(value, str):
        named.catalogue.name_of(value, where)
    if isinstance(value, dict):
        _check_mapping(value, accepted, where, schema or {})
    elif isinstance(value, (list, tuple)):
        item = next((member.item for member in accepted if isinstance(member, ListOf)), ANYTHING)
        for index, entry in enumerate(value):
            check(entry, item, f"{where}.{index}", schema)


def _wrong(value: Any, kind: Kind, where: str) -> str:
    got = "null" if value is None else repr(value)
    text = f"{where}: got {got if len(got) <= 200 else got[:200] + '...'}; accepted: {describe(kind)}"
    if Plain("str") in members(kind) and isinstance(value, (int, float, bool)):
        return f"{text}. In YAML put quotes around text that looks like a number or a boolean"
    return text


def _check_mapping(value: dict[Any, Any], accepted: tuple[Kind, ...], where: str, schema: Schema) -> None:
    record = next((member for member in accepted if isinstance(member, Record)), None)
    if record is not None:
        found = schema.get(record.path) or signature(record.path)
        if found is not None:
            check_settings(value, found, where, schema)
        return
    if any(isinstance(member, ClassOf) for member in accepted):
        if any(isinstance(member, MappingOf) for member in accepted) and "class_path" not in value:
            return
        _check_class(value, where, schema)


def _check_class(value: dict[Any, Any], where: str, schema: Schema) -> None:
    path = value.get("class_path")
    for key in value:
        if key not in ("class_path", "init_args", "dict_kwargs"):
            raise PrmkitError(f"{where}.{key}: no such setting; a class is written as class_path and init_args")
    if not isinstance(path, str) or "." not in path or is_reference(path):
        return  # a short name, or none: the parser knows the classes that are meant
    found = signature(path)
    if found is None:
        _check_exists(path, f"{where}.class_path")
        return
    arguments = value.get("init_args")
    if arguments is not None and not isinstance(arguments, dict):
        raise PrmkitError(f"{where}.init_args: got {arguments!r}; accepted: a mapping")
    if not value.get("dict_kwargs"):
        check_settings(arguments or {}, found, f"{where}.init_args", schema)


def _check_exists(path: str, where: str) -> None:
    module, _, name = path.rpartition(".")
    if exists(path) is False:
        raise PrmkitError(f"{where}: {path}: module '{module}' has no attribute '{name}'")
    if exists(path) is None:
        import importlib.util

        first = module.partition(".")[0]
        if importlib.util.find_spec(first) is None:
            raise PrmkitError(f"{where}: {path}: No module named '{first}'")


def check_settings(value: Mapping[Any, Any], found: Signature, where: str, schema: Schema) -> None:
    """The same for all settings of a class or group."""
    owner = f" of {found.path}" if found.path and found.path not in schema else ""
    for key, entry in value.items():
        at = f"{where}.{key}" if where else str(key)
        setting = found.get(str(key))
        if setting is not None:
            check(entry, setting.kind, at, schema)
        elif not found.open:
            outside = found.catalogue.catalogue if found.catalogue is not None else ()
            known = list(dict.fromkeys((*_all_keys(found, schema), *outside)))
            near = _nearest(str(key), known)
            hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
            raise PrmkitError(f"{at}: no such setting{owner}. {hint or 'Accepted: ' + ', '.join(found.settings) + '.'}")
    missing = [name for name, setting in found.settings.items() if setting.required and name not in value]
    if missing and where:
        raise PrmkitError(f"{where}.{missing[0]}: not given; accepted: {describe(found.settings[missing[0]].kind)}")


def _all_keys(found: Signature, schema: Schema, depth: int = 0) -> list[str]:
    """Dotted names of all settings of a class or group, and of the groups within."""
    keys: list[str] = []
    for name, setting in found.settings.items():
        keys.append(name)
        for member in members(setting.kind):
            inner = schema.get(member.path) or signature(member.path) if isinstance(member, Record) else None
            if inner is not None and depth < 3:
                keys += [f"{name}.{key}" for key in _all_keys(inner, schema, depth + 1)]
    return keys


def _nearest(key: str, known: list[str]) -> list[str]:
    """Known keys like this one, or with it as their last part."""
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.75)
    return near or [name for name in known if name.rpartition(".")[2] == key][:2]
