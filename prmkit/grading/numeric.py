"""Values of expression trees at fixed places of their variables, with many digits and a bound on the error.

Two expressions are equal when their values agree at every place to within the error bounds, first with 40 digits and,
where they do, with 400. Places depend on the names of variables only, and are transcendental for all that matters here:
polynomials, roots and elementary functions that agree there agree everywhere they are defined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import mpmath

from prmkit.grading.scalar import Tree

__all__ = ["BeyondLimitsError", "UndefinedError", "equal_everywhere", "proportional", "value_at"]

DIGITS = (40, 400)
PLACES = 4
_MAX_EXPONENT = 1 << 20
"""Binary exponents of values that are computed with; larger ones are beyond the limits."""

Value = tuple[Any, Any]  # a complex number and a bound on its error


class BeyondLimitsError(Exception):
    """A value too large to compute with."""


class UndefinedError(Exception):
    """No value at this place."""


def value_at(tree: Tree, place: int) -> Value:
    """The value of a tree at one of the `PLACES`, with the precision that mpmath is set to."""
    try:
        value, error = _value(tree, place)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, mpmath.libmp.NoConvergence) as fault:
        raise UndefinedError from fault
    if not mpmath.isfinite(value):
        raise UndefinedError
    return value, error


def equal_everywhere(first: Tree, second: Tree) -> bool:
    """True if the values agree at every place where they are defined, and they are defined at the same ones."""
    return _agree(lambda place: [value_at(tree, place) for tree in (first, second)], _same)


def proportional(first: Tree, second: Tree, positive: bool) -> bool:
    """True if one is a constant multiple of the other, not zero and, if so asked, positive."""
    ratios: list[Value] = []

    def ratio(place: int) -> list[Value]:
        left, right = (value_at(tree, place) for tree in (first, second))
        if abs(left[0]) <= left[1] or abs(right[0]) <= right[1]:
            raise UndefinedError
        ratios.append(_divide(left, right))
        return [ratios[-1], ratios[0]]

    def fits(values: list[Value]) -> bool:
        constant = values[0]
        sign = not positive or (abs(mpmath.im(constant[0])) <= _slack(constant) and mpmath.re(constant[0]) > 0)
        return bool(sign) and _same(values)

    return _agree(ratio, fits)


def _agree(values: Callable[[int], list[Value]], fits: Callable[[list[Value]], bool]) -> bool:
    for digits in DIGITS:
        with mpmath.workdps(digits):
            defined = 0
            for place in range(PLACES):
                try:
                    found = values(place)
                except UndefinedError:
                    continue
                defined += 1
                if not fits(found):
                    return False
            if not defined:
                return False
    return True


def _same(values: list[Value]) -> bool:
    (left, left_error), (right, right_error) = values
    return bool(abs(left - right) <= 1000 * (left_error + right_error))


def _slack(value: Value) -> Any:
    return 1000 * value[1]


def _place(name: str, place: int) -> Any:
    """Where a variable stands: positive numbers around 1, one set of them per place; the last place is negative."""
    digest = hashlib.sha256(f"{name} {place}".encode()).digest()
    number = mpmath.mpf(int.from_bytes(digest, "big")) / (mpmath.mpf(2) ** 256)
    value = mpmath.sqrt(number + mpmath.mpf(3) / 7) * mpmath.pi / 2
    return -value if place == PLACES - 1 else value


def _checked(value: Any) -> Any:
    for part in (mpmath.re(value), mpmath.im(value)):
        if mpmath.isfinite(part) and part and abs(mpmath.mag(part)) > _MAX_EXPONENT:
            raise BeyondLimitsError
    return value


def _rounded(value: Any, error: Any) -> Value:
    value = _checked(value)
    return value, error + abs(value) * mpmath.eps


def _divide(left: Value, right: Value) -> Value:
    (a, error_a), (b, error_b) = left, right
    if abs(b) <= 1000 * error_b:
        raise UndefinedError
    quotient = a / b
    return _rounded(quotient, (error_a + abs(quotient) * error_b) / abs(b))


def _value(tree: Tree, place: int) -> Value:
    match tree:
        case ("num", number):
            return _rounded(mpmath.mpf(number.numerator) / number.denominator, mpmath.mpf(0))
        case ("sym", name):
            return _named(name, place)
        case ("neg", part):
            value, error = _value(part, place)
            return -value, error
        case ("pow", left, right):
            base, exponent = _value(left, place), _value(right, place)
            if exponent[0] != mpmath.nint(mpmath.re(exponent[0])):
                _expect_real(base[0], place)
            return _power(base, exponent)
        case ("fn", name, *arguments):
            values = [_value(argument, place) for argument in arguments]
            if name in ("ln", "sqrt"):
                _expect_real(values[0][0], place)
            return _applied(name, values)
        case (operation, left, right):
            return _OPERATIONS[operation](_value(left, place), _value(right, place))
    raise UndefinedError


def _named(name: str, place: int) -> Value:
    if name == "i":
        return mpmath.mpc(0, 1), mpmath.mpf(0)
    constant = {"\\pi": mpmath.pi, "e": mpmath.e}.get(name)
    return _rounded(_place(name, place) if constant is None else +constant, mpmath.mpf(0))


def _add(left: Value, right: Value) -> Value:
    (a, error_a), (b, error_b) = left, right
    return _rounded(a + b, error_a + error_b + (abs(a) + abs(b)) * mpmath.eps)


def _multiply(left: Value, right: Value) -> Value:
    (a, error_a), (b, error_b) = left, right
    return _rounded(a * b, abs(a) * error_b + abs(b) * error_a)


_OPERATIONS: dict[str, Callable[[Value, Value], Value]] = {"add": _add, "mul": _multiply, "div": _divide}


def _expect_real(value: Any, place: int) -> None:
    """At the place where variables are negative, roots and logarithms of negative numbers have no value: `\\ln xy` is
    `\\ln x+\\ln y` where both are real."""
    if place == PLACES - 1 and mpmath.re(value) < 0:
        raise UndefinedError


def _power(base: Value, exponent: Value) -> Value:
    if mpmath.isfinite(base[0]) and base[0] and exponent[0]:
        size = abs(mpmath.log(abs(base[0]), 2)) * abs(exponent[0])
        if size > _MAX_EXPONENT:
            raise BeyondLimitsError
    if abs(base[0]) <= 1000 * base[1]:
        if mpmath.re(exponent[0]) <= 0:
            raise UndefinedError
        return mpmath.mpf(0), mpmath.power(1001 * base[1], mpmath.re(exponent[0])) if base[1] else base[1]
    value = mpmath.power(base[0], exponent[0])
    by_base = abs(value) * abs(exponent[0]) * base[1] / abs(base[0])
    by_exponent = abs(value) * abs(mpmath.log(base[0])) * exponent[1]
    return _rounded(value, 2 * (by_base + by_exponent) + abs(value) * abs(exponent[0]) * mpmath.eps)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "asin": mpmath.asin, "acos": mpmath.acos, "atan": mpmath.atan, "sinh": mpmath.sinh, "cosh": mpmath.cosh,
    "tanh": mpmath.tanh, "ln": mpmath.log, "exp": mpmath.exp, "sqrt": mpmath.sqrt, "abs": abs,
    "factorial": mpmath.factorial, "binom": mpmath.binomial,
}  # fmt: skip
_STEPS: dict[str, Callable[[Any], Any]] = {"floor": mpmath.floor, "ceil": mpmath.ceil}


def _applied(name: str, arguments: list[Value]) -> Value:
    if name.startswith("call "):
        return _called(name, arguments)
    if name in _STEPS:
        return _stepped(name, arguments[0])
    if name in ("max", "min"):
        return (max if name == "max" else min)(arguments, key=lambda value: mpmath.re(value[0]))
    function = _FUNCTIONS.get(name)
    if function is None:
        raise UndefinedError
    values = [value for value, _ in arguments]
    if max(mpmath.mag(value) if value else 0 for value in values) > (
        20 if name in ("factorial", "binom", "exp") else 60
    ):
        raise BeyondLimitsError
    result = function(*values)
    spread = mpmath.mpf(0)
    for index, (value, error) in enumerate(arguments):
        step = max(error, abs(value) * mpmath.eps)
        moved = [*values[:index], value + step, *values[index + 1 :]]
        spread += abs(function(*moved) - result)
    return _rounded(result, 2 * spread)


def _stepped(name: str, argument: Value) -> Value:
    """A rounding function; its argument is a whole number where it is one within its error."""
    value, error = argument
    near = mpmath.nint(mpmath.re(value))
    if abs(value - near) <= 1000 * error:
        return near, mpmath.mpf(0)
    return _STEPS[name](value), mpmath.mpf(0)


def _called(name: str, arguments: list[Value]) -> Value:
    """An unknown function: a smooth one whose values depend on its name and arguments."""
    total: Value = (_place(name, 0), mpmath.mpf(0))
    for index, argument in enumerate(arguments):
        value, error = _applied("atan", [argument])
        factor = _place(f"{name} {index}", 1)
        total = _rounded(total[0] + factor * value, total[1] + factor * error)
    return _applied("sin", [total])
