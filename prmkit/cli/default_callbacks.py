"""What a fit does by itself: write the model's folder, what it has cost, and checkpoints.

A config whose `callbacks` replace those of an earlier config would otherwise train for hours and leave nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from callbacks.export import ExportPretrained
from callbacks.training_summary import TrainingSummary
from lightning_modules.prm import PRM

__all__ = ["default_callbacks"]

log = logging.getLogger(__name__)


def default_callbacks(
    trainer: dict[str, Any], module: LightningModule, *, export: bool, summary: bool
) -> list[Callback]:
    """Callbacks that a config lacks, for a module of `lightning_modules` or a class made from one; a line in the log
    names them. Modules of others may have batches and models of another kind.

    Args:
        trainer: arguments of the Trainer.
        module: what is trained.
        export: write the model's folder: `model` for a PRM, `policy` otherwise, in trainer.default_root_dir.
        summary: write training.json there.
    """
    ours = any(kind.__module__.partition(".")[0] == "lightning_modules" for kind in type(module).__mro__)
    if not ours or trainer.get("fast_dev_run"):
        return []
    given = trainer.get("callbacks") or []
    present: Sequence[Any] = given if isinstance(given, list) else [given]
    root = Path(trainer.get("default_root_dir") or ".")
    added: list[Callback] = []
    if export and not _has(present, ExportPretrained):
        added.append(ExportPretrained(str(root / ("model" if isinstance(module, PRM) else "policy"))))
    if summary and not _has(present, TrainingSummary):
        added.append(TrainingSummary(str(root / "training.json")))
    if trainer.get("enable_checkpointing") is not False and not _has(present, Checkpoint):
        added.append(ModelCheckpoint(dirpath=root / "checkpoints", save_on_train_epoch_end=True))
    if added:
        names = ", ".join(type(callback).__name__ for callback in added)
        log.info("the config has no %s; this fit has one, in %s (prm fit --help: leave out)", names, root)
    return added


def _has(callbacks: Sequence[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
