"""A resumed fit takes its settings from its config and its state from the checkpoint.

Lightning restores an optimiser's learning rate, weight decay and betas, a schedule's base rates, and an EarlyStopping's
patience from the checkpoint, over those of the config. Here the checkpoint gives moments and counters only.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.optimizers import WarmupDecay
from prmkit.errors import PrmkitError

__all__ = ["RECORD", "ResumeSettings"]

RECORD = "prmkit"
"""Key of a checkpoint under which a fit's settings are recorded."""

_COUNTERS = ("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "verbose")

logger = logging.getLogger(__name__)


class ResumeSettings(Callback):
    """Records a fit's settings in its checkpoints, and keeps the config's at a resume; `prm fit` has one.

    - Optimiser groups keep the config's values. Another class of optimiser, or weights of other shapes, is refused.
    - `WarmupDecay` schedules continue at the checkpoint's step with the config's rates; when the number of batches, the
      accumulation or the length of the fit has changed, they end at the step at which the fit will now end.
    - Of torch's own schedules, those whose rate is a function of the step take the config's values; others continue
      with the checkpoint's, and a warning says so where base rates differ.
    - Callbacks whose state repeats an argument of theirs (`EarlyStopping.patience`) keep the argument's value.

    Args:
        settings: dotted key to plain value, written into every checkpoint.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.settings = dict(settings or {})
        self.found: dict[str, Any] = {}  # what was recorded in the checkpoint
        self._path: str | None = None
        self._position = (0, 0, 0)  # epochs, batches of the next one, optimiser steps
        self._groups: list[list[dict[str, Any]]] = []
        self._schedules: list[dict[str, Any]] = []
        self._record: dict[str, Any] = {}

    def expect(self, path: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Name the checkpoint that will be loaded; returns what was recorded in it. Under ZeRO it is loaded only after
        the optimisers' shards are."""
        self._path, self.found = path, dict(checkpoint.get(RECORD, {}))
        return self.found

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = {
            **self._record,
            "settings": self.settings,
            "length": _length(trainer),
            "total": next((float(schedule.total) for schedule in _own_schedules(trainer)), None),
            "wandb": [each.version for each in trainer.loggers if isinstance(each, WandbLogger)],
            "csv": [each.version for each in trainer.loggers if isinstance(each, CSVLogger)],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        states = checkpoint.get("callbacks", {})
        self.found = checkpoint.get(RECORD, {})
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]["current"]
        in_epoch = epochs["processed"] < epochs["started"]
        self._position = (epochs["processed"], batches["ready"] if in_epoch else 0, checkpoint["global_step"])
        callbacks: list[Any] = trainer.callbacks
        for callback in callbacks:
            state = states.get(callback.state_key)
            if isinstance(state, dict) and not isinstance(callback, Checkpoint):
                arguments = inspect.signature(type(callback)).parameters
                state.update({k: getattr(callback, k) for k in state if k in arguments and hasattr(callback, k)})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the optimisers are built, before their states are restored.
        self._groups = [[_without_parameters(group) for group in each.param_groups] for each in trainer.optimizers]
        self._schedules = [_settings_of(config.scheduler) for config in trainer.lr_scheduler_configs]
        self._record = {
            "optimizers": [_class_name(each) for each in trainer.optimizers],
            "shapes": {name: list(_shape(weight)) for name, weight in pl_module.named_parameters()},
        }
        _check(self._record, self.found, self._path or trainer.ckpt_path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:
            return
        kept = {id(config.scheduler.optimizer): _scheduled(config.scheduler) for config in trainer.lr_scheduler_configs}
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            theirs = kept.get(id(getattr(optimizer, "optimizer", optimizer)), kept.get(id(optimizer), ()))
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group.update({name: value for name, value in own.items() if name not in theirs})
        for config, own in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            if isinstance(config.scheduler, WarmupDecay):
                self._set_length(trainer, config.scheduler)
            else:
                _keep_schedule(config.scheduler, own)

    def _set_length(self, trainer: Trainer, schedule: WarmupDecay) -> None:
        if self.found.get("length") == _length(trainer) and self.found.get("total") is not None:
            total = self.found["total"]
        else:
            total = _steps_in_all(trainer, *self._position)
        schedule.ends_at(schedule.total if total is None else total)


def _length(trainer: Trainer) -> dict[str, Any]:
    """What decides how many optimiser steps a fit has."""
    return {
        "batches": float(trainer.num_training_batches),
        "accumulate": trainer.accumulate_grad_batches,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
    }


def _steps_in_all(trainer: Trainer, epochs: int, batches: int, steps: int) -> float | None:
    """Optimiser steps of the whole fit, counted from a position in it; None where the data have no length."""
    if trainer.max_epochs in (None, -1) or math.isinf(trainer.num_training_batches):
        return None
    window = trainer.accumulate_grad_batches
    rest = max(0, int(trainer.num_training_batches) - batches)
    total = steps + math.ceil(rest / window)
    total += max(0, trainer.max_epochs - epochs - 1) * math.ceil(trainer.num_training_batches / window)
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def _check(own: Mapping[str, Any], found: Mapping[str, Any], path: object) -> None:
    """Refuse what the checkpoint's state cannot be loaded into (PrmkitError)."""
    if "optimizers" in found and found["optimizers"] != own["optimizers"]:
        raise PrmkitError(
            f"--ckpt_path {path}: its optimiser is {', '.join(found['optimizers'])}, this fit's is "
            f"{', '.join(own['optimizers'])}, which cannot continue from its state. Keep the class of optimiser, or "
            f"start from the weights: `prm export` and --model.source.path."
        )
    theirs, ours = found.get("shapes", own["shapes"]), own["shapes"]
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise PrmkitError(
                f"--ckpt_path {path}: {name} is {theirs.get(name, 'not there')} in the checkpoint and "
                f"{ours.get(name, 'not there')} in this config's model. A model keeps its sizes at a resume: set "
                f"model.source as in the run's config.yaml, or start without --ckpt_path."
            )


def _scheduled(scheduler: Any) -> tuple[str, ...]:
    """Entries of an optimiser's groups that a schedule sets."""
    return ("lr",) if _is_function_of_step(scheduler) else ("lr", "betas", "momentum")


def _is_function_of_step(scheduler: Any) -> bool:
    return isinstance(scheduler, LambdaLR) or hasattr(scheduler, "_get_closed_form_lr")


def _keep_schedule(scheduler: Any, own: dict[str, Any]) -> None:
    """Give one of torch's schedules the config's settings at the checkpoint's step."""
    if _settings_of(scheduler) == own:
        return
    if not _is_function_of_step(scheduler):
        if own.get("base_lrs") != _settings_of(scheduler).get("base_lrs"):
            logger.warning(
                "resume: %s continues with the checkpoint's rates %s, not the config's %s: its rate is no function of "
                "the step",
                type(scheduler).__name__, scheduler.base_lrs, own.get("base_lrs"),
            )  # fmt: skip
        return
    scheduler.load_state_dict({**scheduler.state_dict(), **own})
    closed = getattr(scheduler, "_get_closed_form_lr", None)
    if closed is not None:
        rates = closed()
    else:
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * factor(scheduler.last_epoch) for base, factor in pairs]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _settings_of(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in scheduler.state_dict().items() if name not in _COUNTERS}


def _own_schedules(trainer: Trainer) -> list[WarmupDecay]:
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [each for each in found if isinstance(each, WarmupDecay)]


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _class_name(optimizer: Any) -> str:
    """Name of the class that steps; DeepSpeed wraps it."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


def _shape(weight: Any) -> tuple[int, ...]:
    """Shape of a whole weight; ZeRO 3 leaves an empty one in its place."""
    return tuple(getattr(weight, "ds_shape", weight.shape))
