"""Data for a process reward model: solutions with labelled steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from datamodules.batching import BatchConfig
from datamodules.encoding import PRMCodec, TargetConfig
from datamodules.feeds import Feeds
from datamodules.loader import EvalLoader, TrainLoader, WorkerConfig
from datamodules.readers import record_parser
from datamodules.sources import SourceConfig
from prmkit.annotation.curate import Curated, CurationParams, curate
from prmkit.annotation.judge import Verdict, load_verdicts
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError

__all__ = ["StepLabelDataModule"]


class StepLabelDataModule(LightningDataModule):
    """Streams of PRMBatch (PairBatch with `targets.pairs`), from step-label records in any format prmkit reads.

    The step format comes from `trainer.lightning_module.bound_format`. Records that name another step separator than
    it does are refused with an error. A row in which no labelled step fits into `max_length` is left out and counted
    in the log.

    Args:
        train, val, test, predict: sources of records. Weighted sources are mixed, in training.
        batch: size of micro-batches for training.
        eval_batch: size otherwise; None is as for training. Evaluation drops no rows.
        targets: what is trained on and evaluated against.
        max_length: tokens a row at most, at least 2; the steps that do not fit are cut off.
        epoch_rows: rows of an epoch of a weighted mixture, at least 1; None is the number of all rows, which streams
            do not have.
        workers: how batches are prepared.
        seed: of the order of rows.
        curation: what is done to the training records when they are read: duplicates, balance, consensus with a
            judge. No file is changed. Records of files are curated together before the first epoch; those of streams
            in each block of `shuffle_buffer` rows.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        train: list[SourceConfig] = [],  # noqa: B006 - never changed
        val: list[SourceConfig] = [],  # noqa: B006
        test: list[SourceConfig] = [],  # noqa: B006
        predict: list[SourceConfig] = [],  # noqa: B006
        batch: BatchConfig = BatchConfig(rows=16),  # noqa: B008 - frozen
        eval_batch: BatchConfig | None = None,
        targets: TargetConfig = TargetConfig(),  # noqa: B008 - frozen
        max_length: int = 2048,
        epoch_rows: int | None = None,
        workers: WorkerConfig = WorkerConfig(),  # noqa: B008 - frozen
        seed: int = 0,
        curation: CurationParams = CurationParams(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if max_length < 2:
            raise ConfigError("data.max_length", max_length, "an integer of at least 2")
        stages = {"train": train, "val": val, "test": test, "predict": predict}
        for name, configs in stages.items():
            if any(config.kind == "task" for config in configs):
                raise ConfigError(f"data.{name}.kind", "task", "jsonl | hub: tasks have no step labels")
        self._targets, self._max_length = targets, max_length
        self._curation = curation
        self._verdicts: dict[str, Verdict] | None = None
        change = self._curate if curation.active else None
        self._feeds = Feeds(
            stages, record_parser, batch, eval_batch, workers, seed, epoch_rows, curate=change, usable=_labelled
        )

    def setup(self, stage: str) -> None:
        """Open the sources of a stage. Raises DataError for missing files, malformed first rows and empty data."""
        self._feeds.open(stage, self.trainer)

    def train_dataloader(self) -> TrainLoader:
        return self._feeds.train(self.trainer, self._codec("train"))

    def val_dataloader(self) -> EvalLoader | list[Any]:
        return self._feeds.evaluation("val", self.trainer, self._codec("eval"))

    def test_dataloader(self) -> EvalLoader | list[Any]:
        return self._feeds.evaluation("test", self.trainer, self._codec("eval"))

    def predict_dataloader(self) -> EvalLoader | list[Any]:
        return self._feeds.evaluation("predict", self.trainer, self._codec("predict"))

    def state_dict(self) -> dict[str, Any]:
        """Position of the training stream."""
        return self._feeds.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._feeds.load_state_dict(state_dict)

    def _curate(self, records: Sequence[StepLabels]) -> Curated:
        if self._verdicts is None and self._curation.verdicts is not None:
            self._verdicts = load_verdicts(self._curation.verdicts)
        return curate(records, self._curation, self._verdicts)

    def _codec(self, purpose: Literal["train", "eval", "predict"]) -> PRMCodec:
        return PRMCodec(self.trainer.lightning_module.bound_format, self._targets, self._max_length, purpose)


def _labelled(record: StepLabels) -> bool:
    return any(value is not None for value in record.values)
