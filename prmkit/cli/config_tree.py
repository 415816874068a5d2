"""One tree of settings out of config files and a command line, before any parser sees them.

The rules, the same for all commands:

- Later files win, key by key; the command line comes last.
- A list replaces a list, whole, and so does a mapping whose keys are free. `key+:` in a file and `--key+=` on the
  command line add to a list.
- A class replaces a class; settings of the earlier one that the new one does not have are left out.
- What a later file takes away is said (`CommandLine.said`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prmkit.cli.config_values import Schema, check_settings, from_text, is_reference, members
from prmkit.cli.signatures import (
    ANYTHING,
    ClassOf,
    Kind,
    ListOf,
    MappingOf,
    Plain,
    Record,
    Setting,
    Signature,
    signature,
)
from prmkit.cli.yaml_text import load_config
from prmkit.errors import PrmkitError

__all__ = ["CommandLine", "read_command_line"]

_FLAG = re.compile(r"--[A-Za-z_][\w.]*\+?$")


@dataclass
class CommandLine:
    """What a command line says.

    Attributes:
        tree: the settings, interpolations unresolved.
        said: a line for each thing that a later file takes away from an earlier one.
        arguments: the command line itself.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


def read_command_line(argv: Sequence[str], top: Signature, schema: Schema | None = None) -> CommandLine:
    """Merge the files of `--config` and the other arguments, and check what can be checked without imports.

    Args:
        argv: arguments; `--config` values are files that exist.
        top: the settings of the command.
        schema: signatures of its groups, by the path in their `Record`.

    Raises:
        PrmkitError: not an argument, no such setting, a value of another kind, a file that is not a config.
    """
    line = CommandLine(arguments=list(argv))
    overrides: list[tuple[str, str]] = []
    rest = iter(argv)
    before = ""
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if not _FLAG.match(flag):
            if not argument.startswith("-"):
                raise PrmkitError(f"{argument}: not an argument here; settings are given as --key value or --key=value")
            raise PrmkitError(f"{flag}: not an argument here; settings have two dashes: --key value")
        given = value if equals else next(rest, None)
        if given is None or (not equals and given.startswith("--")):
            raise PrmkitError(f"{flag.lstrip('-')}: a value must follow")
        if flag == "--config":
            _Merge(schema or {}, given, before, line.said).settings(line.tree, load_config(Path(given)), top, "")
            before = f"{before}, {given}" if before else given
        else:
            overrides.append((flag[2:], given))
    appended: set[str] = set()
    for name, text in overrides:
        _Override(name, text, appended, schema or {}, line.said).apply(line.tree, top)
    check_settings(line.tree, top, "", schema or {})
    return line


@dataclass
class _Merge:
    """Merges the settings of a later file into a tree.

    Attributes:
        schema: signatures of groups.
        file, before: names of the file and of those before it, for `said`.
        said: gets a line for each list and setting that is taken away.
    """

    schema: Schema
    file: str = "command line"
    before: str = ""
    said: list[str] = field(default_factory=list)

    def settings(self, tree: dict[str, Any], more: dict[Any, Any], known: Signature | None, where: str) -> None:
        """Merge the settings of a class or group, `known` where they are known; `where` is its key."""
        for key, value in more.items():
            name = str(key)
            setting = known.settings.get(name.rstrip("+")) if known is not None else None
            kind = ANYTHING if setting is None else setting.kind
            self.value(tree, name, value, kind, f"{where}.{name}" if where else name)

    def value(self, tree: dict[str, Any], name: str, new: Any, kind: Kind, at: str) -> None:
        """Merge one value: groups and classes key by key, anything else whole."""
        old = tree.get(name)
        if name.endswith("+"):
            _append(tree, name[:-1], new, at[:-1])
            return
        record, is_class = _record(kind, self.schema), _takes_class(kind)
        if isinstance(new, dict) and (record is not None or is_class or kind == ANYTHING):
            tree[name] = old if isinstance(old, dict) else {}
            if record is None and is_class:
                self.class_(tree[name], new, at)
            else:
                self.settings(tree[name], new, record, at)
            return
        self._replaced(old, new, at)
        tree[name] = copy.deepcopy(new)

    def class_(self, tree: dict[str, Any], more: dict[Any, Any], where: str) -> None:
        """Merge a class; of the settings of an earlier, other one keep those that the new one has."""
        old, new = tree.get("class_path"), more.get("class_path", tree.get("class_path"))
        found = signature(str(new))
        arguments = tree.get("init_args")
        if old is not None and old != new and isinstance(arguments, dict):
            lost = [key for key in arguments if found is not None and key not in found.settings and not found.open]
            if lost:
                tree["init_args"] = {key: value for key, value in arguments.items() if key not in lost}
                self.said.append(f"{self.file}: {where} is now {new}, which has no {', '.join(lost)}; {old} had")
        for key, value in more.items():
            if key == "init_args" and isinstance(value, dict):
                if not isinstance(tree.get(key), dict):
                    tree[key] = {}
                self.settings(tree[key], value, found, f"{where}.init_args")
            else:
                tree[str(key)] = copy.deepcopy(value)

    def _replaced(self, old: Any, new: Any, at: str) -> None:
        """Say that a list of mappings, or a free mapping, is gone."""
        if not self.before or not old or new == old:
            return
        last = at.rpartition(".")[2]
        if isinstance(old, list) and any(isinstance(item, dict) for item in old):
            held, hint = ", ".join(map(_name, old)), f"; to add to it, write `{last}+:`"
        elif isinstance(old, dict):
            held, hint = ", ".join(map(str, old)), ""
        else:
            return
        self.said.append(f"{self.file}: {at} replaces that of {self.before} ({held}){hint}")


def _record(kind: Kind, schema: Schema) -> Signature | None:
    """The signature of the group that a kind stands for; None when it is none."""
    record = next((member for member in members(kind) if isinstance(member, Record)), None)
    return None if record is None else schema.get(record.path) or signature(record.path)


def _is_plain(kind: Kind) -> bool:
    return isinstance(kind, Plain) and kind.name != "null"


def _takes_class(kind: Kind) -> bool:
    return any(isinstance(member, ClassOf) for member in members(kind))


def _append(tree: dict[str, Any], name: str, value: Any, at: str) -> None:
    old = tree.get(name)
    items = [] if old is None else old if isinstance(old, list) else None
    if items is None:
        raise PrmkitError(f"{at}+: adds to a list, and {at} is {old!r}")
    tree[name] = [*items, *copy.deepcopy(value if isinstance(value, list) else [value])]


def _name(item: Any) -> str:
    """A list's item in a word or two."""
    if not isinstance(item, dict):
        return str(item)
    named = item.get("class_path") or item.get("path") or item.get("name") or "..."
    return str(named).rpartition(".")[2] if "class_path" in item else str(named)


class _Override:
    """One `--key value` of the command line."""

    def __init__(self, name: str, text: str, appended: set[str], schema: Schema, said: list[str]) -> None:
        self._adds = name.endswith("+")
        self._name = name.rstrip("+")
        self._keys = self._name.split(".")
        self._text = text
        self._appended = appended  # lists that this command line has added to: their last item may go without a number
        self._schema = schema
        self._merge = _Merge(schema, said=said)
        self._done: list[str] = []

    def apply(self, tree: dict[str, Any], top: Signature) -> None:
        """Put the value into the tree, where the keys lead."""
        self._into_settings(tree, top)

    @property
    def _here(self) -> str:
        return ".".join(self._done)

    def _into(self, owner: Any, key: Any, kind: Kind) -> None:
        """Go on below owner[key], or set it."""
        if not self._keys:
            self._set(owner, key, kind)
            return
        node = owner[key] if isinstance(owner, list) or key in owner else None
        accepted = members(kind)
        if isinstance(node, list):
            item = next((member.item for member in accepted if isinstance(member, ListOf)), ANYTHING)
            self._into_list(node, item)
            return
        found, is_class = _record(kind, self._schema), _takes_class(kind)
        if self._keys[0].isdigit() and not any(isinstance(m, MappingOf) or m == ANYTHING for m in accepted):
            raise PrmkitError(f"{self._here}.{self._keys[0]}: no such item; {self._here} is not a list")
        or_number = found is not None and not is_reference(node) and any(_is_plain(member) for member in accepted)
        if node is None or (not isinstance(node, dict) and (is_class or or_number)):
            node = {"class_path": node} if is_class and isinstance(node, str) and node else {}
            owner[key] = node
        if not isinstance(node, dict):
            raise PrmkitError(f"{self._name}: {self._here} is {node!r} and holds no settings")
        if is_class and found is None:
            self._into_class(node)
        elif found is not None:
            self._into_settings(node, found)
        else:
            self._into_mapping(node, accepted)

    def _into_list(self, items: list[Any], item: Kind) -> None:
        if not self._keys[0].isdigit():
            if self._here not in self._appended:
                raise PrmkitError(
                    f"{self._name}: {self._here} is a list of {len(items)}; name the item by its number, from 0: "
                    f"--{self._here}.0.{'.'.join(self._keys)}"
                )
            index = len(items) - 1
        else:
            index = int(self._keys.pop(0))
        if index >= len(items):
            held = f"{self._here} is a list of {len(items)}, and items are counted from 0"
            raise PrmkitError(f"{self._here}.{index}: no such item; {held}")
        self._done.append(str(index))
        self._into(items, index, item)

    def _into_class(self, node: dict[str, Any]) -> None:
        if self._keys[0] not in ("class_path", "init_args", "dict_kwargs"):
            self._keys.insert(0, "init_args")  # the short form
        key = self._keys.pop(0)
        self._done.append(key)
        if key == "class_path":
            self._merge.class_(node, {"class_path": self._text}, self._here.removesuffix(".class_path"))
            return
        found = signature(str(node.get("class_path", "")))
        if not self._keys or found is None:
            self._into(node, key, MappingOf(ANYTHING))
            return
        self._into_settings(node.setdefault(key, {}), found)

    def _into_settings(self, node: dict[str, Any], found: Signature) -> None:
        key = self._keys.pop(0)
        setting = found.settings.get(key, Setting(ANYTHING, False))  # an unknown one is refused with its full key later
        self._done.append(key)
        self._into(node, key, setting.kind)

    def _into_mapping(self, node: dict[str, Any], accepted: Sequence[Kind]) -> None:
        value = next((member.value for member in accepted if isinstance(member, MappingOf)), ANYTHING)
        key = self._keys.pop(0)
        self._done.append(key)
        self._into(node, key, value)

    def _set(self, owner: Any, key: Any, kind: Kind) -> None:
        value = from_text(self._text, kind)
        if self._adds:
            item = next((member.item for member in members(kind) if isinstance(member, ListOf)), ANYTHING)
            many = isinstance(value, list)
            items = value if many else [_as_class(value, item)]
            _append(owner, key, items, self._name)
            self._appended.add(self._here)
            return
        value = _as_class(value, kind)
        if isinstance(owner, list):
            owner[key] = value
        else:
            self._merge.value(owner, str(key), value, kind, self._here)


def _as_class(value: Any, kind: Kind) -> Any:
    """A class's name alone as a mapping, where a class is meant."""
    return {"class_path": value} if _takes_class(kind) and isinstance(value, str) and "." in value else value
