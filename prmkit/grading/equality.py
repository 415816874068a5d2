"""When an answer of one kind equals a gold answer of another. docs/grading.md has the rules in words.

`Comparison.equal` has a direction: the gold answer decides which units, names and letters have to be there. With
`votes` the bridges between kinds are off and the relation is symmetric and transitive.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from prmkit.grading.kinds import (
    Assigned,
    Based,
    Clock,
    Group,
    Kind,
    Labelled,
    Matrix,
    Quantity,
    Relation,
    Scalar,
    Words,
)
from prmkit.grading.reading import read
from prmkit.grading.relations import split_members
from prmkit.grading.units import IGNORED, convert

__all__ = ["ENGINE", "Comparison"]

_MAX_ITEMS = 32
ENGINE = re.compile(r"\\(?:sum|int|prod|lim|pmod|bmod|det|overline|Re|Im|arg)(?![a-zA-Z])")
"""Commands that only math-verify understands; texts with one of them are left to it."""


@dataclass(frozen=True)
class Comparison:
    """Rules for one comparison.

    Attributes:
        known: verdict on two expressions or relations that arithmetic does not decide.
        tolerance: relative difference allowed between real numbers of which one is written with a decimal point.
        real: value of an expression without variables, None when it has none; used with a tolerance only.
        votes: compare two answers with each other: no bridges between kinds, no tolerance.
    """

    known: Callable[[tuple[str, str]], bool]
    tolerance: float = 0.0
    real: Callable[[str], float | None] = lambda _: None
    votes: bool = False

    def equal(self, gold: Kind, answer: Kind) -> bool:
        """True if the answer is equal to the gold answer."""
        if gold == answer:
            return gold != Words("")
        if type(gold) is type(answer):
            return self._same_kind(gold, answer)
        if self.votes:
            return self._plain(gold, answer) or self._related(gold, answer)
        return self._bridged(gold, answer)

    # -- the same kind ----------------------------------------------------------------------------------------------

    def _same_kind(self, gold: Kind, answer: Kind) -> bool:
        match gold, answer:
            case Scalar(), Scalar():
                return self._scalars(gold, answer)
            case Quantity(), Quantity():
                return self._quantities(gold, answer)
            case Group(), Group():
                return self._groups(gold, answer)
            case Matrix(), Matrix():
                return [len(row) for row in gold.rows] == [len(row) for row in answer.rows] and all(
                    self._scalars(a, b)
                    for row, other in zip(gold.rows, answer.rows, strict=True)
                    for a, b in zip(row, other, strict=True)
                )
            case Assigned(), Assigned():
                return (gold.name == answer.name and self.equal(gold.item, answer.item)) or self._related(gold, answer)
            case Relation(), Relation():
                return self._related(gold, answer)
            case Labelled(), Labelled():
                return gold.letter == answer.letter and self.equal(gold.item, answer.item)
            case Clock(), Clock():
                halves = {gold.half, answer.half} - {""}
                return gold.minutes == answer.minutes and len(halves) < 2 and not self.votes
            case Words(), Words():
                if gold.text == answer.text:
                    return bool(gold.text)
                return self._by_engine(gold.text, answer.text)
        return False

    def _scalars(self, gold: Scalar, answer: Scalar) -> bool:
        if gold.text == answer.text:
            return True
        inexact = self.tolerance > 0.0 and not self.votes and (gold.decimal or answer.decimal)
        if gold.value is not None and answer.value is not None:
            return gold.value == answer.value or (inexact and self._near(gold.value, answer.value))
        if self.known(_ordered(gold.text, answer.text)):
            return True
        if not inexact:
            return False
        first, second = self.real(gold.text), self.real(answer.text)
        return first is not None and second is not None and self._near(Fraction(first), Fraction(second))

    def _near(self, gold: Fraction, answer: Fraction) -> bool:
        return abs(gold - answer) <= Fraction(self.tolerance) * abs(gold)

    def _quantities(self, gold: Quantity, answer: Quantity) -> bool:
        unit, other = (
            tuple(word for word in kind.unit if not (self.votes and word in IGNORED)) for kind in (gold, answer)
        )
        factor = (Fraction(1) if unit == other else None) if self.votes else convert(other, unit)
        if factor is None:
            return False
        if factor == 1:
            return self._scalars(gold.amount, answer.amount)
        return None not in (gold.amount.value, answer.amount.value) and (
            answer.amount.value * factor == gold.amount.value  # type: ignore[operator]
        )

    def _groups(self, gold: Group, answer: Group) -> bool:
        loose = ("set", "list")
        if gold.kind != answer.kind and not (gold.kind in loose and answer.kind in loose):
            return False
        items, others = (self._members(group) for group in (gold, answer))
        if len(items) != len(others) or len(items) > _MAX_ITEMS:
            return False
        if gold.kind not in (*loose, "union"):
            return all(self.equal(a, b) for a, b in zip(items, others, strict=True))
        for item in items:
            partner = next((other for other in others if self._paired(item, other)), None)
            if partner is None:
                return False
            others.remove(partner)
        return True

    def _paired(self, gold: Kind, answer: Kind) -> bool:
        """Equality of members whose order does not matter: a name that one has says which value is meant."""
        return isinstance(gold, Assigned) == isinstance(answer, Assigned) and self.equal(gold, answer)

    def _members(self, group: Group) -> list[Kind]:
        """The members; a set in braces holds each once."""
        if group.kind != "set" or len(group.items) > _MAX_ITEMS:
            return list(group.items)
        members: list[Kind] = []
        for item in group.items:
            if not any(self.equal(member, item) for member in members):
                members.append(item)
        return members

    # -- bridges ----------------------------------------------------------------------------------------------------

    def _plain(self, gold: Kind, answer: Kind) -> bool:
        """In votes: an amount with a unit that says nothing, and the amount alone."""
        kinds = (gold, answer)
        amounts = [kind.amount for kind in kinds if isinstance(kind, Quantity) and set(kind.unit) <= IGNORED]
        scalars = [kind for kind in kinds if isinstance(kind, Scalar)]
        return len(amounts) == len(scalars) == 1 and self._scalars(scalars[0], amounts[0])

    def _bridged(self, gold: Kind, answer: Kind) -> bool:
        match gold, answer:
            case Labelled(), _:
                return self._is_letter(answer, gold.letter) or self.equal(gold.item, answer)
            case _, Labelled():
                return self._is_letter(gold, answer.letter) or self.equal(gold, answer.item)
            case (Assigned(), Relation()) | (Relation(), Assigned()):
                return self._related(gold, answer)
            case Assigned(), (Scalar() | Group() | Quantity() | Matrix() | Based()):
                return self.equal(gold.item, answer)
            case ((Scalar() | Group() | Quantity() | Matrix() | Based()), Assigned()):
                return self.equal(gold, answer.item)
            case Quantity(), Scalar():
                return self._scalars(gold.amount, answer)
            case Scalar(), Quantity():
                return self._scalars(gold, answer.amount)
            case ((Scalar() | Quantity()), Words()) if answer.number is not None:
                return _is_number(gold) and self.equal(gold, answer.number)
            case Group(kind="list"), Scalar() if "," in answer.text:
                return self.equal(gold, _split(answer))
            case Scalar(), Group(
                kind="list"
            ):  # one value several times, "15 39/40 or 639/40", "2 hours or 120 minutes"
                first = answer.items[0]
                return self.equal(gold, first) and all(
                    self.equal(gold, item) or (isinstance(first, Quantity) and self.equal(first, item))
                    for item in answer.items[1:]
                )
            case (Words(text=text), Scalar(text=other)) | (Scalar(text=other), Words(text=text)):
                return self._by_engine(text, other)
        return False

    @staticmethod
    def _is_letter(kind: Kind, letter: str) -> bool:
        return isinstance(kind, Scalar) and kind.tree == ("sym", letter)

    def _related(self, gold: Kind, answer: Kind) -> bool:
        if not isinstance(gold, Relation | Assigned) or not isinstance(answer, Relation | Assigned):
            return False
        return bool(gold.text and answer.text) and self.known(_ordered(gold.text, answer.text))

    def _by_engine(self, gold: str, answer: str) -> bool:
        return bool(ENGINE.search(gold) or ENGINE.search(answer)) and self.known((gold, answer))


def _ordered(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first < second else (second, first)


def _is_number(kind: Scalar | Quantity) -> bool:
    return (kind.amount if isinstance(kind, Quantity) else kind).value is not None


def _split(answer: Scalar) -> Kind:
    """A number with commas as the list that it may be."""
    members = split_members(answer.text, bracketed=True) or [answer.text]
    return Group("list", tuple(read(member) for member in members))
