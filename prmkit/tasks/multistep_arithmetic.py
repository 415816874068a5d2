"""Problems of the shape of BIG-Bench-Hard's multistep_arithmetic_two, endless, and none of them one of its 250:
`((a o b o c o d) o (e o f o g o h)) =` with numbers -9..9 and o in + - *.

The benchmark's questions are known here by 64-bit hashes only, and refused in every split. A policy trained on this
task is a specialist on the benchmark's own distribution: its accuracy there does not compare with a general model's.
How solutions are written is told in `prmkit.tasks.multistep_lines`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from prmkit.errors import ConfigError
from prmkit.grading.exact import ExactGrader
from prmkit.protocols import Grader
from prmkit.records import Problem
from prmkit.seeding import derive_seed
from prmkit.tasks.generated import GeneratedTask
from prmkit.tasks.multistep_lines import MAX_OPERANDS, evaluate, next_line, parse_expression, solution_lines
from prmkit.tasks.vocabulary import word_tokenizer

__all__ = ["MultistepArithmeticTask", "benchmark_hashes", "final_answer", "question_hash"]

_WORDS = (
    *"0123456789+-*=,\n ()",
    *(f"{letter}=" for letter in "abcdefghijklmnopqrstuvwxyzABCD"),
    # An operand with what stands before it is one token, so that it has the same place in every question.
    *(f"{before}{n}" for before in ("((", " + ", " - ", " * ", ") + (", ") - (", ") * (") for n in range(-9, 10)),
    ")) =",
)
_ANSWER = re.compile(r"(?:\A|\n)=(-?\d+)\s*\Z")


def question_hash(question: str) -> int:
    """64-bit hash of a question without its white space."""
    text = "".join(question.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@cache
def benchmark_hashes() -> frozenset[int]:
    """`question_hash` of the 250 questions of BIG-Bench-Hard's multistep_arithmetic_two."""
    file = resources.files("prmkit.tasks") / "data" / "bbh_multistep_arithmetic_two.hashes"
    return frozenset(int(line, 16) for line in file.read_text(encoding="ascii").split())


def final_answer(text: str) -> str | None:
    """The number of the last line `=number` of a solution, as in "=-50"; None when the solution does not end so."""
    found = _ANSWER.search(text)
    return str(int(found[1])) if found else None


@dataclass(frozen=True)
class MultistepArithmeticTask(GeneratedTask):
    """See the module. Splits: train, validation, test and hard, endless and disjoint.

    Problems of hard have the benchmark's shape too, but draw `*` more often, so that numbers are larger.

    Attributes:
        operands: numbers on each side; the benchmark has 4. 2..13.
        hard_product_share: probability in [0, 1] of `*` for every operator of hard; elsewhere it is 1/3.
        teacher_error: probability in [0, 1] that a teacher gets a line wrong (one digit off by one, or a sign) and
            goes on from there; 0 gives exact demonstrations.
    """

    operands: int = 4
    hard_product_share: float = 0.6
    teacher_error: float = 0.0

    name = "multistep_arithmetic"

    def __post_init__(self) -> None:
        if not 2 <= self.operands <= MAX_OPERANDS // 2:
            raise ConfigError(f"task.{self.name}.operands", self.operands, f"an integer in 2..{MAX_OPERANDS // 2}")
        for field in ("hard_product_share", "teacher_error"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ConfigError(f"task.{self.name}.{field}", getattr(self, field), "a number in [0, 1]")

    @property
    def grader(self) -> Grader:
        return ExactGrader(final_answer)

    def tokenizer(self) -> Any:
        """A Hugging Face fast tokenizer of 187 entries: an operand of the question with its operator is one token, a
        line's label another; digits, signs and line ends stand alone."""
        return word_tokenizer(_WORDS)

    def admits(self, question: str) -> bool:
        """Is this none of the benchmark's own problems?"""
        return question_hash(question) not in benchmark_hashes()

    def draw(self, rng: random.Random, split: str) -> str:
        products = self.hard_product_share if split == "hard" else 1 / 3
        left, right = (self._side(rng, products) for _ in range(2))
        return f"(({left}) {_operator(rng, products)} ({right})) ="

    def _side(self, rng: random.Random, products: float) -> str:
        parts = [str(int(rng.random() * 19) - 9)]
        for _ in range(self.operands - 1):
            parts += (_operator(rng, products), str(int(rng.random() * 19) - 9))
        return " ".join(parts)

    def solve(self, question: str) -> tuple[str, str, str]:
        expression = parse_expression(question)
        return "\n".join(solution_lines(expression)), str(evaluate(question)), f"outer {expression.operator}"

    def demonstration(self, problem: Problem, seed: int) -> str:
        if self.teacher_error == 0.0 and problem.solution is not None:
            return problem.solution
        expression = parse_expression(problem.question)
        rng = random.Random(derive_seed("demonstration", problem.question, seed))
        lines: list[str] = []
        line = next_line(expression, lines)
        while line is not None:
            lines.append(_slip(line, rng) if rng.random() < self.teacher_error else line)
            line = next_line(expression, lines)
        return "\n".join(lines)

    def check(self, problem: Problem, steps: Sequence[str]) -> tuple[bool, ...]:
        """A line is right when it is the one that follows from the question and the lines before it as written."""
        expression = parse_expression(problem.question)
        lines = [step.strip() for step in steps]
        return tuple(line == next_line(expression, lines[:index]) for index, line in enumerate(lines))


def _operator(rng: random.Random, products: float) -> str:
    drawn = rng.random()
    if drawn < products:
        return "*"
    return "+" if drawn < (1.0 + products) / 2 else "-"


def _slip(line: str, rng: random.Random) -> str:
    """The line with one digit behind its `=` off by one, or one of its signs turned."""
    places = [i for i in range(line.index("=") + 1, len(line)) if line[i] in "0123456789+-"]
    place = rng.choice(places)
    old = line[place]
    if line[0] == "=" and old == "-":
        return "=" + line[2:]
    new = {"+": "-", "-": "+"}.get(old) or str((int(old) + rng.choice((1, 9))) % 10)
    return line[:place] + new + line[place + 1 :]
