"""Programs for a 4-bit accumulator: a task on which the whole loop of policy and PRM is real within minutes.

A question is a row of labelled operations and a starting value, `f+5g*3h-8,7`: start at 7, add 5, multiply by 3, take
away 8, all modulo 16. A solution has one line an operation, `label operator operand = value`, the value being the
accumulator after it as one hexadecimal digit:

    f+5=C
    g*3=4
    h-8=C

The last value is the answer. Labels are lower-case letters in alphabetical order from a random first one, going on
with `a` after `z`. Operands are 3..8 for + and -, and 3, 5, 7 for *, which are invertible modulo 16: no later
operation can multiply an error away.

The teachers who write demonstrations have misconceptions, one an operator, and fall for them more often where the
operation is hard. A policy that imitates them is wrong in systematic ways that a PRM can detect and that a majority
vote cannot outvote; how much a PRM gains here is therefore a property of this corpus.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prmkit.errors import ConfigError, DataError
from prmkit.grading.exact import ExactGrader
from prmkit.seeding import derive_seed
from prmkit.tasks.generated import GeneratedTask
from prmkit.tasks.vocabulary import character_tokenizer
from prmkit.types import Grader, Problem

__all__ = ["AccumulatorTask", "Operation", "apply", "misapply", "parse_program"]

HEX = "0123456789ABCDEF"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OPERANDS: dict[str, str] = {"+": "345678", "-": "345678", "*": "357"}
_OPERATORS = tuple(OPERANDS)
_PROGRAM = re.compile(r"((?:[a-z][+\-*][0-9A-F])+),([0-9A-F])")
_OPERATION = re.compile(r"([a-z])([+\-*])([0-9A-F])")
_VALUE = re.compile(r"=([0-9A-F])\s*\Z")


class Operation(NamedTuple):
    """One labelled operation, e.g. ("f", "+", 5)."""

    label: str
    operator: str
    operand: int

    @property
    def text(self) -> str:
        return f"{self.label}{self.operator}{HEX[self.operand]}"


def parse_program(question: str) -> tuple[tuple[Operation, ...], int]:
    """(operations, starting value in 0..15) of a question. Raises DataError when the text is not a program."""
    match = _PROGRAM.fullmatch(question)
    if match is None:
        raise DataError(f"accumulator: {question!r} is not a program such as 'f+5g*3h-8,7'")
    operations = tuple(Operation(a, o, int(b, 16)) for a, o, b in _OPERATION.findall(match[1]))
    return operations, int(match[2], 16)


def apply(operator: str, value: int, operand: int) -> int:
    """The accumulator after an operation: value o operand modulo 16."""
    if operator == "+":
        return (value + operand) % 16
    if operator == "-":
        return (value - operand) % 16
    return value * operand % 16


def misapply(operator: str, value: int, operand: int) -> int:
    """What a teacher who falls for the operator's misconception writes; sometimes right by luck.

    Addition wraps at 15, subtraction takes the absolute difference, multiplication the next entry of the table.
    """
    if operator == "+":
        return (value + operand) % 15
    if operator == "-":
        return abs(value - operand)
    return value * (operand + 1) % 16


def is_hard(operator: str, value: int, operand: int) -> bool:
    """Is this operation one of those on which teachers slip often?"""
    if operator == "+":
        return value + operand >= 19
    if operator == "-":
        return operand - value >= 4
    return value * operand >= 64


@dataclass(frozen=True)
class AccumulatorTask(GeneratedTask):
    """See the module. Splits: train, validation, test and hard, endless and disjoint.

    Attributes:
        min_ops, max_ops: operations of a program in train, validation and test; 1 <= min_ops <= max_ops <= 26.
        hard_min_ops, hard_max_ops: the same in hard.
        hard_share: share in [0, 1] of train problems that are as long as those of hard (never the same problems).
        slip_hard, slip_easy: probability in [0, 1] that a teacher falls for the misconception on a hard operation
            (a+b >= 19, b-a >= 4, a*b >= 64) and on any other.
    """

    min_ops: int = 4
    max_ops: int = 6
    hard_min_ops: int = 7
    hard_max_ops: int = 8
    hard_share: float = 0.1
    slip_hard: float = 0.57
    slip_easy: float = 0.18

    name = "accumulator"
    chance = 1 / len(HEX)

    def __post_init__(self) -> None:
        for low, high in (("min_ops", "max_ops"), ("hard_min_ops", "hard_max_ops")):
            if not 1 <= getattr(self, low) <= getattr(self, high) <= len(LETTERS):
                got = (getattr(self, low), getattr(self, high))
                raise ConfigError(f"task.accumulator.{low}, {high}", got, f"1 <= {low} <= {high} <= {len(LETTERS)}")
        for field in ("hard_share", "slip_hard", "slip_easy"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ConfigError(f"task.accumulator.{field}", getattr(self, field), "a number in [0, 1]")

    @property
    def grader(self) -> Grader:
        return ExactGrader(final_value)

    def tokenizer(self) -> Any:
        """A Hugging Face fast tokenizer of 52 entries: one a character, and pad, bos, eos, unk."""
        return character_tokenizer(HEX + LETTERS + "+-*=,\n")

    def draw(self, rng: random.Random, split: str) -> str:
        hard = split == "hard" or (split == "train" and rng.random() < self.hard_share)
        low, high = (self.hard_min_ops, self.hard_max_ops) if hard else (self.min_ops, self.max_ops)
        count = low + int(rng.random() * (high - low + 1))
        first = int(rng.random() * 26)
        parts = []
        for label in range(first, first + count):
            operator = _OPERATORS[int(rng.random() * 3)]
            operands = OPERANDS[operator]
            parts.append(f"{LETTERS[label % 26]}{operator}{operands[int(rng.random() * len(operands))]}")
        return f"{''.join(parts)},{HEX[int(rng.random() * 16)]}"

    def solve(self, question: str) -> tuple[str, str, str]:
        operations, value = parse_program(question)
        lines = []
        for operation in operations:
            value = apply(operation.operator, value, operation.operand)
            lines.append(f"{operation.text}={HEX[value]}")
        return "\n".join(lines), HEX[value], f"{len(operations)} operations"

    def demonstration(self, problem: Problem, seed: int) -> str:
        rng = random.Random(derive_seed("demonstration", problem.question, seed))
        operations, value = parse_program(problem.question)
        lines = []
        for operation in operations:
            _, operator, operand = operation
            slip = self.slip_hard if is_hard(operator, value, operand) else self.slip_easy
            work = misapply if rng.random() < slip else apply
            value = work(operator, value, operand)
            lines.append(f"{operation.text}={HEX[value]}")
        return "\n".join(lines)

    def check(self, problem: Problem, steps: Sequence[str]) -> tuple[bool, ...]:
        """Line i is right when it is operation i of the program with the value that follows from the value written
        at the end of line i - 1. It is wrong when that line ends in no value, and beyond the end of the program."""
        operations, start = parse_program(problem.question)
        before: int | None = start
        verdicts = []
        for index, step in enumerate(steps):
            right = False
            if index < len(operations) and before is not None:
                operation = operations[index]
                value = apply(operation.operator, before, operation.operand)
                right = step.strip() == f"{operation.text}={HEX[value]}"
            verdicts.append(right)
            found = _VALUE.search(step)
            before = int(found[1], 16) if found else None
        return tuple(verdicts)


def final_value(text: str) -> str | None:
    """The value at the end of the last line of a solution; None when it ends in none."""
    found = _VALUE.search(text)
    return found[1] if found else None
