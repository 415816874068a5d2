"""Where policy optimisation gets its prompts: problems of a task, in an endless seeded order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.batching import generator
from prmkit.errors import ConfigError, DataError
from prmkit.protocols import Task
from prmkit.records import Problem
from prmkit.tasks import TaskName, get_task

__all__ = ["PromptConfig", "PromptStream", "check_prompts", "open_prompts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptConfig:
    """Which problems.

    Attributes:
        task: accumulator, multistep_arithmetic, gsm8k, math, math500, bbh, jsonl, hub, or a task from outside.
        data: file or folder of the tasks that read one; None takes the set of that name from the hub.
        split: one of the task's splits.
        offset: number of the first problem, from 0.
        count: problems at most, at least 1; None takes all, which endless splits refuse.
        task_options: further options of the task.
    """

    task: TaskName = "accumulator"
    data: str | None = None
    split: str = "train"
    offset: int = 0
    count: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ConfigError("prompts.offset", self.offset, "an integer of at least 0")
        if self.count is not None and self.count < 1:
            raise ConfigError("prompts.count", self.count, "an integer of at least 1, or None for all")


def open_prompts(config: PromptConfig) -> tuple[Task, list[Problem]]:
    """The task, and its problems; at least one (DataError)."""
    task = get_task(config.task, config.data, **config.task_options)
    problems = list(task.problems(config.split, config.count, config.offset))
    if not problems:
        raise DataError(f"{config.task}: split {config.split!r} has no problem from number {config.offset} on")
    return task, problems


class PromptStream:
    """Problems in an endless order: lap after lap over all of them, each lap permuted anew.

    Number n of the stream is a pure function of (seed, n), so a position in it is one integer.

    Args:
        problems: at least one.
        seed: of the permutations.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems, self._seed = problems, seed
        self._laps: dict[int, npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Problems of a lap."""
        return len(self._problems)

    def __getitem__(self, number: int) -> Problem:
        lap, place = divmod(number, len(self._problems))
        if lap not in self._laps:
            self._laps = {lap: generator("prompts", self._seed, lap).permutation(len(self._problems))}
        return self._problems[self._laps[lap][place]]


def check_prompts(problems: Sequence[Problem], fits: Callable[[Problem], bool], longest: int) -> list[Problem]:
    """Problems whose prompt leaves room for a solution; warns of the others with numbers. DataError for none."""
    fitting = [problem for problem in problems if fits(problem)]
    excluded = len(problems) - len(fitting)
    if not fitting:
        raise DataError(
            f"data.prompts: all {excluded} prompts are longer than {longest} ids, the model's context less "
            f"data.max_tokens. Lower data.max_tokens, or take other problems."
        )
    if excluded:
        first = next(problem.id for problem in problems if not fits(problem))
        logger.warning(
            "prompts: %d of %d left out: longer than %d ids, the model's context less max_tokens (for example %s)",
            excluded, len(problems), longest, first,
        )  # fmt: skip
    return fitting
