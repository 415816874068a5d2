"""Lines of libraries that a user can do nothing about, kept out of the terminal.

A line is listed only when prmkit says the same in its own words or when no setting changes it. Real warnings stay.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

__all__ = ["checkpoint_follows", "quiet_libraries", "warn_of_earlier_run", "weights_follow"]

logger = logging.getLogger(__name__)

_DROPPED = {
    "lightning.pytorch.utilities.rank_zero": (
        "GPU available: False",  # `prm doctor` lists devices
        "TPU available: False",
        "Loading `train_dataloader`",
        "Restoring states from",  # "resuming from" is ours
        "`Trainer.fit` stopped: `max_",  # the ending of `prm fit` has the steps
        "litlogger",  # advertisements
        "litmodels",
    ),
    "lightning.pytorch.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
    # It says so, where it is installed, of every machine without a GPU when accelerate imports it.
    "DeepSpeed": ("Setting accelerator to CPU",),
    # `prmkit.models` names missing and unused weights itself, and refuses where they matter.
    "transformers.modeling_utils": ("LOAD REPORT",),
    "transformers.utils.loading_report": ("LOAD REPORT",),
}
_WARNINGS = (
    r".*LeafSpec.* is deprecated",  # Lightning's own use of torch
    r".*resuming from a checkpoint that ended before the epoch ended",  # the data modules keep positions themselves
    r"Checkpoint directory .* exists and is not empty",  # any file counts; `warn_of_earlier_run` looks for checkpoints
)
_follows: ContextVar[bool] = ContextVar("checkpoint_follows", default=False)


class _Filter(logging.Filter):
    """Drops the records that contain one of some texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self._texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in self._texts)


def quiet_libraries() -> None:
    """Install the filters; once per process is enough, more often does no harm."""
    for name, texts in _DROPPED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Filter) for found in logger.filters):
            logger.addFilter(_Filter(texts))
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def warn_of_earlier_run(folders: Iterable[str | Path | None]) -> None:
    """Warn of a fit that starts from the beginning in a folder of checkpoints."""
    for folder in dict.fromkeys(str(folder) for folder in folders if folder is not None):
        if next(Path(folder).glob("*.ckpt"), None) is not None:
            text = "%s: holds checkpoints of an earlier run, and this one starts anew; `--ckpt_path last` continues it"
            logger.warning(text, folder)


@contextmanager
def checkpoint_follows(follows: bool = True) -> Iterator[None]:
    """Models that are built inside the block receive their weights from a checkpoint: new weights are no news."""
    token = _follows.set(follows)
    try:
        yield
    finally:
        _follows.reset(token)


def weights_follow() -> bool:
    """True if the caller is inside `checkpoint_follows`."""
    return _follows.get()
