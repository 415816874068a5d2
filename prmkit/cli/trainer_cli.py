"""The LightningCLI of prmkit, and the run of its trainer. Imports Lightning; `prmkit.cli.fit` decides when."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from callbacks.checkpoint_io import AtomicCheckpointIO, newest_checkpoint
from callbacks.exact_resume import ExactResume
from callbacks.predictions import PredictionsWriter
from callbacks.preemption import REQUEUE, Preempted, Preemption
from callbacks.progress import FitProgress
from prmkit.checkpoints import read_sharded
from prmkit.cli.fit import TERMINATED
from prmkit.cli.fit_ending import show_outcome
from prmkit.cli.overrides import parse_arguments
from prmkit.cli.parsing import user_errors
from prmkit.errors import ConfigError, PrmkitError
from prmkit.quiet import checkpoint_follows

__all__ = ["PrmCLI", "checkpoint_path", "run_trainer"]

INTERRUPTED = 130

log = logging.getLogger(__name__)


class PrmCLI(LightningCLI):
    """Parses the arguments of one command and builds model, data and trainer; `run_trainer` runs them.

    A resumed run takes its settings from its config, not from the checkpoint: LightningCLI's reading of
    hyper-parameters out of `--ckpt_path` would silently undo overrides.

    Args:
        command: "fit", "validate", "test" or "predict".
        args: arguments of the command; `--config` values are paths that exist.
    """

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self.command = command
        self.arguments = list(args)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # only a fit owns the run folder's config.yaml; a resumed one writes it again
            save_config_callback=SaveConfigCallback if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"prm {command}",
                "description": f"prm {command}: every key with its type and default",
                "parser_mode": "omegaconf+",  # interpolation after merging; "omegaconf" resolves file by file
                "exit_on_error": False,
                "allow_abbrev": False,  # an abbreviated key would be accepted silently
                "default_env": False,
            },
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to load, or `last` for the newest complete"
        )
        parser.add_argument(
            "--weights_only", type=bool, default=True, help="refuse checkpoints that hold more than tensors"
        )
        parser.add_argument(
            "--predictions",
            type=str | None,
            default=None,
            help="prm predict: file to write; null: predictions.jsonl in trainer.default_root_dir",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI warns when sys.argv is not empty, although it is given the arguments to parse
        with user_errors(f"prm {self.command}", parser):
            self.config = parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        with user_errors(f"prm {self.command}", self.parser):
            super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        extra = list(callbacks)
        if self.command == "predict":
            path = self.config.predictions or Path(config["default_root_dir"] or ".") / "predictions.jsonl"
            extra.append(PredictionsWriter(path))
        own = config["callbacks"] or []
        if config["enable_progress_bar"] is not False and not any(isinstance(found, ProgressBar) for found in own):
            extra.append(FitProgress())
        try:
            trainer = super()._instantiate_trainer(config, extra)
        except MisconfigurationException as error:
            raise PrmkitError(f"trainer: {error}") from error
        if self.command == "fit":  # the last of the callbacks: what they do at a step belongs to its checkpoint
            trainer.callbacks.append(ExactResume())
            if _folders(trainer) and not any(isinstance(callback, Preemption) for callback in trainer.callbacks):
                trainer.callbacks.append(Preemption())
        # Strategies with a format of their own (sharded checkpoints) keep it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


def checkpoint_path(cli: PrmCLI) -> str | None:
    """The checkpoint that `--ckpt_path` means; None to start from the model as configured.

    `last` looks into the `dirpath` of every ModelCheckpoint of the config. With `fit` and no complete checkpoint there
    it is None, with a line in the log; the other commands refuse.
    """
    wanted = cli.config.ckpt_path
    if wanted is None:
        return None
    if wanted != "last":
        if "://" not in wanted and not Path(wanted).exists():
            raise ConfigError("ckpt_path", wanted, "an existing checkpoint, or `last`")
        return _checked(cli, str(wanted))
    folders = _folders(cli.trainer)
    if not folders:
        raise ConfigError(
            "ckpt_path",
            "last",
            "a config whose ModelCheckpoint has a `dirpath`, which tells where the run keeps its checkpoints",
            "Set it under trainer.callbacks, or name the checkpoint file.",
        )
    found = newest_checkpoint(folders)
    if found is not None:
        log.info("resuming from %s", found)
        return _checked(cli, str(found))
    if cli.command != "fit":
        raise PrmkitError(f"--ckpt_path last: no complete checkpoint in {', '.join(folders)}; run `prm fit` first")
    log.info("--ckpt_path last: no complete checkpoint in %s; starting afresh", ", ".join(folders))
    return None


def _folders(trainer: Trainer) -> list[str]:
    """Folders that checkpoints are written to."""
    savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    return [str(saver.dirpath) for saver in savers if saver.dirpath is not None]


def _checked(cli: PrmCLI, path: str) -> str:
    """The path itself, once it is known that a fit of this strategy can go on from it (PrmkitError)."""
    check = getattr(cli.trainer.strategy, "check_checkpoint", None)
    if "://" in path:
        return path
    if check is not None:
        check(Path(path))
    elif Path(path).is_dir():
        info = read_sharded(path)
        if cli.command == "fit":
            raise PrmkitError(
                f"--ckpt_path {path}: shards of ZeRO {info.stage} by {info.processes} processes, and this fit does not "
                f"run under ZeRO. Add --config configs/strategy/zero{info.stage}.yaml, or start from its weights: "
                f"`prm export {path} OUT` and --model.source.path OUT."
            )
    return path


def run_trainer(cli: PrmCLI) -> int:
    """Run the command of a parsed command line.

    Returns the exit status: 75 after a signal on which a fit saved and stopped, to be continued (see
    `callbacks.preemption`); 143 after SIGTERM without that, 130 after SIGINT. Lightning ends with status 0 after
    SIGTERM, which would make a stopped run look finished.
    """
    trainer = cli.trainer
    keywords: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": checkpoint_path(cli)}
    keywords["weights_only"] = cli.config.weights_only
    if cli.command == "predict":
        keywords["return_predictions"] = False
    if cli.command in ("validate", "test"):
        keywords["verbose"] = False  # the ending has the metrics
    try:
        if cli.command == "fit" and keywords["ckpt_path"] is None and trainer.is_global_zero:
            from prmkit.quiet import warn_of_earlier_run

            warn_of_earlier_run(getattr(saver, "dirpath", None) for saver in trainer.checkpoint_callbacks)
        with checkpoint_follows(keywords["ckpt_path"] is not None):
            getattr(trainer, cli.command)(cli.model, **keywords)
    except Preempted:
        return REQUEUE
    except SIGTERMException:
        return TERMINATED
    except SystemExit:
        if trainer.state.status is TrainerStatus.INTERRUPTED:
            return INTERRUPTED
        raise
    show_outcome(cli)
    return 0
