"""Exact values of expression trees that are rational, in bounded time; everything else is left to the workers."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from prmkit.grading.scalar import Tree

__all__ = ["rational"]

_MAX_BITS = 60_000
"""Longer exact values are not computed here."""
_MAX_FACTORIAL = 5000


class _NotRationalError(Exception):
    """The value is irrational, symbolic, undefined or too long."""


@lru_cache(maxsize=16384)
def rational(tree: Tree) -> Fraction | None:
    """The value of a tree as a fraction; None when it has none, or none that is found by arithmetic."""
    try:
        return _value(tree)
    except (_NotRationalError, ZeroDivisionError, RecursionError):
        return None


def _value(tree: Tree) -> Fraction:
    match tree:
        case ("num", value):
            result: Fraction = value
        case ("neg", part):
            result = -_value(part)
        case ("add", left, right):
            result = _value(left) + _value(right)
        case ("mul", left, right):
            result = _value(left) * _value(right)
        case ("div", left, right):
            result = _value(left) / _value(right)
        case ("pow", left, right):
            result = _power(_value(left), _value(right))
        case ("fn", name, *arguments):
            result = _function(name, [_value(argument) for argument in arguments])
        case _:
            raise _NotRationalError
    if _bits(result) > _MAX_BITS:
        raise _NotRationalError
    return result


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if base < 0 or exponent.denominator > 64:
            raise _NotRationalError
        base = Fraction(_root(base.numerator, exponent.denominator), _root(base.denominator, exponent.denominator))
    power = exponent.numerator
    if abs(power) * max(1, _bits(base)) > _MAX_BITS or (base == 0 and power <= 0):
        raise _NotRationalError
    return base**power


def _root(value: int, order: int) -> int:
    if value > 1 << 2000:
        raise _NotRationalError
    low, high = 0, 1 << (value.bit_length() // order + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**order < value else (low, middle)
    if low**order != value:
        raise _NotRationalError
    return low


def _function(name: str, values: list[Fraction]) -> Fraction:
    first = values[0]
    whole = all(value.denominator == 1 for value in values)
    match name:
        case "sqrt":
            return _power(first, Fraction(1, 2))
        case "abs":
            return abs(first)
        case "floor":
            return Fraction(math.floor(first))
        case "ceil":
            return Fraction(math.ceil(first))
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "factorial" if whole and 0 <= first <= _MAX_FACTORIAL:
            return Fraction(math.factorial(int(first)))
        case "binom" if whole and 0 <= values[1] <= first <= _MAX_FACTORIAL:
            return Fraction(math.comb(int(first), int(values[1])))
        case "gcd" if whole:
            return Fraction(math.gcd(*map(int, values)))
        case "lcm" if whole:
            return Fraction(math.lcm(*map(int, values)))
    raise _NotRationalError
