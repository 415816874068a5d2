"""What the built-in tasks share: endless, disjoint splits whose problems can be had in any order.

Every question belongs to exactly one part of the question space, by a hash of its text. Problem i of a split draws
candidates from a generator seeded by (task, split, i) and takes the first that lies in the split's part. So splits
cannot overlap, whatever the options, and nothing is stored.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from prmkit.errors import ConfigError
from prmkit.seeding import derive_seed
from prmkit.steps import StepFormat, get_step_format
from prmkit.types import Grader, Problem

__all__ = ["SPLIT_SHARES", "GeneratedTask", "split_of"]

SPLIT_SHARES: dict[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.1, "hard": 0.1}
"""Share of the question space that each split owns, in the order of its hash intervals."""

_SPLITS = tuple(SPLIT_SHARES)
_BOUNDS = tuple(int(share * 2**64) for share in accumulate(SPLIT_SHARES.values()))[:-1]


def split_of(question: str) -> str:
    """The one split that may hold a question."""
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return _SPLITS[bisect_right(_BOUNDS, int.from_bytes(digest, "little"))]


class GeneratedTask(ABC):
    """Base of the built-in tasks (see `prmkit.types.VerifiableTask`).

    A task says how to draw a candidate question, how to solve it, how its teachers write, and what a right step is.
    """

    name: str
    splits: tuple[str, ...] = _SPLITS
    step_format: StepFormat = get_step_format("plain")
    chance: float | None = None

    @property
    @abstractmethod
    def grader(self) -> Grader:
        """Extracts final answers and compares them."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """A fresh Hugging Face fast tokenizer that covers all questions and solutions; always the same."""

    @abstractmethod
    def draw(self, rng: random.Random, split: str) -> str:
        """A candidate question of a split's difficulty."""

    @abstractmethod
    def solve(self, question: str) -> tuple[str, str, str]:
        """(exact solution text, answer, level) of a question. Raises DataError for text that is not a question."""

    @abstractmethod
    def demonstration(self, problem: Problem, seed: int) -> str:
        """A teacher's solution text, mistakes included; a pure function of (question, seed)."""

    @abstractmethod
    def check(self, problem: Problem, steps: Sequence[str]) -> tuple[bool, ...]:
        """For every step: is it right, given the question and the lines before it as written?"""

    def admits(self, question: str) -> bool:
        """May this question be generated at all?"""
        return bool(question)

    def problem(self, split: str, index: int) -> Problem:
        """Problem number `index` of a split, a pure function of both.

        Raises ConfigError for an unknown split or a negative index.
        """
        if split not in self.splits:
            raise ConfigError(f"task.{self.name}.split", split, " | ".join(self.splits))
        if index < 0:
            raise ConfigError(f"task.{self.name}.index", index, "an integer of at least 0")
        rng = random.Random(derive_seed(self.name, split, index))
        question = self.draw(rng, split)
        while split_of(question) != split or not self.admits(question):
            question = self.draw(rng, split)
        solution, answer, level = self.solve(question)
        source = f"{self.name}/{split}"
        return Problem(f"{source}/{index}", question, answer, solution, level, source)

    def problems(self, split: str, limit: int | None = None, offset: int = 0) -> Sequence[Problem]:
        """Problems number offset ... offset + limit - 1. Raises ConfigError without a limit: splits are endless."""
        if limit is None or limit < 0:
            raise ConfigError(f"task.{self.name}.limit", limit, "an integer of at least 0: the splits are endless")
        return [self.problem(split, index) for index in range(offset, offset + limit)]
