"""Stop on a signal or when time is used up, at the next place from which a fit can go on exactly, with a checkpoint and
a status of its own.

A cluster that takes a machine back sends SIGTERM, or a signal that the job asked for (SLURM: `--signal=USR1@180`), and
SIGKILL a while later. On either signal, to any of the processes, all of them save one checkpoint behind the same
optimiser step and end with the status `REQUEUE`: put the job into the queue again. A budget of time per start
(`trainer.max_time`) ends the same way.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from prmkit.dist import highest
from prmkit.errors import ConfigError

__all__ = ["REQUEUE", "Preempted", "Preemption", "ignore_signals"]

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again
PREFIX = "preempted-"

logger = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], Any] | int | None

_listened: set[signal.Signals] = set()


class Preempted(SystemExit):
    """Raised on every rank once the checkpoint is whole. Not caught, it ends the process with status `REQUEUE`."""

    def __init__(self, path: str) -> None:
        super().__init__(REQUEUE)
        self.path = path


def ignore_signals() -> None:
    """Ignore the signals that fits of this process have listened to, from now on; a process calls it when its status is
    decided. The interpreter takes its own handlers away before it ends, half a second earlier."""
    for number in _listened:
        signal.signal(number, signal.SIG_IGN)


class Preemption(Callback):
    """Saves and stops when a signal asks for it or time is used up; `prm fit` has one whenever a ModelCheckpoint has a
    `dirpath`.

    The signal may reach any rank at any moment. Ranks agree, in one small all-reduce a step, on the step behind which
    they stop; the end of a validation and of an epoch are such places, too. The time between signal and SIGKILL has to
    cover the longest of an optimiser step, an iteration's rollouts and a validation, and the writing of a checkpoint.

    While a fit runs, these signals are the callback's. Lightning's own handlers are put aside: on SIGTERM they enter a
    collective from within the handler, and under SLURM they write a checkpoint in the middle of a step.

    Args:
        dirpath: folder of the checkpoint, `preempted-STEP.ckpt`, an older one of which is removed; None is that of the
            first ModelCheckpoint. One that a ModelCheckpoint has written behind this very step does as well.
        signals: names of signals, at least one.
        seconds: time from the start of the fit, in this process, until it stops; None sets no limit. Every start
            completes at least one step or validation. `prm fit` puts `trainer.max_time` here.

    Raises:
        ConfigError: no folder, no signals, or no time.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        seconds: float | None = None,
    ) -> None:
        if not signals or any(not hasattr(signal, name) for name in signals):
            raise ConfigError("preemption.signals", list(signals), "names of signals, such as SIGTERM and SIGUSR1")
        if seconds is not None and not seconds > 0:
            raise ConfigError("preemption.seconds", seconds, "a positive number, or null for no limit")
        self.dirpath, self.seconds = dirpath, seconds
        self._started = 0.0
        self._signals = tuple(signal.Signals[name] for name in signals)
        self._before: dict[signal.Signals, Handler] = {}
        self._asked: int | None = None
        self._old: list[Path] = []

    # -- signals ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._started = time.monotonic()
            self.dirpath = self.dirpath or _folder(trainer)
            self._old = sorted(Path(self.dirpath).glob(f"{PREFIX}*.ckpt")) if "://" not in self.dirpath else []
            self._listen()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()  # Lightning has set its own handlers since

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Preempted):
            self._restore()

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "preemption: signals reach the main thread only; this fit, in another, will not stop on them"
            )
            return
        for number in self._signals:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)
            _listened.add(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._asked = number  # no more: what happens next belongs to a step's end

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    # -- places to stop at --------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._stop_if_asked(trainer, "step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer, "epoch")

    def _stop_if_asked(self, trainer: Trainer, place: str) -> None:
        late = self.seconds is not None and time.monotonic() - self._started >= self.seconds
        if not _any_rank(self._asked is not None or late, trainer.strategy.root_device):
            return
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)  # whoever ends first has the others sent one more
        if place == "step":
            trainer._logger_connector.update_train_step_metrics()  # what the step logged; later no one would
        path = self._save(trainer)
        for each in trainer.loggers:
            each.save()
        logger.warning(
            "%s: stopping behind optimiser step %d; %s is whole. Go on with --ckpt_path last. Status %d.",
            self._reason(late),
            trainer.global_step, path, REQUEUE,
        )  # fmt: skip
        raise Preempted(path)

    def _reason(self, late: bool) -> str:
        if self._asked is not None:
            return signal.Signals(self._asked).name
        return f"{self.seconds:g} s are used up" if late else "asked for on another rank"

    def _save(self, trainer: Trainer) -> str:
        """Path of a whole checkpoint of this step. Collective."""
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint) and not saver.save_weights_only:
                path, step = str(saver._last_checkpoint_saved), saver._last_global_step_saved
                if path and step == trainer.global_step:
                    trainer.strategy.barrier("preemption")
                    return path
        target = f"{self.dirpath}/{PREFIX}{trainer.global_step}.ckpt"
        trainer.save_checkpoint(target)
        trainer.strategy.barrier("preemption")
        for old in self._old:
            if str(old) != target:
                trainer.strategy.remove_checkpoint(old)
        return target


def _folder(trainer: Trainer) -> str:
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and saver.dirpath is not None:
            return str(saver.dirpath)
    raise ConfigError("preemption.dirpath", None, "a folder, or a ModelCheckpoint with a dirpath")


def _any_rank(asked: bool, device: torch.device) -> bool:
    """Collective when there are several ranks."""
    return bool(highest(torch.tensor(int(asked), device=device)))
