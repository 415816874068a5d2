r"""Kinds of answers: what an answer can be. `prmkit.grading.reading` decides which one it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from prmkit.grading.exact_values import rational
from prmkit.grading.normal import number
from prmkit.grading.scalar import Tree, parse

__all__ = [
    "Assigned", "Based", "Clock", "Group", "Inner", "Kind", "Labelled", "Matrix", "Quantity", "Relation", "Scalar",
    "Words", "read_scalar",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scalar:
    """One expression: `tree` as parsed, `value` when it is rational, `decimal` when a decimal point is in it."""

    text: str
    tree: Tree
    value: Fraction | None
    decimal: bool


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount with a unit, as `prmkit.grading.units.unit_words` spells it."""

    amount: Scalar
    unit: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base other than ten."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day; `half` is "a", "p" or "" where it is not said."""

    minutes: int
    half: str


@dataclass(frozen=True, slots=True)
class Group:
    """Members in brackets or between commas.

    Attributes:
        kind: "set" in braces, "list" without brackets (order does not matter in either), "union" of intervals and sets,
            or the two brackets of a tuple or interval, as in "(]".
        items: the members.
    """

    kind: str
    items: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of expressions."""

    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of relations between expressions, as text."""

    text: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """A value, values or an interval for one name: `x = 5`, `f(x) = 2x`, `1 < x < 2`, `x = 1, 2`.

    Attributes:
        name: of the variable, function or segment.
        item: the value.
        text: the relation as it was written, "" for several.
    """

    name: str
    item: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A choice letter together with the value of that choice."""

    letter: str
    item: Kind


@dataclass(frozen=True, slots=True)
class Words:
    """Text. `number` is the amount that a phrase states, when it states one."""

    text: str
    number: Scalar | Quantity | None = None


Kind = Scalar | Quantity | Based | Clock | Group | Matrix | Relation | Assigned | Labelled | Words

Inner = Callable[[str], Kind]
"""Reads a part of an answer; the depth of parts in parts is limited."""


def read_scalar(text: str) -> Scalar | None:
    """The expression that a normalised text is; None when it is none."""
    value = number(text)
    if value is not None:
        return Scalar(text, ("num", value), value, "." in text)
    tree = parse(text)
    return None if tree is None else Scalar(text, tree, rational(tree), bool(re.search(r"\d\.|\.\d", text)))
