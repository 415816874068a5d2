"""Write the trained model as a folder that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from prmkit.errors import ConfigError
from prmkit.models import is_sharded

__all__ = ["ExportPretrained"]


class _Exports(Protocol):
    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None: ...


class ExportPretrained(Callback):
    """Writes the model's folder when a fit ends, whole or not at all; rank 0 writes, the others wait (and
    hand in their parts of weights that are divided, one parameter after another).

    The folder holds weights (adapters folded in), configuration, tokenizer and step format. A fit that is stopped by an
    error leaves the folder of before.

    Args:
        dirpath: the folder; an existing one is replaced.
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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero or is_sharded(pl_module):  # divided weights are put together by all
            cast(_Exports, pl_module).export_pretrained(self.dirpath, self.weight_version)
        trainer.strategy.barrier("export_pretrained")
