"""Micro-batches of policy optimisation: one epoch is one iteration, passes over the experience collected at its start.

The position is (iteration, micro-batches handed out), the same on every rank. A loader left in the middle of an
iteration goes on there with the same experience, which is part of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from datamodules.batching import generator
from prmkit.errors import ConfigError, DataError
from prmkit.rl.batches import EvalBatch, Experience, PolicyBatch, empty_batch

__all__ = ["Collected", "EvaluationLoader", "ExperienceLoader", "Schedule", "check_same"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How an iteration's experience becomes micro-batches.

    An optimiser step takes whole groups, in the order of prompts, which is random already; so what a step holds does
    not depend on the number of processes or micro-batches. Later passes take the steps in another order.

    Attributes:
        rows: rows of this rank in a full iteration: groups x group size.
        updates: optimiser steps a pass; divides the groups of a rank.
        passes: passes over the experience.
        accumulate: micro-batches of an optimiser step on a rank.
        seed: of the order of steps.
    """

    rows: int
    updates: int
    passes: int
    accumulate: int
    seed: int

    @property
    def length(self) -> int:
        """Micro-batches of a rank in an iteration."""
        return self.passes * self.updates * self.accumulate

    def step_rows(self, iteration: int, window: int) -> range:
        """Rows of the optimiser step number `window` of an iteration; some may not be there."""
        number, place = divmod(window, self.updates)
        order = generator("passes", self.seed, iteration, number).permutation(self.updates)
        step = place if number == 0 else int(order[place])
        size = self.rows // self.updates
        return range(step * size, (step + 1) * size)


@dataclass(frozen=True, slots=True)
class Collected:
    """What an iteration begins with.

    Attributes:
        experience: of this rank, with advantages.
        report: figures over all ranks, for the logs.
    """

    experience: Experience
    report: dict[str, float]


class ExperienceLoader:
    """Micro-batches of one rank. Iterating goes from the present position to the end of its iteration.

    Args:
        collect: samples the experience of an iteration; asked once for each.
        count: items that a micro-batch's loss is divided by (of a whole window, they are added up).
        schedule: see Schedule.
        pad_id: for rows that only fill.
        skip_silent: leave out rows whose advantages are all 0, which are counted all the same: where nothing but
            advantages makes the gradient, it is not changed by them.
    """

    def __init__(
        self,
        collect: Callable[[int], Collected],
        count: Callable[[PolicyBatch], int],
        schedule: Schedule,
        pad_id: int,
        skip_silent: bool = False,
    ) -> None:
        self._collect, self._count, self._schedule, self._pad_id = collect, count, schedule, pad_id
        self._skip_silent = skip_silent
        self.iteration = self.consumed = 0
        self.experience: Experience | None = None

    def __len__(self) -> int:
        """Micro-batches of a whole iteration."""
        return self._schedule.length

    def __iter__(self) -> Iterator[PolicyBatch]:
        report: dict[str, float] | None = None
        if self.experience is None:
            collected = self._collect(self.iteration)
            self.experience, report = collected.experience, collected.report
        experience, iteration = self.experience, self.iteration
        window, skip = divmod(self.consumed, self._schedule.accumulate)
        for number in range(window, len(self) // self._schedule.accumulate):
            for batch in self._window(experience, iteration, number)[skip:]:
                self.consumed += 1
                if self.consumed == len(self):
                    self.iteration, self.consumed, self.experience = iteration + 1, 0, None
                yield batch if report is None else replace(batch, report=report)
                report = None
            skip = 0

    def _window(self, experience: Experience, iteration: int, number: int) -> list[PolicyBatch]:
        """Micro-batches of an optimiser step, neighbours in length together."""
        rows = [row for row in self._schedule.step_rows(iteration, number) if row < len(experience)]
        lengths = experience.attention_mask.sum(1).tolist()
        whole = experience.batch(rows) if rows else empty_batch(experience, self._pad_id)
        count = self._count(whole)
        if self._skip_silent:
            assert experience.advantages is not None
            speaks = (experience.advantages != 0).any(1).tolist()
            rows = [row for row in rows if speaks[row]]
        rows.sort(key=lambda row: (-lengths[row], row))
        size = -(-len(rows) // self._schedule.accumulate)
        parts = [rows[start * size : (start + 1) * size] for start in range(self._schedule.accumulate)]
        batches = [experience.batch(part) if part else empty_batch(experience, self._pad_id) for part in parts]
        totals: dict[str, Any] = {
            "window_tokens": sum(int(batch.action_mask.sum()) for batch in batches),
            "window_steps": sum(0 if batch.step_starts is None else int(batch.step_starts.sum()) for batch in batches),
            "window_judged": sum(int((~batch.right.isnan() & batch.action_mask.any(1)).sum()) for batch in batches),
        }
        return [replace(batch, window_count=count, **totals) for batch in batches]

    def state(self) -> dict[str, Any]:
        """Position, and the experience of an iteration that has begun; of this rank."""
        experience = None if self.experience is None else self.experience.state()
        return {"iteration": self.iteration, "consumed": self.consumed, "experience": experience}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.iteration, self.consumed = state["iteration"], state["consumed"]
        held = state["experience"]
        self.experience = None if held is None else Experience(**held)


class EvaluationLoader:
    """Batches of judged solutions, sampled when they are asked for; problem after problem, each once.

    Args:
        evaluate: samples and judges the problems of a range of numbers.
        problems: how many there are on this rank.
        rows: problems a batch.
    """

    def __init__(self, evaluate: Callable[[range], EvalBatch], problems: int, rows: int) -> None:
        if rows < 1:
            raise ConfigError("data.evaluation.rows", rows, "an integer of at least 1")
        self._evaluate, self._problems, self._rows = evaluate, problems, rows

    def __len__(self) -> int:
        return -(-self._problems // self._rows)

    def __iter__(self) -> Iterator[EvalBatch]:
        for start in range(0, self._problems, self._rows):
            yield self._evaluate(range(start, min(start + self._rows, self._problems)))


def check_same(state: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse a position in the middle of an iteration that was made with other settings (DataError)."""
    for name, value in ours.items():
        if state.get(name) != value:
            raise DataError(
                f"the checkpoint was written in the middle of an iteration with {name} = {state.get(name)!r}, and this "
                f"run has {value!r}: its experience would be trained on otherwise. Resume with the same settings, or "
                f"from a checkpoint at the end of an iteration."
            )
