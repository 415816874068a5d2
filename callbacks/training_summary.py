"""What a fit has cost, as a small file beside its model."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.window import token_count
from prmkit.dist import summed
from prmkit.errors import ConfigError
from prmkit.io import write_json
from prmkit.ownership import check_file, json_has

__all__ = ["TrainingSummary"]


class TrainingSummary(Callback):
    """Writes {tokens, steps, epochs, seconds, metrics} to a JSON file when a fit ends well; rank 0 writes.

    `tokens` are those fed to the model in training, padding not counted, over all ranks. Tokens and `seconds` (wall
    clock) go on over interruptions: what was done after the last checkpoint, and is done again, counts once. Metrics
    are null where they are not defined (a first-error F1 over data without a right solution, say).

    Args:
        path: the file to write. One that is there is replaced when it is such a summary, and refused before training
            otherwise.
    """

    leaves_files = True  # left out of a fast_dev_run

    def __init__(self, path: str) -> None:
        if not path:
            raise ConfigError("training_summary.path", path, "the path of a file to write")
        self.path = path
        self._tokens = 0  # on this rank since the start or the resume
        self._tokens_before = 0  # on all ranks until then
        self._seconds_before = 0.0
        self._metrics_before: dict[str, float] = {}
        self._start = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            ours = json_has("tokens", "steps", "epochs", "seconds", "metrics")
            check_file("training_summary.path", self.path, ours, "training summary")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += int(token_count(batch))

    def state_dict(self) -> dict[str, Any]:
        # Collective: Lightning gathers callback states on every rank when it saves a checkpoint.
        return {"tokens": self._tokens_before + int(summed(self._tokens)), "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens_before, self._seconds_before = state_dict["tokens"], state_dict["seconds"]
        self._metrics_before = state_dict.get("metrics", {})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A fit that is resumed behind its last step logs nothing of that step again.
        checkpoint["callbacks"][self.state_key]["metrics"] = self._metrics(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        summary = {
            **self.state_dict(),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "metrics": {name: _finite(value) for name, value in sorted(self._metrics(trainer).items())},
        }
        if trainer.is_global_zero:
            write_json(self.path, summary)

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        return self._metrics_before | {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _seconds(self) -> float:
        elapsed = time.perf_counter() - self._start if self._start else 0.0
        return round(self._seconds_before + elapsed, 3)


def _finite(number: float) -> float | None:
    """The number, or None for NaN and infinity, which JSON does not know."""
    return number if math.isfinite(number) else None
