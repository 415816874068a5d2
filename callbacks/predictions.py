"""Writes what `predict_step` returns as JSON lines: `predictions.jsonl`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from prmkit.errors import DataError
from prmkit.ownership import check_file, first_line_has, real_path, remove_file, rename

__all__ = ["PredictionsWriter"]


class PredictionsWriter(pl.Callback):
    """One line a prediction, written as the batches come; the file appears when all of them are there.

    `predict_step` returns a sequence of mappings with plain values, one a row of the batch. Each process writes a
    hidden part; the first joins them in order of rank under the final name, so that a killed run leaves the old file.

    Args:
        path: the JSON-lines file to write. One that is there is replaced when its first line has the fields that the
            module names in `prediction_fields`, and refused otherwise.
    """

    leaves_files = True  # left out of a fast_dev_run

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = real_path(path)

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.rank{rank}.tmp")

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict":
            ours = first_line_has(*getattr(pl_module, "prediction_fields", ()))
            check_file("predictions", self.path, ours, "file of predictions")

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_bytes(b"")

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in _rows(outputs)]
        with self._part(trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(lines)

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.barrier("predictions written")
        if not trainer.is_global_zero:
            return
        whole = self.path.with_name(f".{self.path.name}.tmp")
        with whole.open("wb") as target:
            for rank in range(trainer.world_size):
                with self._part(rank).open("rb") as part:
                    shutil.copyfileobj(part, target)
            target.flush()
            os.fsync(target.fileno())
        rename(whole, self.path)
        for rank in range(trainer.world_size):
            remove_file(self._part(rank))


def _rows(outputs: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(outputs, Sequence) and all(isinstance(row, Mapping) for row in outputs):
        return outputs
    raise DataError(
        f"predict_step returned {type(outputs).__name__}; `prm predict` writes a sequence of mappings, one a row"
    )
