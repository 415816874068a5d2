"""What the rooms ask of each other's parts: engines, scorers, graders, tasks. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from prmkit.formats.bound import BoundStepFormat
from prmkit.records import Completion, GenerationRequest, Grade, Problem, StepScores

__all__ = [
    "Engine",
    "Grader",
    "StepScorer",
    "Task",
    "VerifiableTask",
]


class Grader(Protocol):
    """Extracts final answers and decides whether two are equivalent."""

    def extract(self, text: str) -> str | None:
        """Final answer in a whole solution text, None when there is none."""
        ...

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        """Verdicts on (answer, gold) pairs, in order. A None answer is wrong."""
        ...

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """Equivalence-class number of every answer, classes numbered by first appearance; -1 for None."""
        ...


class Task(Protocol):
    """Where problems come from, and how answers to them are judged.

    Attributes:
        name: e.g. "accumulator", "gsm8k".
        splits: names accepted by `problems`.
        grader: extracts and compares answers.
    """

    name: str
    splits: tuple[str, ...]

    @property
    def grader(self) -> Grader: ...

    def problems(self, split: str, limit: int | None = None, offset: int = 0) -> Sequence[Problem]:
        """Problems number offset, offset + 1, ... of a split; None gives all (ConfigError for an endless split)."""
        ...


@runtime_checkable
class VerifiableTask(Protocol):
    """A task whose every step can be checked exactly, and whose teachers can demonstrate.

    Splits are endless: problem i of a split is a pure function of (split, i), and splits are disjoint.
    """

    name: str
    splits: tuple[str, ...]

    @property
    def grader(self) -> Grader: ...

    @property
    def chance(self) -> float | None:
        """Share of right answers by guessing; None where answers are open."""
        ...

    def problems(self, split: str, limit: int | None = None, offset: int = 0) -> Sequence[Problem]: ...

    def problem(self, split: str, index: int) -> Problem:
        """Problem number `index` of a split; `solution` holds an exact solution."""
        ...

    def demonstration(self, problem: Problem, seed: int) -> str:
        """A teacher's solution text, mistakes included; the same for the same seed."""
        ...

    def check(self, problem: Problem, steps: Sequence[str]) -> tuple[bool, ...]:
        """For every step: is it right, given the problem and the line before it as written?"""
        ...


@runtime_checkable
class Engine(Protocol):
    """Writes completions. Batching is its own matter; call it from many coroutines at once.

    Attributes:
        format: the policy's step format bound to its tokenizer.
        weight_version: version of the weights now in use.
    """

    @property
    def format(self) -> BoundStepFormat: ...

    @property
    def weight_version(self) -> int: ...

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        """`request.n` completions, in sample order."""
        ...


@runtime_checkable
class StepScorer(Protocol):
    """Scores steps. Batching is its own matter; call it from many coroutines at once."""

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step, each given the steps before it. No steps give no values."""
        ...
