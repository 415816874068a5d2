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
from prmkit.seeding import derive_seed
from prmkit.tasks.generated import GeneratedTask
from prmkit.tasks.multistep_lines import evaluate, next_line, parse_expression, solution_lines
from prmkit.tasks.vocabulary import word_tokenizer
from prmkit.types import Grader, Problem

__all__ = ["MultistepArithmeticTask", "benchmark_hashes", "final_answer", "question_hash"]

_WORDS = (
    *"0123456789+-*=,\n ()",
    *("A=", "B=", "C="),
    *(" + ", " - ", " * ", "((", ") + (", ") - (", ") * (", ")) ="),
)
_ANSWER = re.compile(r"(?:\A|\n)=(-?\d+)\s*\Z")
_OPERATORS = "+-*"


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

    Attributes:
        operands: numbers on each side in train, validation and test; the benchmark has 4. 2..8.
        hard_operands: the same in hard. 2..8.
        teacher_error: probability in [0, 1] that a teacher gets a line wrong (one digit off by one, or a sign) and
            goes on from there; 0 gives exact demonstrations.
    """

    operands: int = 4
    hard_operands: int = 5
    teacher_error: float = 0.0

    name = "multistep_arithmetic"

    def __post_init__(self) -> None:
        for field in ("operands", "hard_operands"):
            if not 2 <= getattr(self, field) <= 8:
                raise ConfigError(f"task.{self.name}.{field}", getattr(self, field), "an integer in 2..8")
        if not 0.0 <= self.teacher_error <= 1.0:
            raise ConfigError(f"task.{self.name}.teacher_error", self.teacher_error, "a number in [0, 1]")

    @property
    def grader(self) -> Grader:
        return ExactGrader(final_answer)

    def tokenizer(self) -> Any:
        """A Hugging Face fast tokenizer of 34 entries: digits, signs and newline alone, ` + ` and the like whole."""
        return word_tokenizer(_WORDS)

    def admits(self, question: str) -> bool:
        """Is this none of the benchmark's own problems?"""
        return question_hash(question) not in benchmark_hashes()

    def draw(self, rng: random.Random, split: str) -> str:
        count = self.hard_operands if split == "hard" else self.operands
        left, right = (self._side(rng, count) for _ in range(2))
        return f"(({left}) {_OPERATORS[int(rng.random() * 3)]} ({right})) ="

    @staticmethod
    def _side(rng: random.Random, count: int) -> str:
        parts = [str(int(rng.random() * 19) - 9)]
        for _ in range(count - 1):
            parts += (_OPERATORS[int(rng.random() * 3)], str(int(rng.random() * 19) - 9))
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


def _slip(line: str, rng: random.Random) -> str:
    """The line with one digit behind its `=` off by one, or one of its signs turned."""
    places = [i for i in range(line.index("=") + 1, len(line)) if line[i] in "0123456789+-"]
    place = rng.choice(places)
    old = line[place]
    if line[0] == "=" and old == "-":
        return "=" + line[2:]
    new = {"+": "-", "-": "+"}.get(old) or str((int(old) + rng.choice((1, 9))) % 10)
    return line[:place] + new + line[place + 1 :]
