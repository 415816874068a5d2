"""Readers: rows of one meaning (questions with solutions, step-label records) out of sources of raw fields."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from datamodules.batching import Rows, generator
from datamodules.sources import Raw, Source, SourceConfig, open_source
from prmkit.annotation.curate import Curated
from prmkit.annotation.formats import RecordParser
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError
from prmkit.json_objects import shown

__all__ = [
    "Curate",
    "Demonstration",
    "Mixture",
    "Parse",
    "Reader",
    "check_weights",
    "demonstration_parser",
    "distinct",
    "open_mixture",
    "record_parser",
    "share_out",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Parse = Callable[[Raw, str], list[T]]
"""Rows held by one raw row, given its fields and where it is."""
Curate = Callable[[Sequence[Any]], Curated]
"""Which of some rows are left, and which stand for several; see `prmkit.annotation.curate`."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A question with a solution to imitate."""

    question: str
    solution: str


def demonstration_parser(config: SourceConfig) -> Parse[Demonstration]:
    """Takes question and solution out of raw fields; task sources name them so, files as the config says."""
    names = ("question", "solution") if config.kind == "task" else (config.question_field, config.solution_field)

    def parse(raw: Raw, where: str) -> list[Demonstration]:
        texts = []
        for name in names:
            text = raw.get(name)
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{where}: {name}: got {shown(text)}; accepted: a string that is not blank")
            texts.append(text)
        return [Demonstration(*texts)]

    return parse


def record_parser(config: SourceConfig) -> Parse[StepLabels]:
    """Reads step-label records in the config's format; "auto" is settled by the first row and kept."""
    return RecordParser(config.format, config.malformed)


class Reader(Generic[T]):
    """Rows of one source by number.

    Where a raw row may hold several rows (PRM800K, MATH-APS), all are parsed once to number them.

    Args:
        source: raw rows.
        parse: what they hold.
        title: name of the source in row ids.
    """

    def __init__(self, source: Source, parse: Parse[T], title: str) -> None:
        self._source, self._parse, self.title = source, parse, title
        self._parts: Rows | None = None
        self._latest: tuple[int, list[T]] = (-1, [])
        parse(*source.raw(0))
        if isinstance(parse, RecordParser) and not parse.single:
            counts = [len(parse(*source.raw(index))) for index in range(len(source))]
            raw = np.repeat(np.arange(len(counts)), counts)
            first = np.repeat(np.cumsum(counts) - counts, counts)
            self._parts = np.stack([raw, np.arange(len(raw)) - first], axis=1)
            if not len(raw):
                raise DataError(f"{title}: none of its {len(counts)} lines holds a labelled step")

    def __len__(self) -> int:
        return len(self._source) if self._parts is None else len(self._parts)

    def row(self, index: int) -> T:
        if self._parts is None:
            return self._parse(*self._source.raw(index))[0]
        raw, part = self._parts[index].tolist()
        if self._latest[0] != raw:  # neighbours are often asked for one after another
            self._latest = (raw, self._parse(*self._source.raw(raw)))
        return self._latest[1][part]

    def require(self, usable: Callable[[T], bool]) -> None:
        """Refuse a source of which no row is usable (DataError). Reads rows until one is."""
        if not any(usable(self.row(index)) for index in range(len(self))):
            raise DataError(
                f"{self.title}: none of its {len(self)} records has a labelled step: all labels are null. Give a "
                f"source with labels, or label these solutions."
            )

    def content(self) -> str:
        """A hash of what the rows come from."""
        return self._source.content()

    def sizes(self) -> Rows | None:
        """[N] sizes in some unit, None when they are not known for free."""
        sizes = self._source.sizes()
        return sizes if sizes is None or self._parts is None else sizes[self._parts[:, 0]]


class Mixture(Generic[T]):
    """Rows of several readers under one numbering, and how many of each an epoch has.

    Without weights an epoch has every row once. With weights, an epoch has as many rows as the readers together (or
    `epoch_rows`), shared out by weight. Every reader then deals its rows from an endless stream of its own
    permutations, so that none comes a second time before all have come once.

    Args:
        readers: at least one.
        weights: one a reader, above 0; None for all without.
        epoch_rows: rows an epoch; None is the number of all rows. Only with weights.
        seed: of the readers' permutations.
    """

    def __init__(
        self,
        readers: Sequence[Reader[T]],
        weights: Sequence[float] | None = None,
        epoch_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        self.readers = list(readers)
        self._seed = seed
        self._bounds = np.cumsum([0, *map(len, self.readers)])
        self._titles = distinct([reader.title for reader in self.readers])
        self._used: list[Rows] = [np.arange(a, b) for a, b in zip(self._bounds[:-1], self._bounds[1:], strict=True)]
        self._weights, self._epoch_rows = weights, epoch_rows
        self._merged: Mapping[int, Any] = {}
        self._curated = b""

    def __len__(self) -> int:
        """Rows of all readers, left out ones included."""
        return int(self._bounds[-1])

    def row(self, number: int) -> tuple[str, T]:
        """(id, row); the id is `title:index` with the index from 0 in its source."""
        reader = int(np.searchsorted(self._bounds, number, side="right")) - 1
        index = number - int(self._bounds[reader])
        merged = self._merged.get(number)
        return f"{self._titles[reader]}:{index}", self.readers[reader].row(index) if merged is None else merged

    def sizes(self) -> Rows | None:
        """[N] sizes of all rows in one unit; None when some reader does not know them for free."""
        sizes = [reader.sizes() for reader in self.readers]
        known = [size for size in sizes if size is not None]
        return np.concatenate(known) if len(known) == len(sizes) else None

    def content(self) -> str:
        """A hash of what all rows come from, and of what curation made of them."""
        digest = hashlib.blake2b(self._curated, digest_size=16)
        for title, reader in zip(self._titles, self.readers, strict=True):
            digest.update(f"{title}\0{reader.content()}\0".encode())
        return digest.hexdigest()

    def leave_out(self, rows: Rows) -> None:
        """Use these rows in no epoch."""
        self._used = [np.setdiff1d(used, rows) for used in self._used]
        if not sum(map(len, self._used)):
            raise DataError(f"{', '.join(self._titles)}: no row is left to train on")

    def curate(self, curate: Curate) -> Curated:
        """Leave out and merge rows as a curation of all of them says. Reads every row. Returns what it did."""
        left = curate(_MixtureRows(self))
        self._merged = left.merged
        self._curated = repr((left.kept, sorted(left.merged.items()))).encode()
        self.leave_out(np.setdiff1d(np.arange(len(self)), np.array(left.kept, np.int64)))
        return left

    def shares(self) -> list[int]:
        """Rows of each reader in an epoch."""
        if self._weights is None:
            return [len(used) for used in self._used]
        weights = [w if len(used) else 0.0 for w, used in zip(self._weights, self._used, strict=True)]
        return share_out(weights, self._epoch_rows or sum(map(len, self._used)))

    def epoch(self, epoch: int) -> Rows:
        """Numbers of the rows of an epoch."""
        if self._weights is None:
            return np.concatenate(self._used)
        return np.concatenate([self._deal(reader, share, epoch) for reader, share in enumerate(self.shares())])

    def _deal(self, reader: int, share: int, epoch: int) -> Rows:
        """Entries [epoch x share, (epoch + 1) x share) of a reader's stream of permutations."""
        used = self._used[reader]
        dealt: list[Rows] = [np.empty(0, np.int64)]
        place, stop = epoch * share, (epoch + 1) * share
        while place < stop:
            lap, start = divmod(place, len(used))
            order = generator("mixture", self._seed, self._titles[reader], lap).permutation(len(used))
            part = order[start : start + stop - place]
            dealt.append(used[part])
            place += len(part)
        return np.concatenate(dealt)


class _MixtureRows(Sequence[Any]):
    """The rows of a mixture as they are read."""

    def __init__(self, mixture: Mixture[Any]) -> None:
        self._mixture = mixture

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, index: Any) -> Any:
        return self._mixture.row(index)[1]


def share_out(weights: Sequence[float], total: int) -> list[int]:
    """`total` in whole parts proportional to weights; the largest rests are rounded up."""
    exact = np.array(weights) / sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    largest_rests = np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]
    shares[largest_rests] += 1
    return [int(share) for share in shares]


def open_mixture(
    configs: Sequence[SourceConfig],
    parser: Callable[[SourceConfig], Parse[T]],
    epoch_rows: int | None = None,
    seed: int = 0,
) -> Mixture[T]:
    """Open all sources of a list.

    Raises:
        ConfigError: no sources, weights for some only, or `epoch_rows` without weights.
        DataError: what a source raises; its first row is read.
    """
    check_weights(configs, epoch_rows)
    readers = [Reader(open_source(config), parser(config), config.title) for config in configs]
    weights = [config.weight for config in configs if config.weight is not None]
    return Mixture(readers, weights or None, epoch_rows, seed)


def check_weights(configs: Sequence[SourceConfig], epoch_rows: int | None) -> None:
    """Refuse lists of sources that do not say how to mix them."""
    weighted = [config.weight is not None for config in configs]
    if any(weighted) and not all(weighted):
        raise ConfigError(
            "source.weight", [config.weight for config in configs], "a number for every source, or none of them"
        )
    if epoch_rows is not None and not any(weighted):
        raise ConfigError("data.epoch_rows", epoch_rows, "null, unless sources have weights")
    if epoch_rows is not None and epoch_rows < 1:
        raise ConfigError("data.epoch_rows", epoch_rows, "an integer of at least 1, or null")


def distinct(titles: Sequence[str]) -> list[str]:
    """Titles with #2, #3 ... behind those that have come before."""
    seen: dict[str, int] = {}
    distinct = []
    for title in titles:
        seen[title] = seen.get(title, 0) + 1
        distinct.append(title if seen[title] == 1 else f"{title}#{seen[title]}")
    return distinct
