"""Streams: rows that can only be read in order, as `datasets` gives them without storing them.

Every rank reads the same stream and keeps its share of each optimiser step: rows go to ranks by their number in the
stream, and one position serves all. Shuffling permutes whole blocks of rows, each by a seed of its own, so that a
stream can go on from the start of the block it was left in, with the rows of an undisturbed run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from datamodules.batching import BatchConfig, MapPlan, Shards, generator, rows_length, split_step
from datamodules.readers import Parse
from datamodules.sources import SourceConfig, load_hub
from prmkit.errors import ConfigError, DataError

__all__ = ["StreamPlan", "as_fetched"]

T = TypeVar("T")


def as_fetched(key: tuple[str, T]) -> tuple[str, T]:
    """The (id, row) of a StreamPlan's key: itself."""
    return key


class StreamPlan(MapPlan, Generic[T]):
    """A plan whose keys are the rows themselves, as (id, row); see `datamodules.batching.Plan`.

    An epoch is the first `count` rows behind `offset`, or as many as the hub says the split has. The stream begins
    again for every epoch, shuffled otherwise.

    Args:
        config: a source with streaming.
        parse: the row held by a raw row; exactly one.
        batch: with rows.
        shards: how an optimiser step is split.
        seed: of the permutations; None keeps the order (evaluation).
        label: what the rows are for, in messages.
    """

    def __init__(
        self,
        config: SourceConfig,
        parse: Parse[T],
        batch: BatchConfig,
        shards: Shards,
        seed: int | None,
        label: str = "train",
    ) -> None:
        if batch.rows is None:
            raise ConfigError("batch.max_tokens", batch.max_tokens, "null with a stream, whose lengths are not known")
        self._dataset = load_hub(config)
        self._fresh = self._dataset.state_dict()
        self._title, self._offset, self._parse = config.title, config.offset, parse
        self._count = config.count or self._known_count(config)
        self._micro_rows, self._shards, self._shuffle = batch.rows, shards, seed is not None
        self._step_rows = batch.rows * shards.accumulate * shards.world
        self._block = config.shuffle_buffer
        super().__init__(
            seed or 0,
            {
                "rows": self._count,
                "step_rows": self._step_rows,
                "accumulate": shards.accumulate,
                "drop_last": batch.drop_last,
                "shuffle_buffer": self._block,
            },
        )
        self._steps, self.length = rows_length(self._count, batch, shards, label)
        # Where the blocks read so far begin. Workers run ahead, so the newest one may lie behind the position.
        self._marks: list[dict[str, Any]] = []

    def batches(self, epoch: int, window: int = 0) -> Iterator[list[tuple[str, T]]]:
        rows = self._rows(epoch, window * self._step_rows)
        for number in range(window, self._steps):
            step = list(islice(rows, min(self._step_rows, self._count - number * self._step_rows)))
            for part in split_step(len(step), self._micro_rows, self._shards):
                yield step[part]

    def state(self, *position: int) -> dict[str, Any]:
        epoch, window = position
        return {**super().state(), "mark": self._mark(epoch, window * self._step_rows)}

    def check_state(self, state: dict[str, Any], mid_epoch: bool) -> None:
        super().check_state(state, mid_epoch)
        self._marks = [state["mark"]] if mid_epoch and state["mark"] else []

    def _mark(self, epoch: int, row: int) -> dict[str, Any] | None:
        """The last known start of a block at or before a row."""
        marks = [mark for mark in self._marks if mark["epoch"] == epoch and mark["block"] * self._block <= row]
        return marks[-1] if marks else None

    def _rows(self, epoch: int, start: int) -> Iterator[tuple[str, T]]:
        """Rows of an epoch from number `start` on, block after block."""
        mark = self._mark(epoch, start)
        self._marks = [mark] if mark else []
        self._dataset.load_state_dict(mark["stream"] if mark else self._fresh)
        stream = iter(self._dataset)
        if mark is None:
            next(islice(stream, self._offset, self._offset), None)
        opening = mark["block"] if mark else 0
        for block in range(opening, math.ceil(self._count / self._block)):
            if block > opening:  # before its first row is read, the data set still tells where it was last
                self._marks.append({"epoch": epoch, "block": block, "stream": self._dataset.state_dict()})
            first = block * self._block
            rows = self._read(stream, first, min(self._block, self._count - first))
            if self._shuffle:
                order = generator("stream", self.seed, epoch, block).permutation(len(rows))
                rows = [rows[index] for index in order]
            yield from rows[max(start - first, 0) :]

    def _read(self, stream: Iterator[Any], first: int, count: int) -> list[tuple[str, T]]:
        rows = []
        for number, raw in enumerate(islice(stream, count), start=first):
            id = f"{self._title}:{number}"
            parsed = self._parse(raw, id)
            if len(parsed) != 1:
                raise DataError(
                    f"{id}: holds {len(parsed)} labelled solutions; a stream takes formats with one a line. Convert "
                    f"it to step-label records, or set source.streaming to false."
                )
            rows.append((id, parsed[0]))
        if len(rows) < count:
            raise DataError(
                f"{self._title}: the stream ended after {first + len(rows)} rows; source.count (or the hub) says "
                f"{self._count}. Set source.count to what there is."
            )
        return rows

    def _known_count(self, config: SourceConfig) -> int:
        known = (self._dataset.info.splits or {}).get(config.split)
        if known is None or not known.num_examples:
            raise ConfigError("source.count", None, "a number of rows, as the hub does not know this stream's length")
        return max(int(known.num_examples) - config.offset, 0)
