"""The LightningCLI of prmkit, and the run of its trainer. Imports Lightning; `prmkit.cli.fit` decides when."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.exact_resume import ExactResume
from callbacks.predictions import PredictionsWriter
from callbacks.preemption import REQUEUE, Preempted, Preemption
from callbacks.progress import FitProgress
from prmkit.cli.config_tree import CommandLine
from prmkit.cli.default_callbacks import default_callbacks
from prmkit.cli.fit import TERMINATED
from prmkit.cli.fit_callbacks import complete_trainer
from prmkit.cli.fit_ending import show_outcome
from prmkit.cli.fit_settings import DEFAULTS
from prmkit.cli.lightning_errors import one_line_errors
from prmkit.cli.parsing import user_errors
from prmkit.cli.resume import checkpoint_folders, resume
from prmkit.cli.run_folder import check_places, hold_run_folder
from prmkit.cli.saved_config import SavedConfig, dump_config, parse_tree
from prmkit.errors import ConfigError
from prmkit.quiet import checkpoint_follows

__all__ = ["PrmCLI", "run_trainer"]

INTERRUPTED = 130

log = logging.getLogger(__name__)


def _parser_options(command: str) -> dict[str, Any]:
    return {
        "prog": f"prm {command}",
        "description": f"prm {command}: every key with its type and default",
        "parser_mode": "omegaconf+",  # interpolation after merging; "omegaconf" resolves file by file
        "exit_on_error": False,
        "allow_abbrev": False,  # an abbreviated key would be accepted silently
        "default_env": False,
    }


class PrmCLI(LightningCLI):
    """Parses the arguments of one command and builds model, data and trainer; `run_trainer` runs them.

    A resumed run takes its settings from its config, not from the checkpoint: LightningCLI's reading of
    hyper-parameters out of `--ckpt_path` would silently undo overrides.

    Args:
        command: "fit", "validate", "test" or "predict".
        line: the settings, see `prmkit.cli.fit_settings.read_fit`.
    """

    def __init__(self, command: str, line: CommandLine) -> None:
        self.command = command
        self.arguments = line.arguments
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # only a fit owns the run folder's config.yaml; a resumed one writes it again
            save_config_callback=SavedConfig if command == "fit" else None,
            save_config_kwargs={"overwrite": True, "raw": line.tree},
            seed_everything_default=0,
            parser_kwargs=_parser_options(command),
            args=line.tree,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, (kind, default, text) in DEFAULTS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI warns when sys.argv is not empty, although it is given what to parse
        with user_errors(f"prm {self.command}", parser):
            self.config = parse_tree(parser, args)

    def _set_seed(self) -> None:
        seed = self.config.seed_everything
        if type(seed) is int and not 0 <= seed < 2**32:
            raise ConfigError("seed_everything", seed, "an integer in 0..4294967295, true or false")
        if seed is not False:  # without Lightning's line at every start: the config has the number
            self.config.seed_everything = seed_everything(None if seed is True else seed, workers=True, verbose=False)

    def instantiate_classes(self) -> None:
        with one_line_errors(), user_errors(f"prm {self.command}", self.parser):
            super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        extra = list(callbacks)
        if self.command == "predict":
            path = self.config.predictions or Path(config["default_root_dir"] or ".") / "predictions.jsonl"
            extra.append(PredictionsWriter(path))
        if self.command == "fit":
            extra += default_callbacks(config, self.model, export=self.config.export, summary=self.config.summary)
        own = config["callbacks"] or []
        if config["enable_progress_bar"] is not False and not any(isinstance(found, ProgressBar) for found in own):
            extra.append(FitProgress())
        with one_line_errors():
            trainer = super()._instantiate_trainer(config, extra)
        if self.command == "fit":  # the last of the callbacks: what they do at a step belongs to its checkpoint
            trainer.callbacks.append(ExactResume())
            has_one = any(isinstance(callback, Preemption) for callback in trainer.callbacks)
            if self.config.preemption and checkpoint_folders(trainer) and not has_one:
                trainer.callbacks.append(Preemption())
        # Strategies with a format of their own (sharded checkpoints) keep it.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        complete_trainer(trainer, self.command, self.config)
        return trainer


class _ParserOnly(PrmCLI):
    """The parser and what it makes of a command line; nothing is built."""

    def instantiate_classes(self) -> None:
        pass

    def _set_seed(self) -> None:
        pass


class _Help(_ParserOnly):
    """Prints the help that arguments ask for; the parser then ends the process's work by SystemExit."""

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        super().__init__(command, CommandLine())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ARG002
        with user_errors(f"prm {self.command}", parser):
            self.config = parser.parse_args(self._arguments)


def print_config(command: str, line: CommandLine) -> None:
    """Print the merged config with every default. Nothing is built, so folders need not be there."""
    cli = _ParserOnly(command, line)
    print(dump_config(cli.parser, cli.config, line.tree), end="")


def parser_help(command: str, arguments: Sequence[str]) -> int:
    """Print the help of Lightning's own parser, for `--help` and `--model.help CLASS` among the arguments."""
    _Help(command, arguments)
    return 0


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
