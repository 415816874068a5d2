"""Data for supervised fine-tuning of a policy: questions with solutions."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from datamodules.batching import BatchConfig
from datamodules.encoding import SFTCodec
from datamodules.feeds import Feeds
from datamodules.loader import EvalLoader, TrainLoader, WorkerConfig
from datamodules.packing import check_packing
from datamodules.readers import demonstration_parser
from datamodules.sources import SourceConfig
from prmkit.errors import ConfigError

__all__ = ["SFTDataModule"]


class SFTDataModule(LightningDataModule):
    """Streams of SFTBatch. The loss counts the solution's tokens and the end of sequence behind it.

    The step format comes from `trainer.lightning_module.bound_format`.

    Args:
        train, val, test: sources of rows with a question and a solution. Weighted sources are mixed.
        batch: size of micro-batches for training.
        eval_batch: size otherwise; None is as for training. Evaluation drops no rows.
        max_length: tokens a row at most, prompt included, at least 2.
        overlong: "refuse" leaves longer rows out and counts them in the log; "truncate" cuts their ends off.
        packing: lay the rows of a training micro-batch end to end in one sequence, kept apart by position ids; needs
            batch.max_tokens, and a model whose attention tells packed rows apart (sdpa, eager or flash attention).
        epoch_rows: rows of an epoch of a weighted mixture, at least 1; None is the number of all rows.
        workers: how batches are prepared.
        seed: of the order of rows.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        train: list[SourceConfig] = [],  # noqa: B006 - never changed
        val: list[SourceConfig] = [],  # noqa: B006
        test: list[SourceConfig] = [],  # noqa: B006
        batch: BatchConfig = BatchConfig(rows=16),  # noqa: B008 - frozen
        eval_batch: BatchConfig | None = None,
        max_length: int = 1024,
        overlong: Literal["refuse", "truncate"] = "refuse",
        packing: bool = False,
        epoch_rows: int | None = None,
        workers: WorkerConfig = WorkerConfig(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_length < 2:
            raise ConfigError("data.max_length", max_length, "an integer of at least 2")
        if overlong not in ("refuse", "truncate"):
            raise ConfigError("data.overlong", overlong, "refuse | truncate")
        if packing and batch.max_tokens is None:
            raise ConfigError("data.packing", True, "false, unless data.batch.max_tokens says how long a sequence is")
        self._codec_options = (max_length, overlong)
        self._packing = packing
        stages = {"train": train, "val": val, "test": test}
        self._feeds = Feeds(stages, demonstration_parser, batch, eval_batch, workers, seed, epoch_rows, packing)

    def setup(self, stage: str) -> None:
        """Open the sources of a stage. Raises DataError for missing files, malformed first rows and empty data."""
        self._feeds.open(stage, self.trainer)

    def train_dataloader(self) -> TrainLoader:
        if self._packing:
            check_packing(self.trainer.lightning_module.model)
        return self._feeds.train(self.trainer, self._codec(self._packing))

    def val_dataloader(self) -> EvalLoader | list[Any]:
        return self._feeds.evaluation("val", self.trainer, self._codec())

    def test_dataloader(self) -> EvalLoader | list[Any]:
        return self._feeds.evaluation("test", self.trainer, self._codec())

    def state_dict(self) -> dict[str, Any]:
        """Position of the training stream."""
        return self._feeds.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._feeds.load_state_dict(state_dict)

    def _codec(self, packed: bool = False) -> SFTCodec:
        return SFTCodec(self.trainer.lightning_module.bound_format, *self._codec_options, packed=packed)
