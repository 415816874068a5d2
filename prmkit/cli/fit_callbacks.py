"""What the command line adds to a trainer, and what it leaves out of a smoke test."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.monitors import MonitorCheck
from callbacks.preemption import Preemption
from callbacks.resume_settings import ResumeSettings
from prmkit.cli.resume import flat_settings
from prmkit.errors import ConfigError

__all__ = ["complete_trainer"]

log = logging.getLogger(__name__)


def complete_trainer(trainer: Trainer, command: str, config: Any) -> None:
    """Complete the callbacks of a command's trainer, in place.

    Args:
        trainer: as the config describes it, the callbacks of `prm fit` included.
        command: "fit", "validate", "test" or "predict".
        config: the merged config.

    Raises:
        ConfigError: a limit of time without a folder for the checkpoint to stop with.
    """
    if trainer.accumulate_grad_batches < 1:
        raise ConfigError(
            "trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, "an integer of at least 1"
        )
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if trainer.fast_dev_run:
        _leave_out_writers(callbacks)
    strategy: Any = trainer.strategy
    if isinstance(strategy.checkpoint_io, AtomicCheckpointIO):
        strategy.checkpoint_io.weights_only = config.weights_only
    elif hasattr(strategy, "weights_only"):
        strategy.weights_only = config.weights_only
    if command == "fit":
        _limit_time(callbacks)
        callbacks[:0] = [ResumeSettings(flat_settings(config)), MonitorCheck()]


def _leave_out_writers(callbacks: list[Any]) -> None:
    """A smoke test leaves files as they are. Lightning leaves out its loggers and savers itself."""
    writers = [callback for callback in callbacks if getattr(callback, "leaves_files", False)]
    callbacks[:] = [callback for callback in callbacks if callback not in writers]
    names = ", ".join(type(writer).__name__ for writer in writers)
    log.info("fast_dev_run: nothing is written%s", f"; left out: {names}" if names else "")


def _limit_time(callbacks: list[Any]) -> None:
    """`trainer.max_time` is a budget per start, after which a fit saves and asks to be continued. Lightning's Timer
    counts all starts together and ends as if training were complete."""
    timers = [each for each in callbacks if isinstance(each, Timer) and each._duration is not None]
    if not timers:
        return
    seconds = min(timer._duration for timer in timers)
    preemption = next((each for each in callbacks if isinstance(each, Preemption)), None)
    if preemption is None:
        raise ConfigError(
            "trainer.max_time",
            f"{seconds:g} s",
            "null, or a ModelCheckpoint with a dirpath and `preemption` not switched off",
            "A fit whose time is used up leaves a checkpoint there, from which it is continued.",
        )
    preemption.seconds = seconds if preemption.seconds is None else min(seconds, preemption.seconds)
    callbacks[:] = [each for each in callbacks if each not in timers]
