"""Right answers that were not worked out, where a task can check steps."""

from __future__ import annotations

from collections.abc import Sequence

from prmkit.types import Problem, VerifiableTask

__all__ = ["is_worked_out"]


def is_worked_out(task: VerifiableTask, problem: Problem, steps: Sequence[str]) -> bool:
    """True if every step is right and none is missing: a right answer is then no luck.

    Steps are missing where there are fewer than lines of the problem's exact solution.
    """
    lines = (problem.solution or "").splitlines()
    return len(steps) >= len(lines) and all(task.check(problem, steps))
