"""Streams: rows that can only be read in order, as `datasets` gives them without storing them, one or several mixed.

Every rank reads the same streams and keeps its share of each optimiser step: rows go to ranks by their number, and one
position serves all. Shuffling permutes whole blocks of rows, each by a seed of its own, so that a stream can go on from
the start of the block it was left in, with the rows of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from datamodules.batching import BatchConfig, MapPlan, Rows, Shards, generator, rows_length, split_step
from datamodules.readers import Curate, Parse, distinct, share_out
from datamodules.sources import SourceConfig, load_hub, local_files
from prmkit.errors import ConfigError, DataError

__all__ = ["Stream", "StreamPlan", "as_fetched", "open_streams", "streams_content"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_EDGE = 1 << 20


def as_fetched(key: tuple[str, T]) -> tuple[str, T]:
    """The (id, row) of a StreamPlan's key: itself."""
    return key


class Stream(Generic[T]):
    """Rows of one streamed source: lap after lap over its data set, without end.

    A lap is the first `count` lines behind `offset`, or all there are. Its lines are read in blocks of `shuffle_buffer`
    rows (a few more where the last line of a block holds several), which are curated and then permuted one by one. So
    row k of the endless sequence is a function of the data, the seed and k.

    Args:
        config: a source with streaming.
        parse: the rows held by a line.
        title: name in row ids and messages.
        whole: every lap has as many rows as `count`, or the hub, says: a line holds one row, and none is left out.
        curate: what is done to each block; None nothing.
    """

    def __init__(
        self, config: SourceConfig, parse: Parse[T], title: str, whole: bool, curate: Curate | None = None
    ) -> None:
        self.title, self.block_rows = title, config.shuffle_buffer
        self._parse, self._curate, self._offset = parse, curate, config.offset
        self._dataset = load_hub(config)
        self._fresh = self._dataset.state_dict()
        self._lap_lines = config.count or (self._known_count(config) if whole else None)
        self.lap_rows = self._lap_lines if whole else None
        # Where the blocks read so far begin. Workers run ahead, so the newest ones may lie behind the position.
        self._marks: list[dict[str, Any]] = []

    def _known_count(self, config: SourceConfig) -> int:
        known = (self._dataset.info.splits or {}).get(config.split)
        if known is None or not known.num_examples:
            raise ConfigError(
                "source.count",
                None,
                "a number of rows, as the hub does not know this stream's length",
                "Or say how much of an epoch it makes up: source.weight, with data.epoch_rows.",
            )
        return max(int(known.num_examples) - config.offset, 0)

    def mark(self, row: int) -> dict[str, Any] | None:
        """The last known start of a block at or before a row, as JSON values."""
        marks = [mark for mark in self._marks if mark["row"] <= row]
        return marks[-1] if marks else None

    def restore(self, mark: dict[str, Any] | None) -> None:
        """Take over a mark of another process."""
        self._marks = [mark] if mark else []

    def rows(self, start: int, seed: int | None) -> Iterator[tuple[str, T]]:
        """(id, row) from number `start` of the endless sequence on; `seed` None keeps the order of the data."""
        at = self._opening(start)
        self._marks = [at]
        while True:
            lines = self._lines(at)
            while True:
                rows, n_lines = self._block(lines, at)
                if n_lines == 0:
                    break
                if seed is not None:
                    draw = generator("stream", seed, self.title, at["lap"], at["block"])
                    rows = [rows[index] for index in draw.permutation(len(rows))]
                yield from rows[max(start - at["row"], 0) :]
                at = {
                    "lap": at["lap"],
                    "block": at["block"] + 1,
                    "line": at["line"] + n_lines,
                    "row": at["row"] + len(rows),
                    # Before the next row is read, the data set still tells where it was last.
                    "stream": self._dataset.state_dict(),
                }
                self._marks.append(at)
            self._check_lap(at)
            at = {"lap": at["lap"] + 1, "block": 0, "line": 0, "row": at["row"], "stream": None}
            self._marks.append(at)

    def _opening(self, start: int) -> dict[str, Any]:
        """The nearest known start of a block before a row: a mark, or where a lap begins."""
        mark = self.mark(start)
        lap = start // self.lap_rows if self.lap_rows else 0
        if mark is not None and mark["lap"] >= lap:
            return mark
        return {"lap": lap, "block": 0, "line": 0, "row": lap * (self.lap_rows or 0), "stream": None}

    def _lines(self, at: dict[str, Any]) -> Iterator[Any]:
        """Raw lines of a lap from a mark on."""
        self._dataset.load_state_dict(at["stream"] or self._fresh)
        lines = iter(self._dataset)
        if at["stream"] is None:
            next(islice(lines, self._offset, self._offset), None)
        return lines if self._lap_lines is None else islice(lines, self._lap_lines - at["line"])

    def _block(self, lines: Iterator[Any], at: dict[str, Any]) -> tuple[list[tuple[str, T]], int]:
        """Rows of the next block, and how many lines they take; none at the end of the lap."""
        rows: list[tuple[str, T]] = []
        n_lines = 0
        while len(rows) < self.block_rows:
            raw = next(lines, None)
            if raw is None:
                break
            id = f"{self.title}:{at['line'] + n_lines}"
            n_lines += 1
            parsed = self._parse(raw, id)
            if len(parsed) == 1:
                rows.append((id, parsed[0]))
                continue
            if self.lap_rows is not None:
                raise DataError(
                    f"{id}: holds {len(parsed)} labelled solutions, so the length of the stream is not known. Give "
                    f"source.weight, and data.epoch_rows for the length of an epoch; or set source.streaming to false."
                )
            rows += [(f"{id}.{part}", row) for part, row in enumerate(parsed)]
        if self._curate is None or not rows:
            return rows, n_lines
        left = self._curate([row for _, row in rows])
        logger.info("%s, lap %d, block %d: %s", self.title, at["lap"], at["block"], left.describe())
        merged: Mapping[int, Any] = left.merged
        return [(rows[index][0], merged.get(index, rows[index][1])) for index in left.kept], n_lines

    def _check_lap(self, end: dict[str, Any]) -> None:
        if self._lap_lines is not None and end["line"] < self._lap_lines:
            raise DataError(
                f"{self.title}: the stream ended after {end['line']} rows; source.count (or the hub) says "
                f"{self._lap_lines}. Set source.count to what there is."
            )
        if end["line"] == 0 or (end["lap"] == 0 and end["row"] == 0):
            raise DataError(f"{self.title}: the stream holds no row behind source.offset = {self._offset}")


class StreamPlan(MapPlan, Generic[T]):
    """A plan whose keys are the rows themselves, as (id, row); see `datamodules.batching.Plan`.

    Every epoch takes the next `shares` rows of each stream's endless sequence, in an order of streams that is a
    permutation of its own.

    Args:
        streams: at least one.
        shares: rows of each in an epoch.
        batch: with rows.
        shards: how an optimiser step is split.
        seed: of the permutations; None keeps the order (evaluation).
        label: what the rows are for, in messages.
    """

    def __init__(
        self,
        streams: Sequence[Stream[T]],
        shares: Sequence[int],
        batch: BatchConfig,
        shards: Shards,
        seed: int | None,
        label: str = "train",
    ) -> None:
        assert batch.rows is not None
        self._streams, self._shares = list(streams), list(shares)
        self._micro_rows, self._shards, self._shuffle = batch.rows, shards, seed is not None
        self._step_rows = batch.rows * shards.accumulate * shards.world
        self._n_rows = sum(shares)
        super().__init__(
            seed or 0,
            {
                "streams": [stream.title for stream in streams],
                "shares": self._shares,
                "shuffle_buffer": [stream.block_rows for stream in streams],
                "step_rows": self._step_rows,
                "accumulate": shards.accumulate,
                "drop_last": batch.drop_last,
            },
        )
        self._steps, self.length = rows_length(self._n_rows, batch, shards, label)

    def batches(self, epoch: int, window: int = 0) -> Iterator[list[tuple[str, T]]]:
        order = self._order(epoch)
        seed = self.seed if self._shuffle else None
        starts = self._starts(epoch, order, window)
        rows = [stream.rows(start, seed) for stream, start in zip(self._streams, starts, strict=True)]
        for number in range(window, self._steps):
            step = [next(rows[index]) for index in order[number * self._step_rows : (number + 1) * self._step_rows]]
            for part in split_step(len(step), self._micro_rows, self._shards):
                yield step[part]

    def _order(self, epoch: int) -> Rows:
        """[rows] which stream each row of an epoch comes from."""
        order = np.repeat(np.arange(len(self._streams)), self._shares)
        if self._shuffle and len(self._streams) > 1:
            order = order[generator("streams", self.seed, epoch).permutation(len(order))]
        return order

    def _starts(self, epoch: int, order: Rows, window: int) -> list[int]:
        """Number, in each stream's endless sequence, of its first row from a window on."""
        taken = np.bincount(order[: window * self._step_rows], minlength=len(self._streams))
        return [epoch * share + int(count) for share, count in zip(self._shares, taken, strict=True)]

    def state(self, *position: int) -> dict[str, Any]:
        epoch, window = position
        starts = self._starts(epoch, self._order(epoch), window)
        marks = [stream.mark(start) for stream, start in zip(self._streams, starts, strict=True)]
        return {**super().state(), "marks": marks}

    def check_state(self, state: dict[str, Any], mid_epoch: bool) -> None:
        super().check_state(state, mid_epoch)
        # Between epochs other settings are allowed; the marks of the old ones then mean nothing.
        same = all(state.get(name) == value for name, value in super().state().items())
        for stream, mark in zip(self._streams, state["marks"] if same else [None] * len(self._streams), strict=True):
            stream.restore(mark)


def streams_content(configs: Sequence[SourceConfig]) -> str:
    """A hash of the local files that streams read: their sizes, and both ends of each, as reading all of them is what
    a stream is there to avoid. Of data sets on the hub the name is all that is known."""
    digest = hashlib.blake2b(digest_size=16)
    for config in configs:
        digest.update(f"{config.name}\0{config.config}\0{config.split}\0{config.offset}\0{config.count}\0".encode())
        for file in local_files(config):
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with file.open("rb") as stream:
                digest.update(stream.read(_EDGE))
                stream.seek(max(size - _EDGE, 0))
                digest.update(stream.read(_EDGE))
    return digest.hexdigest()


def open_streams(
    configs: Sequence[SourceConfig],
    parser: Callable[[SourceConfig], Parse[T]],
    batch: BatchConfig,
    shards: Shards,
    seed: int | None,
    epoch_rows: int | None = None,
    label: str = "train",
    curate: Curate | None = None,
) -> StreamPlan[T]:
    """The plan over one or several streamed sources.

    Without weights an epoch is one lap over each: every row once. Streams with weights have no length: an epoch is
    `epoch_rows` rows, shared out by weight; each stream goes on where it stopped, and begins again when it ends.

    Raises:
        ConfigError: batches by tokens, weights without `epoch_rows`, or curation of streams without weights.
    """
    if batch.rows is None:
        raise ConfigError("batch.max_tokens", batch.max_tokens, "null with a stream, whose lengths are not known")
    weights = [config.weight for config in configs if config.weight is not None]
    if weights and epoch_rows is None:
        raise ConfigError(
            "data.epoch_rows", None, "the number of rows of an epoch: streams with weights have no length"
        )
    if curate is not None and not weights:
        raise ConfigError(
            "data.curation", "on", "all off, for streams without weights: the length of an epoch must be known",
            "Give source.weight and data.epoch_rows, or set source.streaming to false.",
        )  # fmt: skip
    titles = distinct([config.title for config in configs])
    streams = [
        Stream(config, parser(config), title, not weights, curate)
        for config, title in zip(configs, titles, strict=True)
    ]
    shares = share_out(weights, epoch_rows) if epoch_rows is not None else [stream.lap_rows or 0 for stream in streams]
    return StreamPlan(streams, shares, batch, shards, seed, label)
