"""Progress of fit, validate, test and predict with the metrics that matter, in the look of all commands."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from lightning_modules.window import token_count
from prmkit.losses import world_size
from prmkit.progress import ProgressLine

__all__ = ["FitProgress", "headline"]

_SECONDS_BETWEEN_TEXTS = 0.5  # reading a metric waits for the accelerator
_TRAINING = {
    "train/loss": "loss",
    "rollout/reward": "reward",
    "rollout/outcome": "right",
    "train/accuracy": "preferred",
    "train/kl": "KL",
}
_EVALUATION = {
    "loss": "loss",
    "pass_at_1": "pass@1",
    "step_accuracy": "step accuracy",
    "auroc": "AUROC",
    "first_error_f1": "first-error F1",
    "accuracy": "preferred",
}


def headline(metrics: Mapping[str, Any], stage: str = "val") -> str:
    """The metrics of a validation (`val`) or test that tell how good a model is, in words; "" when there are none.

    Metrics under names of a user's own are given when none of ours is there.
    """
    found = {name.removeprefix(f"{stage}/"): float(v) for name, v in metrics.items() if name.startswith(f"{stage}/")}
    known = {shown: found[name] for name, shown in _EVALUATION.items() if name in found} or found
    return ", ".join(f"{name} {_number(value)}" for name, value in known.items() if math.isfinite(value))


class FitProgress(ProgressBar):
    """Shows optimiser steps, loss, reward, learning rate, tokens per second, and the metrics of the last validation.

    `prm fit` adds it unless `trainer.enable_progress_bar` is false or another progress bar is configured. Rank 0
    prints. Metrics are read where Lightning has them already: no rank waits for another.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._line: ProgressLine | None = None
        self._text = self._validated = ""
        self._text_time = self._sampled_time = -math.inf
        self._tokens: Tensor | int = 0
        self._seconds, self._since = 0.0, 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    # -- training -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self._open("fit", int(steps) if math.isfinite(steps) and steps > 0 else None, trainer.global_step)
        data: Any = getattr(trainer, "datamodule", None)
        if self._line is not None and hasattr(data, "watch"):
            data.watch = lambda done, total: self._sampled(trainer, done, total)
        self._tokens, self._seconds = 0, 0.0

    def _sampled(self, trainer: Trainer, done: int, total: int) -> None:
        """Show how far the sampling of an iteration has come, which may take much longer than a step."""
        now = time.monotonic()
        if self._line is not None and (done == total or now - self._sampled_time >= _SECONDS_BETWEEN_TEXTS):
            self._sampled_time = now
            text = f"sampling: {done} of {total} prompts"
            self._line.advance(f"{text}; {self._text}" if self._text else text, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._line is None:
            return
        now = time.monotonic()
        self._tokens = self._tokens + _tokens(batch)
        self._seconds += now - self._since
        self._since = now
        if now - self._text_time >= _SECONDS_BETWEEN_TEXTS:
            self._text_time, self._text = now, self._training(trainer, outputs)
        self._line.advance(self._text, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._open_evaluation("validate", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit" and self._line is not None:
            self._line.advance("")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.state.fn != "fit":
            self._close()
        elif self._line is not None and not trainer.sanity_checking:
            self._validated = headline(metrics)
            self._text = self._training(trainer)
            self._line.advance(self._text, trainer.global_step, always=True)
        self._since = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    # -- other commands -----------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_evaluation("test", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._line is not None:
            self._line.advance("")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_evaluation("predict", trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._line is not None:
            self._line.advance("")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    # -- the line -----------------------------------------------------------------------------------------------------

    def _open(self, name: str, total: int | None, done: int = 0) -> None:
        if self._enabled:
            self._line = ProgressLine(name, total, done).__enter__()

    def _open_evaluation(self, name: str, batches: list[int | float]) -> None:
        total = sum(batches)
        self._open(name, int(total) if math.isfinite(total) else None)

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _training(self, trainer: Trainer, outputs: Any = None) -> str:
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        if isinstance(outputs, Mapping) and "loss" in outputs:
            metrics.setdefault("train/loss", outputs["loss"])  # a user's module that logs none
        epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}"]
        shown = {name: float(metrics[name]) for name in _TRAINING if name in metrics}
        if shown.get("rollout/outcome") == shown.get("rollout/reward"):  # the outcome is the only reward
            shown.pop("rollout/outcome", None)
        parts += [f"{_TRAINING[name]} {_number(value)}" for name, value in shown.items()]
        if "train/lr" in metrics:
            parts.append(f"lr {float(metrics['train/lr']):.1e}")
        if self._seconds > 0.0 and int(self._tokens):
            parts.append(f"{int(self._tokens) * world_size() / self._seconds:,.0f} tokens/s")
        return ", ".join(parts) + (f"; validation: {self._validated}" if self._validated else "")


def _tokens(batch: Any) -> Tensor | int:
    """Tokens of a batch; 0 where a user's own data have none."""
    known = isinstance(getattr(batch, "input_ids", None), torch.Tensor) and hasattr(batch, "attention_mask")
    return token_count(batch) if known else 0


def _number(value: float) -> str:
    """Three decimals; for what they do not resolve two significant digits."""
    return f"{value:.3f}" if value == 0.0 or 0.001 <= abs(value) < 10_000 else f"{value:.1e}"
