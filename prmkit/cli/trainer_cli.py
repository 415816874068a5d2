"""The LightningCLI of prmkit, and the run of its trainer. Imports Lightning; `prmkit.cli.fit` decides when."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.exact_resume import ExactResume
from callbacks.predictions import PredictionsWriter
from callbacks.preemption import REQUEUE, Preempted, Preemption
from prmkit.cli.fit import TERMINATED
from prmkit.cli.fit_callbacks import complete_trainer
from prmkit.cli.lightning_errors import one_line_errors
from prmkit.cli.overrides import parse_arguments
from prmkit.cli.parsing import user_errors
from prmkit.cli.resume import checkpoint_folders, resume
from prmkit.cli.run_folder import check_places, hold_run_folder

__all__ = ["PrmCLI", "run_trainer"]

INTERRUPTED = 130

log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """False for Lightning's advertisement of other software at every start, and for what DeepSpeed, where it is
    installed, says of a machine without a GPU when accelerate imports it."""
    message = record.getMessage()
    return "litlogger" not in message and "Setting accelerator to CPU" not in message


for _name in ("lightning.pytorch.utilities.rank_zero", "DeepSpeed"):
    logging.getLogger(_name).addFilter(_is_news)
# Lightning's own use of torch, at every start and nothing that a user could change.
warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
# The data modules keep the loaders' positions themselves.
warnings.filterwarnings("ignore", message=r".*resuming from a checkpoint that ended before the epoch ended")


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
        with one_line_errors(), user_errors(f"prm {self.command}", self.parser):
            super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        extra = list(callbacks)
        if self.command == "predict":
            path = self.config.predictions or Path(config["default_root_dir"] or ".") / "predictions.jsonl"
            extra.append(PredictionsWriter(path))
        with one_line_errors():
            trainer = super()._instantiate_trainer(config, extra)
        if self.command == "fit":  # the last of the callbacks: what they do at a step belongs to its checkpoint
            trainer.callbacks.append(ExactResume())
            has_one = any(isinstance(callback, Preemption) for callback in trainer.callbacks)
            if checkpoint_folders(trainer) and not has_one:
                trainer.callbacks.append(Preemption())
        # Strategies with a format of their own (sharded checkpoints) keep it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        complete_trainer(trainer, self.command, self.config)
        return trainer


def run_trainer(cli: PrmCLI) -> int:
    """Run the command of a parsed command line.

    A fit holds the lock of its run folder meanwhile (`prmkit.cli.run_folder`).

    Returns the exit status: 75 when a fit saved and stopped on a signal or when its time was used up, to be continued
    (see `callbacks.preemption`); 143 after SIGTERM without that, 130 after SIGINT. Lightning ends with status 0 after
    SIGTERM, which would make a stopped run look finished.
    """
    trainer = cli.trainer
    with ExitStack() as stack:
        if cli.command == "fit":
            check_places(trainer)
            stack.enter_context(hold_run_folder(trainer, cli.config.trainer.default_root_dir))
        path = resume(cli)
        stack.enter_context(one_line_errors(path))
        return _run(cli, path)


def _run(cli: PrmCLI, path: str | None) -> int:
    trainer = cli.trainer
    keywords: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": path}
    keywords["weights_only"] = cli.config.weights_only
    if cli.command == "predict":
        keywords["return_predictions"] = False
    try:
        getattr(trainer, cli.command)(cli.model, **keywords)
    except Preempted:
        return REQUEUE
    except SIGTERMException:
        return TERMINATED
    except SystemExit:
        if trainer.state.status is TrainerStatus.INTERRUPTED:
            return INTERRUPTED
        raise
    return 0
