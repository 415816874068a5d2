"""A resumed fit goes on from the very moment at which its checkpoint was written.

Lightning's loops restart correctly from a checkpoint written in the middle of an epoch. From one written behind an
epoch's last batch, or when the epoch ends, they go on with counters that are one off: validation, the hooks of the
epoch's end or those of the next one's start are left out, and after a second resume an epoch too many may be trained.
This callback puts the counters of a checkpoint into the one form that the loops take up exactly, wherever it was
written:

- behind a batch: validation follows if it is due, the epoch's end if it was the last batch, else the next batch;
- in or behind a validation: what the validation's end left to do;
- when an epoch ends or starts: that epoch's end is past, the next one starts.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage

from prmkit.dist import highest
from prmkit.errors import PrmkitError

__all__ = ["ExactResume", "repair_progress"]

_COUNTERS = ("ready", "started", "processed", "completed")
_AFTER_EPOCH, _AFTER_BATCH, _AFTER_VALIDATION = "epoch", "batch", "validation"


class ExactResume(Callback):
    """Makes any checkpoint of a fit resume exactly. It has no settings and no state; `prm fit` always has one.

    Checkpoints are to be written between optimiser steps: gradients of a window that is not complete are nowhere kept.
    """

    def __init__(self) -> None:
        self._moment: str | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if loops is not None and trainer.state.fn == "fit":
            self._moment = repair_progress(loops)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_ranks(trainer)
        moment, self._moment = self._moment, None
        fit_loop = trainer.fit_loop
        loop = fit_loop.epoch_loop
        if moment == _AFTER_EPOCH:
            loop.restarting = False  # an epoch like any other
        elif moment == _AFTER_BATCH:
            last = loop._num_ready_batches_reached()
            if loop._should_check_val_fx(fit_loop._data_fetcher):
                loop.val_loop.batch_progress.reset()
                loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION  # it is run from its start
                return
            if not loop._should_accumulate():
                loop._batches_that_stepped += 1  # the loop's own last act for a batch
            loop.val_loop._has_run = last  # nothing is left of this epoch but its end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A loop that had nothing left to do in its epoch would take the next one for the epoch it restarts.
        trainer.fit_loop.epoch_loop.restarting = False


def _check_ranks(trainer: Trainer) -> None:
    """Every rank looks for its checkpoint by itself, and folders may not look the same everywhere. Collective."""
    steps = highest(torch.tensor([trainer.global_step, -trainer.global_step], device=trainer.strategy.root_device))
    latest, earliest = int(steps[0]), -int(steps[1])
    if latest != earliest:
        raise PrmkitError(
            f"--ckpt_path: the processes go on from different checkpoints, of steps {earliest} to {latest}. The folder "
            f"of checkpoints has to be one that all machines see, and no other run may write into it."
        )


def repair_progress(loops: dict[str, Any]) -> str:
    """Put the counters of a checkpoint's fit loop into consistent form, in place.

    Args:
        loops: the state of Lightning's fit loop, as in `checkpoint["loops"]["fit_loop"]`.

    Returns:
        When it was written: behind a "batch", behind a "validation", or behind the end of an "epoch".
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    in_epoch = epochs["current"]["processed"] < epochs["current"]["started"]
    in_batch = batches["current"]["completed"] < batches["current"]["ready"]
    for kind in ("total", "current"):
        done = epochs[kind]["processed"]
        _set(epochs[kind], started=done + in_epoch, done=done)
        _set(batches[kind], started=batches[kind]["ready"], done=batches[kind]["ready"])
    if not in_epoch:
        return _AFTER_EPOCH
    validation = loops["epoch_loop.val_loop.batch_progress"]
    whole = validation["is_last_batch"] and len({validation["current"][name] for name in _COUNTERS}) == 1
    if in_batch or not whole:
        return _AFTER_BATCH
    return _AFTER_VALIDATION


def _set(tracker: dict[str, int], *, started: int, done: int) -> None:
    tracker.update(ready=started, started=started, processed=done, completed=done)
