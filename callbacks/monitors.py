"""A metric that a callback monitors is there, or the fit ends at the first place at which it should have been."""

from __future__ import annotations

import difflib
import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from prmkit.errors import ConfigError

__all__ = ["MonitorCheck"]

logger = logging.getLogger(__name__)


class MonitorCheck(Callback):
    """Checks what `EarlyStopping`, `ModelCheckpoint` and other callbacks monitor; `prm fit` has one.

    Lightning checks when a callback first looks; without validation data ModelCheckpoint then warns and saves nothing.
    Here metrics of the validation are checked when one first ends, and all of them after the first epoch with one; a
    fit that ends before that warns.

    Raises:
        ConfigError: names the callback, the metric, and those that are there.
    """

    def __init__(self) -> None:
        self._whole = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _check(trainer, "val")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The end of an epoch comes too early: the module may log there, after its callbacks.
        if trainer.current_epoch > 0:
            self._check_all(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._check_all(trainer)
        if not self._whole and (error := _missing(trainer, "")):  # it may be one of a validation that never came
            logger.warning("nothing was chosen by a metric that this fit did not log: %s", error)

    def _check_all(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        validated = not trainer.enable_validation or any(name.startswith("val") for name in metrics)
        if not self._whole and metrics and validated:  # a resumed fit has no metrics of its own yet
            self._whole = True
            _check(trainer, "")


def _check(trainer: Trainer, prefix: str) -> None:
    if error := _missing(trainer, prefix):
        raise error


def _missing(trainer: Trainer, prefix: str) -> ConfigError | None:
    """What to say of the first monitored metric with this prefix that is not there."""
    if trainer.fast_dev_run:
        return None
    known = sorted(map(str, trainer.callback_metrics))
    callbacks: list[Any] = trainer.callbacks
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str) or not monitor.startswith(prefix) or not getattr(callback, "strict", True):
            continue
        if monitor not in known and monitor not in ("epoch", "step"):
            near = difflib.get_close_matches(monitor, known, n=1)
            return ConfigError(
                f"trainer.callbacks.{type(callback).__name__}.monitor",
                monitor,
                ", ".join(known) or "null, for this fit logs no metrics",
                f"Did you mean {near[0]}?" if near else "",
            )
    return None
