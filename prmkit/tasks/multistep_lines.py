"""The written working of multistep arithmetic: what the next right line is, given the question and the lines so far.

A question `((a o b o c o d) o (e o f o g o h)) =` is worked out one small operation at a time, so that every line can
be had from one or two lines before it by table look-ups and copying. Numbers in the working are written **ones first**
(45 is `54`), because then every digit of a sum needs only the digits written already and never a carry from digits
still to come (Lee et al. 2023, arXiv 2307.03381, measure what that is worth to a small transformer). The last line
gives the answer in the usual order. For `((-1 + 2 + 2 * 9 * 5) * (-2 + -4 + -4 * -7)) =`, which is 91 * 22:

    A=-1+2+81*5          the left side as signed terms; the first product of each term is worked out: 2 * 9 = 18
    81*5=04,90           18 * 5: digit by digit, ones first, each with its carry: 8*5 = 40, 1*5 + 4 = 09
    A=-1+2+09            90 takes the place of the product
    A=+1+09              then the two leftmost terms are added, until one is left
    A=+19
    B=-2-4+82            the right side in the same way
    B=-6+82
    B=+22
    C=+19*22             A o B; for o = + or - a sum of two signed terms, worked out like those above
    19*2=20,81           91 * 2 = 182
    19*02=0,20,81        91 * 20 = 1820; the multiplier `02` is 20
    281+0281=2002        182 + 1820 = 2002
    C=+2002
    =2002                the answer, in the usual order

A line is judged by the lines before it *as written*: what follows rightly from a wrong line is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from prmkit.errors import DataError

__all__ = ["Expression", "evaluate", "next_line", "parse_expression", "solution_lines"]

_SIDE = r"-?\d(?: [+\-*] -?\d)+"
_QUESTION = re.compile(rf"\(\(({_SIDE})\) ([+\-*]) \(({_SIDE})\)\) =")
_OPERAND = re.compile(r"(?: ([+\-*]) )?(-?)(\d)")

_TERMS = re.compile(r"([ABC])=((?:[+-]\d+(?:\*-?\d+)*)+)")
_TERM = re.compile(r"([+-])(\d+)((?:\*-?\d+)*)")
_FACTOR = re.compile(r"\*(-?)(\d+)")
_PRODUCT = re.compile(r"(\d+)\*(\d+)=((?:0,)*)(\d\d(?:,\d\d)*)")
_SUM = re.compile(r"(\d+)\+(\d+)=(\d+)")


class Number(NamedTuple):
    """A sign and a magnitude; -0 is a number of its own here, for signs are worked out before digits are."""

    negative: bool
    magnitude: int

    @property
    def text(self) -> str:
        return f"{'-' if self.negative else '+'}{_reversed(self.magnitude)}"


class Term(NamedTuple):
    """A number and the factors it is still to be multiplied by."""

    number: Number
    factors: tuple[Number, ...] = ()

    @property
    def text(self) -> str:
        tail = "".join(f"*{'-' if f.negative else ''}{_reversed(f.magnitude)}" for f in self.factors)
        return self.number.text + tail


class Expression(NamedTuple):
    """A parsed question: the terms of both sides, each with its first product worked out, and the operator between."""

    left: tuple[Term, ...]
    operator: str
    right: tuple[Term, ...]


class _Terms(NamedTuple):
    """A line `A=...`, `B=...` or `C=...`."""

    label: str
    terms: tuple[Term, ...]


class _Product(NamedTuple):
    """A line that multiplies by one digit; `result` as its pairs of digit and carry say, shifted."""

    shift: int
    result: int


def _reversed(magnitude: int) -> str:
    return str(magnitude)[::-1]


def _magnitude(text: str) -> int:
    return int(text[::-1])


def parse_expression(question: str) -> Expression:
    """Raises DataError for a text that is not a question of this shape (blanks at the ends are ignored)."""
    match = _QUESTION.fullmatch(question.strip())
    if match is None:
        raise DataError(f"multistep_arithmetic: {question!r} is not a question such as '((1 + -2 * 3) - (4 - 5)) ='")
    return Expression(_side_terms(match[1]), match[2], _side_terms(match[3]))


def _side_terms(side: str) -> tuple[Term, ...]:
    """Signed terms of one side. The first product of each is worked out; later factors wait their turn."""
    chains: list[list[Number]] = []
    for operator, minus, digit in _OPERAND.findall(side):
        number = Number(bool(minus) != (operator == "-"), int(digit))
        if operator == "*":
            chains[-1].append(number)
        else:
            chains.append([number])
    terms = []
    for first, *rest in chains:
        number = _multiplied(first, rest[0], first.magnitude * rest[0].magnitude) if rest else first
        terms.append(Term(number, tuple(rest[1:])))
    return tuple(terms)


def evaluate(question: str) -> int:
    """The value of a question. Raises DataError for a text that is not a question."""
    expression = parse_expression(question)
    left, right = (_value(terms) for terms in (expression.left, expression.right))
    if expression.operator == "*":
        return left * right
    return left + right if expression.operator == "+" else left - right


def _value(terms: tuple[Term, ...]) -> int:
    total = 0
    for number, factors in terms:
        product = _signed(number)
        for factor in factors:
            product *= _signed(factor)
        total += product
    return total


def _signed(number: Number) -> int:
    return -number.magnitude if number.negative else number.magnitude


def _multiplied(left: Number, right: Number, magnitude: int) -> Number:
    return Number(left.negative != right.negative, magnitude)


def _added(left: Number, right: Number) -> Number:
    if left.negative == right.negative:
        return Number(left.negative, left.magnitude + right.magnitude)
    larger = left if left.magnitude > right.magnitude else right
    return Number(larger.negative and left.magnitude != right.magnitude, abs(left.magnitude - right.magnitude))


# -- reading lines -----------------------------------------------------------------------------------------------------


def _parse_terms(line: str) -> _Terms | None:
    match = _TERMS.fullmatch(line)
    if match is None:
        return None
    terms = tuple(
        Term(
            Number(sign == "-", _magnitude(digits)),
            tuple(Number(bool(minus), _magnitude(factor)) for minus, factor in _FACTOR.findall(factors)),
        )
        for sign, digits, factors in _TERM.findall(match[2])
    )
    return _Terms(match[1], terms)


def _parse_product(line: str) -> _Product | None:
    match = _PRODUCT.fullmatch(line)
    if match is None:
        return None
    pairs = match[4].split(",")
    shift = len(match[3]) // 2
    return _Product(shift, _magnitude("".join(pair[0] for pair in pairs) + pairs[-1][1]) * 10**shift)


def _parse_sum(line: str) -> int | None:
    match = _SUM.fullmatch(line)
    return None if match is None else _magnitude(match[3])


# -- writing lines -----------------------------------------------------------------------------------------------------


def _terms_line(label: str, terms: Sequence[Term]) -> str:
    return f"{label}={''.join(term.text for term in terms)}"


def _product_line(multiplicand: int, digit: int, shift: int) -> str:
    """`multiplicand * digit * 10**shift`: a 0 for every place shifted, then digit and carry of every place."""
    groups = ["0"] * shift
    carry = 0
    for place in _reversed(multiplicand):
        carry, kept = divmod(int(place) * digit + carry, 10)
        groups.append(f"{kept}{carry}")
    return f"{_reversed(multiplicand)}*{'0' * shift}{digit}={','.join(groups)}"


def next_line(expression: Expression, lines: Sequence[str]) -> str | None:
    """The line that rightly follows `lines` as written; None after the answer, and where nothing can follow because
    the last line, or one it builds on, makes no sense."""
    if not lines:
        return _terms_line("A", expression.left)
    last = lines[-1]
    written = _parse_terms(last)
    if written is not None:
        return _after_terms(expression, lines, written)
    if _parse_product(last) is None and _parse_sum(last) is None:
        return None
    return _after_working(lines)


def _after_terms(expression: Expression, lines: Sequence[str], written: _Terms) -> str | None:
    label, terms = written
    for number, factors in terms:
        if factors:
            return _product_line(number.magnitude, factors[0].magnitude % 10, 0)
    if len(terms) > 1:
        return _terms_line(label, (Term(_added(terms[0].number, terms[1].number)), *terms[2:]))
    if label == "A":
        return _terms_line("B", expression.right)
    if label == "B":
        return _combination(expression.operator, lines, terms[0].number)
    return f"={_signed(terms[0].number)}"


def _combination(operator: str, lines: Sequence[str], right: Number) -> str | None:
    """The line `C=` of A o B, from the last line of A and the value of B."""
    for line in reversed(lines):
        written = _parse_terms(line)
        if written is None or written.label == "B":
            continue
        left = written.terms[0]
        if written.label != "A" or len(written.terms) > 1 or left.factors:
            return None
        if operator == "*":
            return _terms_line("C", (Term(left.number, (right,)),))
        return _terms_line("C", (left, Term(Number(right.negative != (operator == "-"), right.magnitude))))
    return None


def _after_working(lines: Sequence[str]) -> str | None:
    """What follows a line that multiplies by one digit or adds two such products: it belongs to the first product of
    the last line of terms."""
    working: list[str] = []
    for line in reversed(lines):
        written = _parse_terms(line)
        if written is not None:
            return _continue_product(written, working[::-1])
        working.append(line)
    return None


def _continue_product(written: _Terms, working: Sequence[str]) -> str | None:
    place = next((i for i, term in enumerate(written.terms) if term.factors), None)
    products = [product for line in working if (product := _parse_product(line)) is not None]
    if place is None or not products:
        return None
    number, (factor, *rest) = written.terms[place]
    after = products[-1].result
    total = after if len(products) == 1 else _parse_sum(working[-1])
    if total is None:
        before = products[0].result if len(products) == 2 else _parse_sum(working[-2])
        return None if before is None else f"{_reversed(before)}+{_reversed(after)}={_reversed(before + after)}"
    digits = _reversed(factor.magnitude)
    shift = products[-1].shift + 1
    if shift < len(digits):
        return _product_line(number.magnitude, int(digits[shift]), shift)
    reduced = Term(_multiplied(number, factor, total), tuple(rest))
    return _terms_line(written.label, (*written.terms[:place], reduced, *written.terms[place + 1 :]))


def solution_lines(expression: Expression) -> list[str]:
    """The whole working, answer line included."""
    lines: list[str] = []
    line = next_line(expression, lines)
    while line is not None:
        lines.append(line)
        line = next_line(expression, lines)
    return lines
