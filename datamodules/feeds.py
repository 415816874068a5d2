"""What the data modules share: from source configs to loaders. A data module has one and adds its codec."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from datamodules.batching import BatchConfig, Rows, RowsPlan, Shards, TokensPlan, make_plan
from datamodules.encoding import Codec, Example
from datamodules.loader import EvalLoader, Fetch, TrainLoader, WorkerConfig
from datamodules.readers import Curate, Mixture, Parse, check_weights, open_mixture
from datamodules.sources import SourceConfig
from datamodules.streams import StreamPlan, as_fetched, open_streams, streams_content
from prmkit.errors import ConfigError, DataError

__all__ = ["Feeds"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

TrainPlan = RowsPlan | TokensPlan | StreamPlan[Any]

_PROBE = 64
_KEPT_TOKENS = 8_000_000
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class Feeds(Generic[T]):
    """Sources of the stages of a data module, and loaders over them.

    Args:
        sources: stage ("train", "val", "test", "predict") to its sources; empty for none.
        parser: makes the parser of a source.
        batch: micro-batches for training.
        eval_batch: micro-batches otherwise; None is as for training. Never drops rows.
        workers: how they are prepared.
        seed: of permutations and mixtures.
        epoch_rows: see Mixture.
        packed: rows of a micro-batch are laid end to end in training.
        curate: what is done to training rows when they are read; None nothing. All rows of files are curated
            together, those of a stream block by block.
        usable: True for a row that can be trained on or evaluated; a file or stored data set without any is refused,
            except to predict.

    Raises:
        ConfigError: sources that cannot be mixed.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[SourceConfig]],
        parser: Callable[[SourceConfig], Parse[T]],
        batch: BatchConfig,
        eval_batch: BatchConfig | None,
        workers: WorkerConfig,
        seed: int,
        epoch_rows: int | None,
        packed: bool = False,
        curate: Curate | None = None,
        usable: Callable[[T], bool] | None = None,
    ) -> None:
        for stage, configs in sources.items():
            _check_sources(stage, configs, epoch_rows if stage == "train" else None)
        self._sources, self._parser = sources, parser
        self._batch, self._workers = batch, workers
        eval_batch = eval_batch or batch
        self._eval_batch = BatchConfig(eval_batch.rows, eval_batch.max_tokens, eval_batch.bucket, drop_last=False)
        self._seed, self._epoch_rows, self._packed, self._curate = seed, epoch_rows, packed, curate
        self._usable = usable
        self._mixtures: dict[str, Mixture[T]] = {}
        self.train_loader: TrainLoader | None = None
        self._position: dict[str, Any] | None = None

    def open(self, stage: str, trainer: Any = None) -> None:
        """Open what a Lightning stage needs: missing files and the like show here, before any model is built.

        Raises:
            ConfigError: the stage has no sources.
            DataError: a source that cannot be used.
        """
        if stage == "fit" and trainer is not None:
            self._batch.check_step(trainer.world_size, int(trainer.accumulate_grad_batches))
        first, *others = _STAGES[stage]
        if not self._sources.get(first):
            raise ConfigError(f"data.{first}", [], f"at least one source, for `prm {getattr(stage, 'value', stage)}`")
        for name in (first, *others):
            if self._sources[name] and not self._sources[name][0].streaming:
                self._mixture(name)

    def _mixture(self, name: str) -> Mixture[T]:
        if name not in self._mixtures:
            rows = self._epoch_rows if name == "train" else None
            mixture = open_mixture(self._sources[name], self._parser, rows, self._seed)
            if self._usable is not None and name != "predict":
                for reader in mixture.readers:
                    reader.require(self._usable)
            if name == "train" and self._curate is not None:
                logger.info("train: %s", mixture.curate(self._curate).describe())
            self._mixtures[name] = mixture
        return self._mixtures[name]

    def train(self, trainer: Any, codec: Codec[T, Any]) -> TrainLoader:
        """The training loader, at the position of a checkpoint that was loaded before."""
        accumulate = _checked_accumulation(trainer)
        shards = Shards(trainer.global_rank, trainer.world_size, accumulate)
        plan, fetch = self._plan("train", codec, self._batch, shards, self._seed, self._packed)
        plan.identify(self._content())
        loader = TrainLoader(plan, fetch, codec, self._pinned(trainer), accumulate)
        _check_limit(trainer, len(loader), accumulate)
        if self._position is not None:
            loader.load_state_dict(self._position)
        self.train_loader = loader
        return loader

    def evaluation(self, stage: str, trainer: Any, codec: Codec[T, Any]) -> EvalLoader | list[Any]:
        """A loader that gives every row once; an empty list where the stage has no sources."""
        if not self._sources[stage]:
            return []
        shards = Shards(trainer.global_rank, trainer.world_size, 1)
        plan, fetch = self._plan(stage, codec, self._eval_batch, shards, None, packed=False)
        return EvalLoader(plan, fetch, codec, self._pinned(trainer), stage)

    # Lightning saves a loader's position itself, but loses it on resume when something (a learning-rate schedule that
    # asks for the number of steps) has made it build the loader before it restores its loops. The data module's own
    # state comes back in either case.

    def state_dict(self) -> dict[str, Any]:
        return {} if self.train_loader is None else {"train": self.train_loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state.get("train")
        if self.train_loader is not None and self._position is not None:
            self.train_loader.load_state_dict(self._position)

    def _plan(
        self, stage: str, codec: Codec[T, Any], batch: BatchConfig, shards: Shards, seed: int | None, packed: bool
    ) -> tuple[TrainPlan, Fetch]:
        configs = self._sources[stage]
        if configs[0].streaming:
            rows, curate = (self._epoch_rows, self._curate) if stage == "train" else (None, None)
            return open_streams(configs, self._parser, batch, shards, seed, rows, stage, curate), as_fetched
        mixture = self._mixture(stage)
        if batch.max_tokens is None:
            _probe(stage, mixture, codec)
            sizes = mixture.sizes() if seed is not None else None
            return make_plan(mixture.epoch, sizes, batch, shards, seed, packed, stage), mixture.row
        lengths, examples = _measure(stage, mixture, codec)
        fetch: Fetch = examples.__getitem__ if examples else mixture.row
        return make_plan(mixture.epoch, lengths, batch, shards, seed, packed, stage), fetch

    def _content(self) -> str:
        """A hash of what the training rows come from."""
        configs = self._sources["train"]
        return streams_content(configs) if configs[0].streaming else self._mixture("train").content()

    def _pinned(self, trainer: Any) -> WorkerConfig:
        if self._workers.pin_memory is not None:
            return self._workers
        on_gpu = trainer.strategy.root_device.type == "cuda"
        return WorkerConfig(self._workers.num_workers, self._workers.prefetch, on_gpu)


def _check_sources(stage: str, configs: Sequence[SourceConfig], epoch_rows: int | None) -> None:
    if len({config.streaming for config in configs}) > 1:
        raise ConfigError(
            f"data.{stage}.streaming", [config.streaming for config in configs], "the same for every source",
            "Files on disk are streamed too with kind hub, name json and path.",
        )  # fmt: skip
    if configs:
        check_weights(configs, epoch_rows)
    if stage != "train" and any(config.weight is not None for config in configs):
        raise ConfigError(f"data.{stage}.weight", [config.weight for config in configs], "null: every row counts once")


def _checked_accumulation(trainer: Any) -> int:
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise ConfigError(
            "trainer.callbacks", "GradientAccumulationScheduler", "a fixed trainer.accumulate_grad_batches",
            "Batches carry the count of their accumulation window, which must be known beforehand.",
        )  # fmt: skip
    if trainer.overfit_batches:
        raise ConfigError(
            "trainer.overfit_batches", trainer.overfit_batches, "0", "Use source.count to train on a few rows."
        )
    return int(trainer.accumulate_grad_batches)


def _check_limit(trainer: Any, length: int, accumulate: int) -> None:
    """A limited epoch must end with an optimiser step, or windows and steps fall out of line in the next one."""
    limit = trainer.limit_train_batches
    limit = int(length * limit) if isinstance(limit, float) else limit
    if limit < length and limit % accumulate and not trainer.fast_dev_run:
        raise ConfigError(
            "trainer.limit_train_batches", trainer.limit_train_batches,
            f"a number of micro-batches divisible by trainer.accumulate_grad_batches = {accumulate}",
        )  # fmt: skip


def _probe(stage: str, mixture: Mixture[Any], codec: Codec[Any, Any]) -> None:
    """Encode a few rows spread over the data, so that data which does not fit at all fails before training."""
    numbers = np.unique(np.linspace(0, len(mixture) - 1, _PROBE).astype(np.int64))
    refused = [id for id, row in map(mixture.row, numbers.tolist()) if codec.encode(id, row) is None]
    if len(refused) == len(numbers):
        raise DataError(
            f"{stage}: nothing in {len(refused)} of {len(refused)} rows looked at can be trained on (for example "
            f"{refused[0]}). Raise max_length, or check that the data has labels."
        )


def _measure(
    stage: str, mixture: Mixture[T], codec: Codec[T, Any]
) -> tuple[Rows, dict[int, tuple[str, Example]] | None]:
    """[N] tokens of every row, and the encoded rows while they are few enough to be kept.

    Rows without anything to train on are left out of all epochs, and counted.
    """
    start = time.monotonic()
    lengths = np.zeros(len(mixture), np.int64)
    total, refused = 0, list[str]()
    kept: dict[int, tuple[str, Example]] | None = {}
    for number in range(len(mixture)):
        id, row = mixture.row(number)
        example = codec.encode(id, row)
        if example is None:
            refused.append(id)
            continue
        lengths[number] = len(example.input_ids)
        if kept is not None:
            kept[number] = id, example
            if (total := total + len(example.input_ids)) > _KEPT_TOKENS:
                kept = None
    seconds = time.monotonic() - start
    logger.info("%s: counted %d tokens of %d rows in %.1f s", stage, lengths.sum(), len(lengths), seconds)
    if refused:
        logger.warning(
            "%s: %d of %d rows refused: nothing in them can be trained on within max_length (for example %s)",
            stage,
            len(refused),
            len(lengths),
            ", ".join(refused[:3]),
        )
        mixture.leave_out(np.flatnonzero(lengths == 0))
    return lengths, kept
