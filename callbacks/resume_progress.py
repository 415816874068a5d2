"""A correction of Lightning's progress counters, without which a second resume goes astray."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["ResumeProgress"]


class ResumeProgress(Callback):
    """Counts the epoch that follows a resume at the very end of one.

    A checkpoint written behind the last batch of an epoch is resumed in the next epoch, which Lightning (2.6) then does
    not count as begun. The run itself is right, but a checkpoint written in that epoch looks like one between epochs,
    and a run resumed from it repeats batches. While a batch is trained on, one epoch has begun that is not processed.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        progress = trainer.fit_loop.epoch_progress
        if progress.current.ready == progress.current.processed:
            progress.increment_ready()
            progress.increment_started()
