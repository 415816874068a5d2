"""Write the trained model as a folder that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from prmkit.errors import ConfigError
from prmkit.models import check_target, is_sharded
from prmkit.ownership import real_path

__all__ = ["ExportPretrained"]


class _Exports(Protocol):
    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None: ...


class ExportPretrained(Callback):
    """Writes the model's folder when a fit ends, whole or not at all; rank 0 writes, the others wait (and
    hand in their parts of weights that are divided, one parameter after another).

    The folder holds weights (adapters folded in), configuration, tokenizer and step format. A fit that is stopped by an
    error leaves the folder of before.

    Args:
        dirpath: the folder. A model folder that prmkit wrote is replaced; one that holds anything else is refused
            before training, and so is a folder in which the run keeps its checkpoints or logs.
        every_validation: write it after every validation of a fit, too.
        weight_version: version to stamp on the weights.
    """

    leaves_files = True  # left out of a fast_dev_run

    def __init__(self, dirpath: str, every_validation: bool = False, weight_version: int = 0) -> None:
        if not dirpath:
            raise ConfigError("export.dirpath", dirpath, "the path of a folder to write")
        self.dirpath = dirpath
        self.every_validation = every_validation
        self.weight_version = weight_version

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "export_pretrained"):
            raise ConfigError(
                "trainer.callbacks.ExportPretrained", type(pl_module).__name__, "a module with export_pretrained"
            )
        if stage == "fit":
            check_target("export.dirpath", self.dirpath)
            self._check_run_folders(trainer)

    def _check_run_folders(self, trainer: Trainer) -> None:
        """Refuse a folder that is to be replaced as a whole, and in which the run itself writes."""
        target = real_path(self.dirpath)
        savers = [getattr(saver, "dirpath", None) for saver in trainer.checkpoint_callbacks]
        loggers = [logger.save_dir for logger in trainer.loggers]
        for folder in (trainer.default_root_dir, *savers, *loggers):
            if folder is None or "://" in str(folder):
                continue
            place = real_path(folder)
            if target == place or target in place.parents:
                raise ConfigError(
                    "export.dirpath",
                    self.dirpath,
                    "a folder for the model alone",
                    f"The run writes its own files to {place}; name a folder in it, e.g. {place / 'model'}.",
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_target("export.dirpath", self.dirpath)  # again: on every process, so that none waits for the first
        if trainer.is_global_zero or is_sharded(pl_module):  # divided weights are put together by all
            cast(_Exports, pl_module).export_pretrained(self.dirpath, self.weight_version)
        trainer.strategy.barrier("export_pretrained")
