"""The settings that a class takes, read from its source without importing it.

`prm fit` learns here which keys a config may have and what their values may be before it imports torch: a mistake is
answered at once. Only what can be told for sure is told. A type that is not understood is `ANYTHING`, a signature with
unknown `**kwargs` is `open`; both are left to the real parser, which imports the classes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from prmkit.cli.source_modules import Module, find, module_of, resolve
from prmkit.plugins import Catalogue, import_attribute

__all__ = [
    "ANYTHING", "Choice", "ClassOf", "Kind", "ListOf", "MappingOf", "Named", "Plain", "Record", "Setting", "Signature",
    "Union", "exists", "signature",
]  # fmt: skip


@dataclass(frozen=True)
class Plain:
    """A plain type: "int", "float", "bool", "str", "null" or "anything"."""

    name: str


@dataclass(frozen=True)
class Choice:
    """One of some values (`Literal`)."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Named:
    """The name of a part in a catalogue (`Annotated[str, CATALOGUE]`), which `path`, `module:attribute`, stands for."""

    path: str

    @property
    def catalogue(self) -> Catalogue[Any]:
        found: Catalogue[Any] = import_attribute(self.path, "catalogue")
        return found


@dataclass(frozen=True)
class ListOf:
    """A list, tuple or set of items of one kind."""

    item: Kind


@dataclass(frozen=True)
class MappingOf:
    """A mapping with values of one kind."""

    value: Kind


@dataclass(frozen=True)
class Record:
    """The settings of a dataclass, or of a group of keys, written as a mapping."""

    path: str


@dataclass(frozen=True)
class ClassOf:
    """An object of a class or of one of its subclasses, written as `class_path` and `init_args`."""

    path: str


@dataclass(frozen=True)
class Union:
    """One of several kinds."""

    members: tuple[Kind, ...]


Kind = Plain | Choice | Named | ListOf | MappingOf | Record | ClassOf | Union
ANYTHING = Plain("anything")

_PLAIN = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "None": "null",
    "Path": "str",
    "PathLike": "str",
}
_SEQUENCES = {"list", "tuple", "set", "frozenset", "List", "Tuple", "Set", "Sequence", "Iterable", "Collection"}
_OPAQUE = {"Any", "object", "timedelta", "Callable", "Enum"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


@dataclass(frozen=True)
class Setting:
    """One setting: the kind of its value, and whether it must be given."""

    kind: Kind
    required: bool


@dataclass(frozen=True)
class Signature:
    """What a class takes.

    Attributes:
        path: its import path.
        settings: by name.
        open: it may take further settings, which cannot be told from its source.
        catalogue: parts whose names are settings, too, each with the settings of its own class; None for none.
    """

    path: str
    settings: dict[str, Setting]
    open: bool = False
    catalogue: Named | None = None

    def get(self, name: str) -> Setting | None:
        """A setting by its name, also that of a part from outside; None for an unknown one."""
        if name in self.settings or self.catalogue is None or name not in self.catalogue.catalogue:
            return self.settings.get(name)
        kind: type = self.catalogue.catalogue[name].config
        return Setting(_union(Record(f"{kind.__module__}.{kind.__qualname__}"), Plain("null")), False)


@cache
def signature(path: str) -> Signature | None:
    """The signature of a class by its import path; None when its source is not found."""
    found = find(path)
    if found is None:
        return None
    module, node = found
    if not isinstance(node, ast.ClassDef):
        return None
    settings, is_open = _settings(module, node, frozenset())
    return Signature(path, settings, is_open, _catalogue_of(module, node))


def exists(path: str) -> bool | None:
    """Whether a dotted path names something in a module; None when that cannot be told from sources."""
    module, _, name = path.rpartition(".")
    loaded = module_of(module)
    if loaded is None:
        return None
    return any(known in loaded.names for known in (name, "*", "__getattr__"))


def _settings(module: Module, node: ast.ClassDef, seen: frozenset[str]) -> tuple[dict[str, Setting], bool]:
    if node.name in seen:
        return {}, True
    seen = seen | {node.name}
    if any(_called(decorator) == "dataclass" for decorator in node.decorator_list):
        return _fields(module, node, seen)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _arguments(module, node, statement, seen)
    for base in _bases(module, node):
        return _settings(*base, seen) if base is not None else ({}, True)
    return {}, bool(node.bases)


def _fields(module: Module, node: ast.ClassDef, seen: frozenset[str]) -> tuple[dict[str, Setting], bool]:
    found: dict[str, Setting] = {}
    is_open = False
    for base in _bases(module, node):
        inherited, more = _settings(*base, seen) if base is not None else ({}, True)
        found |= inherited
        is_open |= more
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if _called(statement.annotation) == "ClassVar" or _is_internal(statement.value):
            continue
        required = statement.value is None or not _has_default(statement.value)
        found[statement.target.id] = Setting(_kind(module, statement.annotation), required)
    return found, is_open


def _catalogue_of(module: Module, node: ast.ClassDef) -> Named | None:
    """The catalogue that a record takes parts of by name: its `catalogue: ClassVar[...] = CATALOGUE`."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == "catalogue":
            return _catalogue(module, statement.value)
    return None


def _catalogue(module: Module, node: ast.AST | None) -> Named | None:
    """The catalogue that a name stands for; None for anything else."""
    found = resolve(module, ast.unparse(node)) if isinstance(node, (ast.Name, ast.Attribute)) else None
    owner, assigned = found if found is not None else (module, None)
    if not isinstance(assigned, (ast.Assign, ast.AnnAssign)):
        return None
    target = assigned.targets[0] if isinstance(assigned, ast.Assign) else assigned.target
    made = isinstance(assigned.value, ast.Call) and _called(assigned.value) == "Catalogue"
    return Named(f"{owner.name}:{ast.unparse(target)}") if made else None


def _is_internal(value: ast.AST | None) -> bool:
    return isinstance(value, ast.Call) and any(
        keyword.arg == "init" and getattr(keyword.value, "value", None) is False for keyword in value.keywords
    )


def _has_default(value: ast.AST) -> bool:
    if isinstance(value, ast.Call) and _called(value) == "field":
        return any(keyword.arg in ("default", "default_factory") for keyword in value.keywords)
    return True


def _arguments(
    module: Module, node: ast.ClassDef, function: ast.FunctionDef, seen: frozenset[str]
) -> tuple[dict[str, Setting], bool]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    optional = len(arguments.defaults)
    found: dict[str, Setting] = {}
    for index, argument in enumerate(positional):
        found[argument.arg] = Setting(_kind(module, argument.annotation), index < len(positional) - optional)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[argument.arg] = Setting(_kind(module, argument.annotation), default is None)
    is_open = False
    if arguments.kwarg is not None:
        for base in _bases(module, node):
            inherited, more = _settings(*base, seen) if base is not None else ({}, True)
            found = inherited | found
            is_open |= more
        is_open = True
    return found, is_open


def _bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef] | None]:
    for base in node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        name = ast.unparse(expression)
        if name in ("object", "Protocol", "Generic", "ABC"):
            continue
        found = resolve(module, name)
        yield found if found is not None and isinstance(found[1], ast.ClassDef) else None  # type: ignore[misc]


def _called(node: ast.AST) -> str:
    """The last part of a name, of what is called, or of what is subscripted."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _kind(module: Module, node: ast.AST | None, depth: int = 0) -> Kind:
    """The kind that an annotation stands for."""
    if node is None or depth > 20:
        return ANYTHING
    if isinstance(node, ast.Constant):
        if node.value is None:
            return Plain("null")
        return (
            _kind(module, ast.parse(node.value, mode="eval").body, depth + 1)
            if isinstance(node.value, str)
            else ANYTHING
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(_kind(module, node.left, depth + 1), _kind(module, node.right, depth + 1))
    if isinstance(node, ast.Subscript):
        return _subscript(module, node, depth + 1)
    name = _called(node)
    if isinstance(node, (ast.Name, ast.Attribute)):
        if name in _OPAQUE:
            return ANYTHING
        if name in _PLAIN:
            return Plain(_PLAIN[name])
        if name in _SEQUENCES:
            return ListOf(ANYTHING)
        if name in _MAPPINGS:
            return MappingOf(ANYTHING)
        return _named(module, ast.unparse(node), depth + 1)
    return ANYTHING


def _subscript(module: Module, node: ast.Subscript, depth: int) -> Kind:
    name = _called(node)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Optional":
        return _union(_kind(module, inside[0], depth), Plain("null"))
    if name == "Union":
        return _union(*(_kind(module, member, depth) for member in inside))
    if name == "Literal":
        values = [member.value for member in inside if isinstance(member, ast.Constant)]
        return Choice(tuple(values)) if len(values) == len(inside) else ANYTHING
    if name == "Annotated":
        return next(filter(None, (_catalogue(module, part) for part in inside[1:])), _kind(module, inside[0], depth))
    if name in _SEQUENCES:
        items = [member for member in inside if getattr(member, "value", None) is not Ellipsis]
        return ListOf(_union(*dict.fromkeys(_kind(module, member, depth) for member in items)))
    if name in _MAPPINGS:
        return MappingOf(_kind(module, inside[-1], depth))
    if name == "PathLike":
        return Plain("str")
    return ANYTHING


def _named(module: Module, name: str, depth: int) -> Kind:
    found = resolve(module, name)
    if found is None:
        return ANYTHING
    owner, node = found
    if isinstance(node, ast.ClassDef):
        path = f"{owner.name}.{node.name}"
        if any(_called(decorator) == "dataclass" for decorator in node.decorator_list):
            return Record(path)
        bases = {ast.unparse(base) for base in node.bases}
        return ANYTHING if bases & {"Enum", "StrEnum", "TypedDict", "NamedTuple", "str"} else ClassOf(path)
    if isinstance(node, ast.Assign):
        return _kind(owner, node.value, depth)
    if isinstance(node, ast.AnnAssign):
        return _kind(owner, node.value, depth)
    return ANYTHING


def _union(*members: Kind) -> Kind:
    flat: dict[Kind, None] = {}
    for member in members:
        flat |= dict.fromkeys(member.members if isinstance(member, Union) else (member,))
    if ANYTHING in flat or not flat:
        return ANYTHING
    return next(iter(flat)) if len(flat) == 1 else Union(tuple(flat))
