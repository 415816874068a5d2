"""Seconds and figures of every iteration of policy optimisation, validation left out of the seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class Iterations(Callback):
    """Appends a line an iteration to a JSONL file, rank 0's; the last line with the validation's figures.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path, self._start, self._examined = Path(path), 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._start, self._examined = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._examined -= time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._examined += time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        seconds = time.perf_counter() - self._start - self._examined
        figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"seconds": seconds, **figures}) + "\n")
