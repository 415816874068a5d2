r"""Answers with members: sets, lists, tuples, intervals, unions, ratios, and both values of a sign `\pm`."""

from __future__ import annotations

import re
from itertools import product

from prmkit.grading.kinds import Assigned, Group, Inner, Kind, Scalar, Words, read_scalar
from prmkit.grading.relations import split_members, split_relation, split_top

__all__ = ["read_group", "read_plus_minus", "read_union"]

_PM = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])\s?")
_CUP = re.compile(r"\s*\\cup(?![a-zA-Z])\s*")
_RATIO = re.compile(r":")


def read_group(text: str, inner: Inner) -> Kind | None:
    """A set, list, tuple, interval or ratio; None for anything else."""
    bracketed = _bracketed(text, inner)
    if bracketed is not None:
        return bracketed
    if split_relation(text) is None or "," in text or ";" in text:
        members = split_members(text, bracketed=False)
        if members is not None and len(members) > 1:
            return _listed(members, inner)
    ratio = split_top(text, _RATIO)
    if ratio is not None and ratio[1] and all(ratio[0]):
        items = [read_scalar(part) for part in ratio[0]]
        if all(item is not None for item in items):
            return Group(":", tuple(item for item in items if item is not None))
    return None


def _bracketed(text: str, inner: Inner) -> Kind | None:
    for opening, closing, kind in (("\\{", "\\}", "set"), ("{", "}", "set"), ("\\langle ", "\\rangle", "()")):
        if text.startswith(opening.strip()) and text.endswith(closing):
            content = text[len(opening.strip()) : -len(closing)].strip()
            members = split_members(content, bracketed=True)
            if members is not None and (len(members) > 1 or (kind == "set" and opening == "\\{")):
                return Group(kind, tuple(inner(member) for member in members))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        members = split_members(text[1:-1], bracketed=True)
        if members is not None and len(members) > 1:
            return Group(text[0] + text[-1], tuple(inner(member) for member in members))
    return None


def _listed(members: list[str], inner: Inner) -> Kind | None:
    items: list[Kind] = []
    for member in members:
        item = inner(member)
        items += item.items if isinstance(item, Group) and item.kind == "list" else (item,)
    if any(isinstance(item, Words) and item.text.count(" ") > 2 for item in items):
        return None
    return _gathered(items)


def _gathered(items: list[Kind]) -> Kind:
    """A list; one of values for the same name, `x = 1, x = 2` or `x = 1, 2`, is that name's list of values."""
    first = items[0]
    if isinstance(first, Assigned) and all(
        (isinstance(item, Assigned) and item.name == first.name) or isinstance(item, Scalar) for item in items[1:]
    ):
        values = tuple(item.item if isinstance(item, Assigned) else item for item in items)
        if all(isinstance(value, Scalar) for value in values):
            return Assigned(first.name, Group("list", values), "")
    return Group("list", tuple(items))


def read_plus_minus(text: str, inner: Inner) -> Kind | None:
    r"""The list of values that signs `\pm` stand for; None without them."""
    signs = _PM.findall(text)
    if not signs or len(signs) > 3:
        return None
    if any("mp" in sign for sign in signs):
        choices = [tuple(first if "pm" in sign else second for sign in signs) for first, second in ("+-", "-+")]
    else:
        choices = list(product("+-", repeat=len(signs)))
    members = []
    for choice in choices:
        remaining = iter(choice)
        member = _PM.sub(lambda _: next(remaining), text).lstrip("+")  # noqa: B023 - used at once
        members.append(inner(re.sub(r"(?<==)\+", "", member)))
    return _gathered(members)


def read_union(text: str, inner: Inner) -> Kind | None:
    """A union of intervals and sets; None for anything else."""
    found = split_top(text, _CUP)
    if found is None or not found[1] or not all(found[0]):
        return None
    return Group("union", tuple(inner(part) for part in found[0]))
