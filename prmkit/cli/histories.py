"""Loggers of a resumed fit continue the history that the run has: W&B by the run's id, CSVLogger by its file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from prmkit.cli.run_folder import is_first_process
from prmkit.io import write_atomic

__all__ = ["continue_histories"]


def continue_histories(trainer: Trainer, found: Mapping[str, Any], steps: int) -> None:
    """Prepare a trainer's loggers, before they begin, to continue at a checkpoint.

    Args:
        trainer: of the fit to be resumed.
        found: what `callbacks.resume_settings` had recorded in the checkpoint.
        steps: optimiser steps taken.
    """
    names = {"wandb": WandbLogger, "csv": CSVLogger}
    for name, kind in names.items():
        loggers = [each for each in trainer.loggers if isinstance(each, kind)]
        for logger, version in zip(loggers, found.get(name, ()), strict=False):
            _continue(logger, version)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and is_first_process():
            _keep_rows(logger, steps)


def _continue(logger: Any, version: Any) -> None:
    if version is None:
        return
    if isinstance(logger, WandbLogger) and logger._id is None:
        logger._id = logger._wandb_init["id"] = version
    elif isinstance(logger, CSVLogger) and logger._version is None:
        logger._version = version


class _Continued(ExperimentWriter):
    """A writer that keeps the rows of the steps up to the checkpoint, and leaves out those it is told again.

    Lightning's own removes the file. A resumed fit logs again what the checkpoint's last step had left to do (its
    validation, say); rows of later steps are those of the interrupted process, whose steps are done again.
    """

    def __init__(self, folder: str, steps: int) -> None:
        file = Path(folder) / self.NAME_METRICS_FILE
        with file.open(newline="", encoding="utf-8") as source:
            rows = [row for row in csv.DictReader(source) if int(row["step"]) < steps]
        self._told = [_values(row) for row in rows if int(row["step"]) == steps - 1]
        super().__init__(log_dir=folder)
        self.metrics_keys = sorted({key for row in rows for key in row} | {"step"})
        lines = [self.metrics_keys, *([row.get(key, "") for key in self.metrics_keys] for row in rows)]
        write_atomic(file, "".join(_line(line) for line in lines))

    def _check_log_dir_exists(self) -> None:
        """Lightning's removes the file of before."""

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        if _values(self.metrics[-1]) in self._told:
            self.metrics.pop()


def _keep_rows(logger: CSVLogger, steps: int) -> None:
    file = Path(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE
    if "://" not in str(logger.save_dir) and file.is_file():
        logger._experiment = _Continued(logger.log_dir, steps)


def _values(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in row.items() if value not in (None, "")}


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()
