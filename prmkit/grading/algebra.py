"""Comparison of two texts that arithmetic with fractions does not decide: expressions, equations, inequalities."""

from __future__ import annotations

import math
from typing import Any, Protocol

import mpmath

from prmkit.grading.numeric import DIGITS, UndefinedError, equal_everywhere, proportional, value_at
from prmkit.grading.relations import FLIPPED, split_relation
from prmkit.grading.scalar import Tree, parse

__all__ = ["Reader", "compare", "probe"]


class Reader(Protocol):
    """Another engine, for texts that `parse` does not read."""

    def can_read(self, text: str) -> bool: ...

    def compare(self, gold: str, answer: str) -> bool: ...


def probe(text: str, engine: Reader | None) -> list[float] | bool:
    """The value of an expression at the first place, with the variables there; see `prmkit.grading.worker`."""
    tree = parse(text)
    if tree is None:
        return split_relation(text) is not None or (engine is not None and engine.can_read(text))
    with mpmath.workdps(DIGITS[0]):
        try:
            found, error = value_at(tree, 0)
        except UndefinedError:
            return True
        value: Any = mpmath.mpc(found)
        if error > abs(value) * 1e-12:  # a difference of nearly equal numbers: more digits are needed
            return True
    parts = [float(value.real), float(value.imag)]
    return parts if all(map(math.isfinite, parts)) else True


def compare(gold: str, answer: str, engine: Reader | None) -> bool:
    """True if the texts are equal expressions, or relations with the same solutions by a constant factor."""
    first, second = parse(gold), parse(answer)
    if first is not None and second is not None:
        return equal_everywhere(first, second)
    links = [_links(text) for text in (gold, answer)]
    if links[0] is not None and links[1] is not None:
        return _same_links(links[0], links[1])
    return engine is not None and engine.compare(gold, answer)


def _links(text: str) -> list[tuple[str, Tree]] | None:
    """The relations of a chain, each as a sign and the difference of its sides."""
    found = split_relation(text)
    if found is None:
        return None
    sides = [parse(side) for side in found[0]]
    links = []
    for left, right, sign in zip(sides, sides[1:], found[1], strict=False):
        if left is None or right is None or sign == "\\in":
            return None
        low, high = (right, left) if sign in FLIPPED else (left, right)
        links.append((FLIPPED.get(sign, sign), ("add", low, ("neg", high))))
    return links


def _same_links(links: list[tuple[str, Tree]], others: list[tuple[str, Tree]]) -> bool:
    free = list(others)
    if len(links) != len(free):
        return False
    for sign, tree in links:
        directed = sign in ("<", "\\leq")
        partner = next((link for link in free if link[0] == sign and proportional(tree, link[1], directed)), None)
        if partner is None:
            return False
        free.remove(partner)
    return True
