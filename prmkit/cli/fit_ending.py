"""What `prm fit`, `validate`, `test` and `predict` print when they end well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callbacks.export import ExportPretrained
from callbacks.predictions import PredictionsWriter
from callbacks.progress import headline
from callbacks.reward_guards import RewardGuards
from callbacks.training_summary import TrainingSummary
from lightning_modules.prm import PRM
from lightning_modules.sft import SFT
from prmkit.cli.ending import config_stems, following_policy, following_prm, model_kind, search_command, show_ending
from prmkit.io import read_json
from prmkit.progress import format_seconds
from prmkit.resources import config_root

if TYPE_CHECKING:
    from prmkit.cli.trainer_cli import PrmCLI

__all__ = ["show_outcome"]


def show_outcome(cli: PrmCLI) -> None:
    """Print what a command made, how good it is and what to type next; rank 0 prints."""
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    if not cli.trainer.is_global_zero:
        return
    if cli.command == "fit":
        _fit(cli, metrics)
    elif cli.command == "predict":
        paths = [found.path for found in _found(cli, PredictionsWriter)]
        lines = sum(1 for path in paths for _ in path.open("rb"))
        show_ending(paths, [f"step scores of {lines:,} solutions"], [_again(cli, "validate")])
    else:
        stage = "val" if cli.command == "validate" else "test"
        of_stage = {name: value for name, value in metrics.items() if name.startswith(f"{stage}/")}
        results = [headline(metrics, stage), ", ".join(f"{name} {value:.4f}" for name, value in of_stage.items())]
        show_ending([], results, [_again(cli, "predict")] if isinstance(cli.model, PRM) else [])


def _fit(cli: PrmCLI, metrics: dict[str, float]) -> None:
    trainer = cli.trainer
    if getattr(trainer, "fast_dev_run", False):
        show_ending([], [f"a smoke test of {trainer.global_step} steps; nothing is kept"], [])
        return
    models = [os.path.normpath(found.dirpath) for found in _found(cli, ExportPretrained)]
    summaries = [os.path.normpath(found.path) for found in _found(cli, TrainingSummary)]
    results = [f"{trainer.global_step:,} optimiser steps"]
    if summaries and Path(summaries[0]).is_file():
        summary = read_json(summaries[0])
        metrics = {name: value for name, value in summary["metrics"].items() if value is not None} | metrics
        results = [f"{results[0]}, {summary['tokens']:,} tokens, {format_seconds(summary['seconds'])}"]
    validated = headline(metrics)
    results.insert(0, f"validation: {validated}" if validated else "")
    results += [_guarded(found) for found in _found(cli, RewardGuards) if found.warnings]
    if not models:
        folders = [str(found.dirpath) for found in trainer.checkpoint_callbacks if getattr(found, "dirpath", None)]
        show_ending(dict.fromkeys(folders), results, [("prm", "export", folder, "OUT") for folder in folders[:1]])
        return
    show_ending([*models, *summaries], results, [_next(cli, models[0])])


def _guarded(guards: RewardGuards) -> str:
    """What guards warned of, in one line."""
    (first, _), (last, said) = guards.warnings[0], guards.warnings[-1]
    when = f"step {first}" if first == last else f"steps {first} to {last}"
    return f"reward guards warned at optimiser {when}; the last: {said}"


def _next(cli: PrmCLI, model: str) -> list[str]:
    """The command that uses the model of a fit."""
    stems, task = config_stems(cli.arguments), _task(cli.config)
    if isinstance(cli.model, SFT):
        return following_policy(model, stems, task)
    if isinstance(cli.model, PRM):
        source = cli.model.source.path
        policy = os.path.normpath(source) if source is not None and model_kind(source) == "policy" else None
        return following_prm(model, policy, stems, task)
    folder = Path(model).parent
    prm = folder.parent / "prm" / "model"
    return search_command(model, prm if prm.is_dir() else None, folder / "search", stems, task)


def _again(cli: PrmCLI, command: str) -> list[str]:
    """The same arguments under another command, shipped configs by their short names."""
    root = f"{config_root()}{os.sep}"
    words = [f"configs/{word.removeprefix(root)}" if word.startswith(root) else word for word in cli.arguments]
    return ["prm", command, *words]


def _found(cli: PrmCLI, kind: type[Any]) -> Sequence[Any]:
    return [callback for callback in cli.trainer.callbacks if isinstance(callback, kind)]


def _task(config: Any) -> str | None:
    """The name of the task that a data module's settings read, when they read one."""
    settings = config.data.init_args
    for name in ("prompts", "train"):
        for source in _several(settings.get(name)):
            found = getattr(source, "task", None) or (getattr(source, "kind", "") == "task" and source.name)
            if found:
                return str(found)
    return None


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]
