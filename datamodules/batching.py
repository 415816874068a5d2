"""Which rows go into which micro-batch: the plan of an epoch.

A plan is a pure function of (seed, epoch) and of sizes known beforehand, and every epoch has the same number of
micro-batches on every rank. So a position in it is two integers, equal on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prmkit.errors import ConfigError, DataError
from prmkit.seeding import derive_seed

__all__ = ["BatchConfig", "EpochRows", "Plan", "RowsPlan", "Shards", "TokensPlan", "make_plan"]

Rows = npt.NDArray[np.int64]
EpochRows = Callable[[int], Rows]
"""Row numbers that an epoch uses, in no particular order; rows may repeat."""


@dataclass(frozen=True)
class BatchConfig:
    """Size and make-up of micro-batches. Give exactly one of `rows` and `max_tokens`.

    Attributes:
        rows: rows a micro-batch, at least 1. An optimiser step holds rows x accumulation x processes rows, and which
            ones depends on that product only. None: `max_tokens` decides.
        max_tokens: padded tokens a micro-batch at most (summed tokens when packed), at least 1. Lengths are then
            counted before the first epoch, by encoding every row once. None: `rows` decides.
        bucket: optimiser steps whose rows are sorted by length together, at least 1, to save padding. 1 sorts only
            inside an optimiser step. Of no effect with `max_tokens`, which sorts the whole epoch, and on rows other
            than lines of files, whose sizes are not known for free.
        drop_last: leave out the rows that do not fill an optimiser step; others are left out in every epoch. When
            false, the last optimiser step of an epoch is smaller.
        step_rows: rows of an optimiser step over all processes, checked and never adjusted: a run on another number of
            processes is refused until rows or accumulation fit it. None checks nothing. Not with `max_tokens`.
    """

    rows: int | None = None
    max_tokens: int | None = None
    bucket: int = 8
    drop_last: bool = True
    step_rows: int | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.max_tokens is None):
            raise ConfigError(
                "batch.rows",
                self.rows,
                "an integer when batch.max_tokens is null, null when it is not",
                f"batch.max_tokens is {self.max_tokens!r}.",
            )
        for name in ("rows", "max_tokens", "bucket", "step_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"batch.{name}", value, "an integer of at least 1")
        if self.step_rows is not None and self.rows is None:
            raise ConfigError("batch.step_rows", self.step_rows, "null with batch.max_tokens, which fixes no rows")

    def check_step(self, world: int, accumulate: int) -> None:
        """Refuse processes and accumulation that do not make optimiser steps of `step_rows` rows (ConfigError)."""
        if self.step_rows is None or self.rows is None or self.step_rows == self.rows * world * accumulate:
            return
        each, left = divmod(self.step_rows, self.rows * world)
        made = f"{self.rows * world * accumulate}: data.batch.rows {self.rows} x {world} processes x {accumulate}"
        remedy = f"Set trainer.accumulate_grad_batches to {each}." if not left and each else "Change data.batch.rows."
        raise ConfigError("data.batch.step_rows", self.step_rows, f"{made} micro-batches", remedy)


@dataclass(frozen=True)
class Shards:
    """How an optimiser step is split.

    Attributes:
        rank: this process, in [0, world).
        world: data-parallel processes.
        accumulate: micro-batches of one process in an optimiser step.
    """

    rank: int = 0
    world: int = 1
    accumulate: int = 1


class Plan(Protocol):
    """Micro-batches of one rank.

    Attributes:
        length: micro-batches of a rank in an epoch, the same for all epochs and ranks.
    """

    @property
    def length(self) -> int: ...

    def batches(self, epoch: int, window: int = 0) -> Iterator[list[Any]]:
        """Keys of this rank's micro-batches, from an accumulation window of the epoch on. A list may be empty."""
        ...

    def state(self, epoch: int, window: int, /) -> dict[str, Any]:
        """What must be the same, or is needed, to go on from a window; JSON values."""
        ...

    def check_state(self, state: dict[str, Any], mid_epoch: bool) -> None:
        """Take over a `state`. Raises DataError when its position means something else here."""
        ...


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator for a named stream of randomness."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


class MapPlan:
    """State of plans that compute every epoch from its number: a fingerprint is enough."""

    def __init__(self, seed: int, fingerprint: dict[str, Any]) -> None:
        self.seed = seed
        self._fingerprint = {"seed": seed, **fingerprint}

    def identify(self, content: str) -> None:
        """Make a hash of the rows' content part of the fingerprint."""
        self._fingerprint["data_content"] = content

    def state(self, *_position: int) -> dict[str, Any]:
        return dict(self._fingerprint)

    def check_state(self, state: dict[str, Any], mid_epoch: bool) -> None:
        for name, ours in self._fingerprint.items():
            if mid_epoch and state.get(name) != ours:
                raise DataError(
                    f"the checkpoint was written in the middle of an epoch with {name} = {state.get(name)!r}, and this "
                    f"run has {ours!r}: the remaining rows would be others. Resume with the same data and batch "
                    f"settings, or from a checkpoint at the end of an epoch."
                )


class RowsPlan(MapPlan):
    """A fixed number of rows a micro-batch.

    Rows are permuted, sorted by size within buckets, and cut into optimiser steps of rows x accumulate x world; the
    order of the steps is permuted again. Only then is a step cut into micro-batches (neighbours in length together),
    so that the rows of a step do not depend on how it is split.

    Args:
        epoch_rows: rows of an epoch; their number is the same for every epoch.
        sizes: [N] size of each row, in any unit; None turns sorting off.
        rows: rows a micro-batch.
        bucket, drop_last: see BatchConfig.
        shards: how a step is split.
        seed: of the permutations; None keeps the order given (evaluation).
        label: what the rows are for, in messages.
    """

    def __init__(
        self,
        epoch_rows: EpochRows,
        sizes: Rows | None,
        config: BatchConfig,
        shards: Shards,
        seed: int | None,
        label: str = "train",
    ) -> None:
        assert config.rows is not None
        self._epoch_rows, self._sizes, self._shards = epoch_rows, sizes, shards
        self._rows, self._bucket = config.rows, config.bucket
        self._shuffle = seed is not None
        self.step_rows = config.rows * shards.accumulate * shards.world
        n_rows = len(epoch_rows(0))
        super().__init__(
            seed or 0,
            {
                "rows": n_rows,
                "step_rows": self.step_rows,
                "bucket": config.bucket,
                "accumulate": shards.accumulate,
                "drop_last": config.drop_last,
            },
        )
        self._windows, self.length = rows_length(n_rows, config, shards, label)

    def batches(self, epoch: int, window: int = 0) -> Iterator[list[int]]:
        order = self._order(epoch)
        for number in range(window, self._windows):
            step = order[number * self.step_rows : (number + 1) * self.step_rows]
            if self._shuffle and self._sizes is not None:
                step = step[np.argsort(self._sizes[step], kind="stable")]
            for part in split_step(len(step), self._rows, self._shards):
                yield step[part].tolist()

    def _order(self, epoch: int) -> Rows:
        """Rows of an epoch, optimiser step after optimiser step."""
        rows = self._epoch_rows(epoch)
        if not self._shuffle:
            return rows
        draw = generator("rows", self.seed, epoch)
        rows = rows[draw.permutation(len(rows))]
        n_steps = len(rows) // self.step_rows
        full, left = rows[: n_steps * self.step_rows], rows[n_steps * self.step_rows :]
        if self._bucket > 1 and self._sizes is not None:
            buckets = np.arange(len(full)) // (self._bucket * self.step_rows)
            full = full[np.lexsort((self._sizes[full], buckets))]
            full = full.reshape(n_steps, self.step_rows)[draw.permutation(n_steps)].reshape(-1)
        return np.concatenate([full, left])


class TokensPlan(MapPlan):
    """As many rows a micro-batch as fit a budget of tokens.

    Lengths are rounded up to classes (16 to an octave, so by less than 1 part in 16). Rows are sorted by class, in
    random order inside one, and cut greedily. As the cuts depend on the classes only, every epoch over the same rows
    has the same number of micro-batches. Micro-batches of neighbouring lengths go to the ranks at the same time; the
    order of those groups is permuted.

    Where the rows of epochs differ (weighted mixtures), epoch 0 sets the number of micro-batches: later ones split
    large micro-batches, or leave some out, to have as many.

    Args:
        epoch_rows: rows of an epoch.
        lengths: [N] tokens of each row.
        config: with max_tokens.
        shards: how a step is split.
        seed: of the permutations; None sorts by length only (evaluation).
        packed: rows are laid end to end (their lengths add up) rather than padded to the longest.
        label: what the rows are for, in messages.
    """

    def __init__(
        self,
        epoch_rows: EpochRows,
        lengths: Rows,
        config: BatchConfig,
        shards: Shards,
        seed: int | None,
        packed: bool = False,
        label: str = "train",
    ) -> None:
        assert config.max_tokens is not None
        self._epoch_rows, self._shards, self._packed = epoch_rows, shards, packed
        self._budget, self._shuffle, self._drop_last = config.max_tokens, seed is not None, config.drop_last
        longest = int(lengths.max(initial=0))
        if longest > self._budget:
            raise DataError(
                f"{label}: row {int(lengths.argmax())} has {longest} tokens, more than batch.max_tokens = "
                f"{self._budget}. Raise batch.max_tokens, or lower max_length."
            )
        self._classes = np.minimum(_round_up(lengths), self._budget)
        rows = epoch_rows(0)
        super().__init__(
            seed or 0,
            {
                "rows": len(rows),
                "tokens": int(lengths[rows].sum()),
                "max_tokens": self._budget,
                "world": shards.world,
                "accumulate": shards.accumulate,
                "drop_last": config.drop_last,
                "packed": packed,
            },
        )
        found = len(self._cuts(rows)) - 1
        unit = shards.world * (shards.accumulate if self._drop_last else 1)
        self._n_micro = found // unit * unit if self._drop_last else math.ceil(found / unit) * unit
        self.length = self._n_micro // shards.world
        if self.length == 0:
            raise DataError(
                f"{label}: {len(rows)} rows make {found} micro-batches of {self._budget} tokens; an optimiser step "
                f"takes {unit}. Lower batch.max_tokens, or set batch.drop_last to false."
            )

    def batches(self, epoch: int, window: int = 0) -> Iterator[list[int]]:
        world = self._shards.world
        draw = generator("tokens", self.seed, epoch)
        rows = self._epoch_rows(epoch)
        if self._shuffle:
            rows = rows[draw.permutation(len(rows))]
        rows = rows[np.argsort(self._classes[rows], kind="stable")]
        cuts = self._cuts(rows)
        groups = self._groups([rows[a:b] for a, b in pairwise(cuts)], draw)
        for number in range(window * self._shards.accumulate, self.length):
            yield groups[number * world + self._shards.rank].tolist()

    def _groups(self, micro: list[Rows], draw: np.random.Generator) -> list[Rows]:
        """Micro-batches in order of use: as many as planned, `world` neighbours in length at a time."""
        world = self._shards.world
        micro = _split_to(micro, max(self._n_micro, math.ceil(len(micro) / world) * world))
        order = np.arange(len(micro)).reshape(-1, world)
        if self._shuffle:
            order = order[draw.permutation(len(order))]
        return [micro[index] for index in order.reshape(-1)[: self._n_micro]]

    def _cuts(self, rows: Rows) -> list[int]:
        """Bounds of the micro-batches in rows sorted by class."""
        classes = np.sort(self._classes[rows])
        total = np.concatenate([[0], np.cumsum(classes)])
        cuts = [0]
        while cuts[-1] < len(classes):
            start = cuts[-1]
            if self._packed:
                end = int(np.searchsorted(total, total[start] + self._budget, side="right")) - 1
            else:
                end = _longest_run(classes, start, self._budget)
            cuts.append(max(end, start + 1))
        return cuts


def rows_length(n_rows: int, config: BatchConfig, shards: Shards, label: str) -> tuple[int, int]:
    """(optimiser steps, micro-batches of a rank) of n_rows rows; DataError when there are none."""
    assert config.rows is not None
    step_rows = config.rows * shards.accumulate * shards.world
    steps, left = divmod(n_rows, step_rows)
    length = steps * shards.accumulate
    if left and not config.drop_last:
        steps, length = steps + 1, length + math.ceil(left / (shards.world * config.rows))
    if length == 0:
        raise DataError(
            f"{label}: {n_rows} rows do not fill one optimiser step of {step_rows} (rows x accumulation x "
            f"processes). Lower batch.rows, or set batch.drop_last to false."
        )
    return steps, length


def split_step(n_rows: int, rows: int, shards: Shards) -> list[slice]:
    """This rank's micro-batches of an optimiser step of n_rows rows.

    A full step gives `accumulate` micro-batches of `rows` rows. A smaller one gives fewer, as even as can be, the
    same number to every rank; some are empty when there are fewer rows than ranks.
    """
    n_micro = math.ceil(n_rows / (shards.world * rows)) * shards.world
    size, larger = divmod(n_rows, n_micro)
    bounds = [index * size + min(index, larger) for index in range(n_micro + 1)]
    return [slice(bounds[index], bounds[index + 1]) for index in range(shards.rank, n_micro, shards.world)]


def make_plan(
    epoch_rows: EpochRows,
    sizes: Rows | None,
    config: BatchConfig,
    shards: Shards,
    seed: int | None,
    packed: bool = False,
    label: str = "train",
) -> RowsPlan | TokensPlan:
    """The plan that a BatchConfig asks for. `sizes` are tokens with `max_tokens`, and any measure of size without."""
    if config.max_tokens is None:
        return RowsPlan(epoch_rows, sizes, config, shards, seed, label)
    assert sizes is not None
    return TokensPlan(epoch_rows, sizes, config, shards, seed, packed, label)


def _round_up(lengths: Rows) -> Rows:
    """Lengths rounded up to a multiple of 1/16 of the power of two below them."""
    octave = np.frexp(lengths)[1].astype(np.int64) - 1
    unit = 1 << np.maximum(octave - 4, 0)
    return -(-lengths // unit) * unit


def _longest_run(classes: Rows, start: int, budget: int) -> int:
    """Largest end with (end - start) x classes[end - 1] <= budget; classes ascend, so the cost grows with the end."""
    low, high = start, min(len(classes), start + budget // max(int(classes[start]), 1))
    while low < high:
        middle = (low + high + 1) // 2
        if (middle - start) * int(classes[middle - 1]) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _split_to(micro: list[Rows], count: int) -> list[Rows]:
    """At least `count` micro-batches: the largest are halved, in place; empty ones are added when none can be."""
    micro = list(micro)
    while len(micro) < count:
        largest = max(range(len(micro)), key=lambda index: len(micro[index]))
        if len(micro[largest]) < 2:
            micro += [np.empty(0, np.int64)] * (count - len(micro))
            break
        micro[largest : largest + 1] = np.array_split(micro[largest], 2)
    return micro
