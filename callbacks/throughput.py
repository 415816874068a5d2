"""Tokens per second of training."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.window import token_count
from prmkit.dist import world_size
from prmkit.errors import ConfigError

__all__ = ["TokensPerSecond"]


class TokensPerSecond(Callback):
    """Logs `train/tokens_per_second`: tokens fed to the model (padding not counted) by wall-clock time.

    Counted on this rank over the last batches and multiplied by the number of ranks, so that logging costs no
    communication. Time spent in validation is not counted.

    Args:
        every_n_batches: batches between two figures, at least 1.
    """

    def __init__(self, every_n_batches: int = 20) -> None:
        if every_n_batches < 1:
            raise ConfigError("throughput.every_n_batches", every_n_batches, "an integer of at least 1")
        self.every_n_batches = every_n_batches
        self._batches = self._tokens = 0
        self._seconds = 0.0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += int(token_count(batch))
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._batches += 1
        if self._batches == self.every_n_batches:
            pl_module.log("train/tokens_per_second", self._tokens * world_size() / self._seconds)
            self._batches = self._tokens = 0
            self._seconds = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()
