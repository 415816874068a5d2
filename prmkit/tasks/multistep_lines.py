"""The written working of multistep arithmetic: what the next right line is, given the question and the lines so far.

A question `((a o b o c o d) o (e o f o g o h)) =` is read from left to right, one number a line. Line by line the
working keeps what stands before the current product, summed up, and the current product: two signed terms at most. So a
line follows from the line before it and one number of the question, by table look-ups and copying. The letter at its
head says which number that is: `a=` for the first, `b=` for the second. Numbers are written **ones first** (45 is
`54`), because then every digit of a sum needs only digits written already, and never a carry from digits still to come
(Lee et al. 2023, arXiv 2307.03381, measure what that is worth to a small transformer). Only the last line is in the
usual order. For `((-1 + 2 + 2 * 9 * 5) * (-2 + -4 + -4 * -7)) =`, which is 91 * 22:

    a=-1
    b=-1+2
    c=+1+2               + 2: what stood there is summed up, and 2 begins a product
    d=+1+81              * 9
    e=81*5=04,90         * 5: a product of several digits is worked out first, digit by digit, ones first, each with its
    e=+1+09              carry: 8*5 = 40, 1*5 + 4 = 09
    A=+19                the left side: 1 + 90
    f=*-2                the right side begins; * stands between the sides
    g=-2-4
    h=-6-4
    i=-6+82
    B=+22                the right side
    C=+19*22             A o B; for + and - a sum of two signed terms
    C=19*2=20,81         91 * 2 = 182
    C=19*02=0,20,81      91 * 20 = 1820; `02` is 20
    C=281+0281=2002      182 + 1820 = 2002
    D=+2002
    =2002                the answer, in the usual order

A line is judged by the lines before it *as written*: what follows rightly from a wrong line is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from prmkit.errors import DataError

__all__ = ["MAX_OPERANDS", "Expression", "evaluate", "next_line", "parse_expression", "solution_lines"]

MAX_OPERANDS = 26
"""Numbers that a question may have: each has a letter of its own."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SIDE = r"-?\d(?: [+\-*] -?\d)+"
_QUESTION = re.compile(rf"\(\(({_SIDE})\) ([+\-*]) \(({_SIDE})\)\) =")
_OPERAND = re.compile(r"(?: ([+\-*]) )?(-?)(\d)")

_TERMS = re.compile(r"([a-zABCD])=([+\-*](?=[+-]\d+\Z))?([+-]\d+)(?:([+-]\d+)|\*(-?\d+))?")
_PRODUCT = re.compile(r"([a-zC])=(\d+)\*(0*\d)=((?:0,)*)(\d\d(?:,\d\d)*)")
_SUM = re.compile(r"C=\d+\+\d+=(\d+)")


class Number(NamedTuple):
    """A sign and a magnitude; -0 is a number of its own here, for signs are worked out before digits are."""

    negative: bool
    magnitude: int

    @property
    def text(self) -> str:
        return f"{'-' if self.negative else '+'}{_reversed(self.magnitude)}"

    @property
    def value(self) -> int:
        return -self.magnitude if self.negative else self.magnitude

    def times(self, other: Number, magnitude: int) -> Number:
        return Number(self.negative != other.negative, magnitude)

    def plus(self, other: Number) -> Number:
        if self.negative == other.negative:
            return Number(self.negative, self.magnitude + other.magnitude)
        larger = self if self.magnitude > other.magnitude else other
        return Number(larger.negative and self.magnitude != other.magnitude, abs(self.magnitude - other.magnitude))


class Operand(NamedTuple):
    """A number of the question and whether it multiplies what stands before it; a minus before it is in its sign."""

    multiplies: bool
    number: Number


class Expression(NamedTuple):
    """A parsed question: its numbers from left to right, how many of them stand on the left, and the operator between
    the sides."""

    operands: tuple[Operand, ...]
    left: int
    operator: str


class _Terms(NamedTuple):
    """A line of terms: what is summed up so far (None at first), the current product, in line C its factor, and in the
    first line of the right side the operator between the sides."""

    label: str
    summed: Number | None
    product: Number
    factor: Number | None = None
    outer: str | None = None


class _Product(NamedTuple):
    """A line that multiplies by one digit in its place; `result` as its pairs of digit and carry say."""

    label: str
    place: int
    result: int


def parse_expression(question: str) -> Expression:
    """Raises DataError for a text that is not a question of this shape (blanks at the ends are ignored)."""
    match = _QUESTION.fullmatch(question.strip())
    if match is None:
        raise DataError(f"multistep_arithmetic: {question!r} is not a question such as '((1 + -2 * 3) - (4 - 5)) ='")
    left, right = (_operands(side) for side in (match[1], match[3]))
    if len(left) + len(right) > MAX_OPERANDS:
        raise DataError(f"multistep_arithmetic: {question!r} has more than {MAX_OPERANDS} numbers")
    return Expression(left + right, len(left), match[2])


def _operands(side: str) -> tuple[Operand, ...]:
    return tuple(
        Operand(operator == "*", Number(bool(minus) != (operator == "-"), int(digit)))
        for operator, minus, digit in _OPERAND.findall(side)
    )


def evaluate(question: str) -> int:
    """The value of a question. Raises DataError for a text that is not a question."""
    expression = parse_expression(question)
    left, right = (_total(side) for side in _sides(expression))
    if expression.operator == "*":
        return left * right
    return left + right if expression.operator == "+" else left - right


def _sides(expression: Expression) -> tuple[Sequence[Operand], Sequence[Operand]]:
    return expression.operands[: expression.left], expression.operands[expression.left :]


def _total(side: Sequence[Operand]) -> int:
    total, product = 0, 0
    for multiplies, number in side:
        if multiplies:
            product *= number.value
        else:
            total, product = total + product, number.value
    return total + product


# -- lines and numbers as text -----------------------------------------------------------------------------------------


def _reversed(magnitude: int) -> str:
    return str(magnitude)[::-1]


def _magnitude(text: str) -> int:
    return int(text[::-1])


def _number(text: str) -> Number:
    return Number(text[0] == "-", _magnitude(text.lstrip("+-")))


def _parse_terms(line: str) -> _Terms | None:
    match = _TERMS.fullmatch(line)
    if match is None:
        return None
    label, outer, first, second, factor = match.groups()
    if second is None:
        return _Terms(label, None, _number(first), _number(factor) if factor else None, outer)
    return _Terms(label, _number(first), _number(second))


def _parse_product(line: str) -> _Product | None:
    match = _PRODUCT.fullmatch(line)
    if match is None or len(match[3]) - 1 != len(match[4]) // 2:
        return None
    pairs = match[5].split(",")
    place = len(match[3]) - 1
    return _Product(match[1], place, _magnitude("".join(pair[0] for pair in pairs) + pairs[-1][1]) * 10**place)


def _parse_sum(line: str) -> int | None:
    match = _SUM.fullmatch(line)
    return None if match is None else _magnitude(match[1])


def _terms_line(label: str, summed: Number | None, product: Number) -> str:
    return f"{label}={summed.text if summed else ''}{product.text}"


def _product_line(label: str, multiplicand: int, digit: int, place: int) -> str:
    """`multiplicand * digit * 10**place`: a 0 for every place shifted, then digit and carry of every place."""
    groups = ["0"] * place
    carry = 0
    for figure in _reversed(multiplicand):
        carry, kept = divmod(int(figure) * digit + carry, 10)
        groups.append(f"{kept}{carry}")
    return f"{label}={_reversed(multiplicand)}*{'0' * place}{digit}={','.join(groups)}"


# -- what follows what -------------------------------------------------------------------------------------------------


def next_line(expression: Expression, lines: Sequence[str]) -> str | None:
    """The line that rightly follows `lines` as written; None after the answer, and where nothing can follow because
    the last line, or one it builds on, makes no sense."""
    if not lines:
        return _terms_line("a", None, expression.operands[0].number)
    last = lines[-1]
    terms = _parse_terms(last)
    if terms is not None:
        return _after_terms(expression, lines, terms)
    product = _parse_product(last)
    if product is not None and product.label != "C":
        return _after_side_product(expression, lines, product)
    if product is not None or _parse_sum(last) is not None:
        return _after_long_product(lines)
    return None


def _after_terms(expression: Expression, lines: Sequence[str], terms: _Terms) -> str | None:
    label, summed, product, factor, _ = terms
    total = product if summed is None else summed.plus(product)
    if label == "D":
        return f"={product.value}" if summed is None else None
    if label == "C":
        if factor is None:
            return _terms_line("D", None, total)
        return _product_line("C", product.magnitude, factor.magnitude % 10, 0)
    if label in "AB":
        if summed is not None:
            return None
        return _start_of_right(expression) if label == "A" else _combination(lines, product)
    following = _LETTERS.index(label) + 1
    if following > len(expression.operands):
        return None
    if following in (expression.left, len(expression.operands)):
        return _terms_line("A" if following == expression.left else "B", None, total)
    multiplies, number = expression.operands[following]
    letter = _LETTERS[following]
    if not multiplies:
        return _terms_line(letter, total, number)
    if product.magnitude > 9:
        return _product_line(letter, product.magnitude, number.magnitude, 0)
    return _terms_line(letter, summed, product.times(number, product.magnitude * number.magnitude))


def _start_of_right(expression: Expression) -> str:
    return f"{_LETTERS[expression.left]}={expression.operator}{expression.operands[expression.left].number.text}"


def _combination(lines: Sequence[str], right: Number) -> str | None:
    """The line `C=` of A o B, from the lines of A and of the operator as written and the value of B."""
    written = [terms for line in lines if (terms := _parse_terms(line)) is not None]
    left = next((terms for terms in written if terms.label == "A"), None)
    operator = next((terms.outer for terms in written if terms.outer is not None), None)
    if left is None or left.summed is not None or left.factor is not None or operator is None:
        return None
    if operator == "*":
        return f"C={left.product.text}*{'-' if right.negative else ''}{_reversed(right.magnitude)}"
    return _terms_line("C", left.product, Number(right.negative != (operator == "-"), right.magnitude))


def _after_side_product(expression: Expression, lines: Sequence[str], product: _Product) -> str | None:
    """What follows `e=81*5=04,90`: line e of terms, with the product in its place."""
    before = _parse_terms(lines[-2]) if len(lines) > 1 else None
    index = _LETTERS.index(product.label)
    if before is None or before.factor is not None or not 0 < index < len(expression.operands):
        return None
    if before.label != _LETTERS[index - 1]:
        return None
    return _terms_line(
        product.label, before.summed, before.product.times(expression.operands[index].number, product.result)
    )


def _after_long_product(lines: Sequence[str]) -> str | None:
    """What follows a line that multiplies by one digit of B, or one that adds two such products."""
    working: list[str] = []
    terms: _Terms | None = None
    for line in reversed(lines):
        terms = _parse_terms(line)
        if terms is not None:
            break
        working.insert(0, line)
    if terms is None or terms.label != "C" or terms.factor is None:
        return None
    products = [product for line in working if (product := _parse_product(line)) is not None]
    if not products:
        return None
    latest = products[-1]
    total = latest.result if len(products) == 1 else _parse_sum(working[-1])
    if total is None:
        before = products[0].result if len(products) == 2 else _parse_sum(working[-2])
        if before is None:
            return None
        return f"C={_reversed(before)}+{_reversed(latest.result)}={_reversed(before + latest.result)}"
    digits = _reversed(terms.factor.magnitude)
    place = latest.place + 1
    if place < len(digits):
        return _product_line("C", terms.product.magnitude, int(digits[place]), place)
    return _terms_line("D", None, terms.product.times(terms.factor, total))


def solution_lines(expression: Expression) -> list[str]:
    """The whole working, answer line included."""
    lines: list[str] = []
    line = next_line(expression, lines)
    while line is not None:
        lines.append(line)
        line = next_line(expression, lines)
    return lines
