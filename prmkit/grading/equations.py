r"""Equations and inequalities, and the values and intervals that they give one name."""

from __future__ import annotations

import re

from prmkit.grading.kinds import Assigned, Group, Inner, Kind, Quantity, Relation, Scalar, Words, read_scalar
from prmkit.grading.relations import FLIPPED, split_relation, split_top
from prmkit.grading.scalar import symbols
from prmkit.grading.tokens import FUNCTIONS

__all__ = ["read_relation"]

_NAME_OF_SIDE = re.compile(
    r"[A-Z]{2,4}|\\angle ?[A-Z]{1,3}|\\text\{[^{}]+\}|[A-Za-z](?:_\{?\w+\}?)?\([a-z](?:,[a-z])*\)"
    r"|\([a-zA-Z](?:, ?[a-zA-Z]){1,3}\)|[A-Z]?[a-z]{3,}(?: [a-z]+)*"
)


def read_relation(text: str, inner: Inner) -> Kind | None:
    """An equation or inequality, or the value of a name; None for a text without a sign of relation."""
    before = split_top(text, re.compile(r"\\approx(?![a-zA-Z])"))
    if before is not None and before[1]:
        return inner(before[0][0]) if before[0][0] else None
    found = split_relation(text)
    if found is None:
        return None
    sides, signs = found
    if all(sign == "=" for sign in signs):
        return _equation(text, sides, inner)
    if signs == ["\\in"]:
        name = _name(sides[0])
        return Assigned(name, inner(sides[1]), "") if name else Words(text)
    if any(read_scalar(side) is None for side in sides) or "\\in" in signs:
        return None
    return _interval(text, sides, signs) or Relation(text)


def _name(side: str) -> str | None:
    scalar = read_scalar(side)
    if scalar is not None and scalar.tree[0] == "sym" and scalar.tree[1] not in ("\\pi", "e", "i"):
        return str(scalar.tree[1])
    return side if _NAME_OF_SIDE.fullmatch(side) and side.lower() not in FUNCTIONS else None


def _equation(text: str, sides: list[str], inner: Inner) -> Kind | None:
    name = _name(sides[0])
    values = [inner(side) for side in (sides[1:] if name else sides)]
    constant = {value.value for value in values if isinstance(value, Scalar)}
    amounts = [value.amount if isinstance(value, Quantity) else value for value in values]
    constant = {amount.value if isinstance(amount, Scalar) else None for amount in amounts}
    one_value = len(constant) == 1 and None not in constant
    if name is None:
        other = _name(sides[-1])
        if (
            len(sides) == 2
            and other
            and isinstance(values[0], Scalar)
            and not symbols(values[0].tree) - {"\\pi", "e", "i"}
        ):
            return Assigned(other, values[0], text)
        if one_value and sides[0] != sides[-1]:
            return values[-1]
    elif len(values) == 1 or one_value:
        value = values[-1]
        if not (isinstance(value, Scalar) and name in symbols(value.tree)):
            return Assigned(name, value, text)
    return Relation(text) if all(read_scalar(side) is not None for side in sides) else None


def _interval(text: str, sides: list[str], signs: list[str]) -> Assigned | None:
    """The interval of one name between constants."""
    if signs[0] in FLIPPED:
        sides, signs = sides[::-1], [FLIPPED.get(sign, "") for sign in signs[::-1]]
    if any(sign not in ("<", "\\leq") for sign in signs) or len(sides) > 3:
        return None
    index = next((i for i, side in enumerate(sides) if _name(side)), None)
    if index is None or (len(sides) == 3 and index != 1):
        return None
    infinity = Scalar("\\infty", ("sym", "\\infty"), None, False)
    low = read_scalar(sides[index - 1]) if index else Scalar("-\\infty", ("neg", infinity.tree), None, False)
    high = read_scalar(sides[index + 1]) if index + 1 < len(sides) else infinity
    if low is None or high is None or any(symbols(end.tree) - {"\\pi", "e", "\\infty"} for end in (low, high)):
        return None
    opening = "[" if index and signs[index - 1] == "\\leq" else "("
    closing = "]" if index + 1 < len(sides) and signs[index] == "\\leq" else ")"
    return Assigned(str(_name(sides[index])), Group(opening + closing, (low, high)), text)
