"""What every optimiser step did, a line a step and a rank, out of the process's hands before any checkpoint of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

CLOCK = ("seconds", "per_second")


class StepDiary(Callback):
    """Appends {step, epoch, ids, metrics} to `rank-R.jsonl`; figures of clocks are left out.

    Args:
        dirpath: folder of the files; made when missing.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 - called by Lightning
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        logged = {name: value.item() for name, value in trainer.callback_metrics.items() if not name.endswith(CLOCK)}
        line = {"step": trainer.global_step, "epoch": trainer.current_epoch, "ids": list(batch.ids), "metrics": logged}
        self.dirpath.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.dirpath / f"rank-{trainer.global_rank}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, json.dumps(line).encode() + b"\n")  # in one piece: a kill leaves no half line
        os.close(handle)


def read_diary(dirpath: Path) -> list[list[dict[str, Any]]]:
    """Lines by rank."""
    return [[json.loads(line) for line in file.open()] for file in sorted(dirpath.glob("rank-*.jsonl"))]
