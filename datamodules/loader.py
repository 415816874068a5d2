"""Loaders: micro-batches of one rank, prepared by workers, stamped with their window's count, resumed exactly.

The position of a training loader is (epoch, micro-batches handed out). It moves when a micro-batch is handed out, not
when a worker has made it, and is the same on every rank: the copy that Lightning keeps of rank 0 restores all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset

from datamodules.batching import Plan
from datamodules.encoding import Codec, Example
from prmkit.batches import Batch
from prmkit.errors import ConfigError, DataError, PrmkitError

__all__ = ["EvalLoader", "TrainLoader", "WorkerConfig"]

logger = logging.getLogger(__name__)

Fetch = Callable[[Any], tuple[str, Any]]
"""(id, row) of a key of a plan; the row may be encoded already (an Example)."""


@dataclass(frozen=True)
class WorkerConfig:
    """How micro-batches are prepared.

    Attributes:
        num_workers: processes that prepare micro-batches, at least 0; 0 prepares them in the training process. The
            batches and their order do not depend on it.
        prefetch: micro-batches each worker keeps ready, at least 1.
        pin_memory: copy batches to page-locked memory, for faster copies to a GPU; None does when training on one.
    """

    num_workers: int = 0
    prefetch: int = 4
    pin_memory: bool | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ConfigError("workers.num_workers", self.num_workers, "an integer of at least 0")
        if self.prefetch < 1:
            raise ConfigError("workers.prefetch", self.prefetch, "an integer of at least 1")


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What a worker sends: a batch, or the error that prevents it, and what became of the rows asked for."""

    batch: Batch | None
    count: int = 0
    rows: int = 0
    refused: tuple[str, ...] = ()
    truncated: int = 0
    error: str | None = None

    def pin_memory(self) -> _Delivery:
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class _Preparation(Dataset[Any]):
    """Makes one micro-batch of a list of keys. Errors travel as text, so that they arrive as they were raised."""

    def __init__(self, fetch: Fetch, codec: Codec[Any, Any]) -> None:
        self._fetch, self._codec = fetch, codec

    def __getitems__(self, keys: list[Any]) -> _Delivery:
        try:
            rows = [self._fetch(key) for key in keys]
            encoded = [(id, row if isinstance(row, Example) else self._codec.encode(id, row)) for id, row in rows]
            examples = [example for _, example in encoded if example is not None]
            batch = self._codec.collate(examples)
        except PrmkitError as error:
            return _Delivery(None, error=str(error))
        refused = tuple(id for id, example in encoded if example is None)
        return _Delivery(batch, batch.count, len(keys), refused, sum(example.truncated for example in examples))


class _Deliveries:
    """Runs keys through workers, in order, and keeps count of what was refused.

    Args:
        fetch: from key to row.
        codec: from rows to batch.
        workers: how many processes, and so on.
        label: what the rows are for, in messages.
    """

    def __init__(self, fetch: Fetch, codec: Codec[Any, Any], workers: WorkerConfig, label: str) -> None:
        self._preparation, self._workers, self._label = _Preparation(fetch, codec), workers, label
        self.forget()

    def run(self, keys: Iterator[list[Any]]) -> Iterator[_Delivery]:
        several = self._workers.num_workers > 0
        loader = DataLoader(
            self._preparation,
            batch_sampler=_Keys(keys),
            collate_fn=_as_is,
            num_workers=self._workers.num_workers,
            prefetch_factor=self._workers.prefetch if several else None,
            pin_memory=bool(self._workers.pin_memory),
            worker_init_fn=_start_worker if several else None,
        )
        for delivery in loader:
            if delivery.error is not None:
                raise DataError(delivery.error)
            yield delivery

    def note(self, delivery: _Delivery) -> None:
        """Count a delivery that was handed out."""
        self._rows += delivery.rows
        self._truncated += delivery.truncated
        self._refused += len(delivery.refused)
        self._some_refused += delivery.refused[: max(0, 3 - len(self._some_refused))]

    def report(self, what: str) -> None:
        """Warn, with numbers, of rows that were refused or cut."""
        if self._refused:
            logger.warning(
                "%s, %s: %d of %d rows refused: nothing in them can be trained on within max_length (for example %s)",
                self._label,
                what,
                self._refused,
                self._rows,
                ", ".join(self._some_refused),
            )
        if self._truncated:
            logger.warning("%s, %s: %d of %d rows cut to max_length", self._label, what, self._truncated, self._rows)
        self.forget()

    def forget(self) -> None:
        """Count from 0 again."""
        self._rows = self._truncated = self._refused = 0
        self._some_refused: list[str] = []


class TrainLoader:
    """Micro-batches of one rank for training.

    Iterating goes from the present position to the end of its epoch; the next iteration begins the next epoch. A
    loader that was left in the middle of an epoch goes on there.

    Args:
        plan: keys of micro-batches.
        fetch, codec, workers, label: see `_Deliveries`.
        accumulate: micro-batches of an optimiser step; their counts are added up and stamped on each.
    """

    def __init__(
        self,
        plan: Plan,
        fetch: Fetch,
        codec: Codec[Any, Any],
        workers: WorkerConfig,
        accumulate: int = 1,
        label: str = "train",
    ) -> None:
        self._plan, self._accumulate = plan, accumulate
        self._deliveries = _Deliveries(fetch, codec, workers, label)
        self._epoch = self._consumed = 0

    def __len__(self) -> int:
        """Micro-batches of a whole epoch."""
        return self._plan.length

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch
        # A window that was left in the middle is prepared again as a whole: its count goes on every micro-batch.
        window, skip = divmod(self._consumed, self._accumulate)
        deliveries = self._deliveries.run(self._plan.batches(epoch, window))
        while group := list(islice(deliveries, self._accumulate)):
            total = sum(delivery.count for delivery in group)
            for delivery in group[skip:]:
                assert delivery.batch is not None
                self._deliveries.note(delivery)
                self._consumed += 1
                if self._consumed == len(self):
                    self._epoch, self._consumed = epoch + 1, 0
                    self._deliveries.report(f"epoch {epoch}")
                yield delivery.batch.with_window(total)
            skip = 0

    def state_dict(self) -> dict[str, Any]:
        """Position, and what it means."""
        window = self._consumed // self._accumulate
        return {"epoch": self._epoch, "consumed": self._consumed, "plan": self._plan.state(self._epoch, window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position. Raises DataError when the data or the batch settings have changed since."""
        self._plan.check_state(state["plan"], mid_epoch=state["consumed"] > 0)
        self._epoch, self._consumed = state["epoch"], state["consumed"]


class EvalLoader:
    """Micro-batches of one rank for validation, test and prediction: every row once, from the start every time."""

    def __init__(
        self, plan: Plan, fetch: Fetch, codec: Codec[Any, Any], workers: WorkerConfig, label: str = "val"
    ) -> None:
        self._plan = plan
        self._deliveries = _Deliveries(fetch, codec, workers, label)
        self._reported = False

    def __len__(self) -> int:
        return self._plan.length

    def __iter__(self) -> Iterator[Batch]:
        self._deliveries.forget()
        for number, delivery in enumerate(self._deliveries.run(self._plan.batches(0)), start=1):
            assert delivery.batch is not None
            self._deliveries.note(delivery)
            if number == len(self) and not self._reported:
                self._deliveries.report("every pass")
                self._reported = True
            yield delivery.batch.with_window(delivery.count)


class _Keys:
    """An iterator in the shape of a batch sampler."""

    def __init__(self, keys: Iterator[list[Any]]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[list[Any]]:
        return self._keys


def _as_is(delivery: Any) -> Any:
    return delivery


def _start_worker(_number: int) -> None:
    """Forked tokenizers must not start threads: the pool of the parent does not exist here."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
