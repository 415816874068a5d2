"""`prm`: parses the subcommand first and imports what it needs afterwards, so that help answers at once.

Every subcommand is a module with `run(argv) -> int` that parses its own arguments and prints its own help. User
errors (`PrmkitError`) end in one line on stderr and status 2; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import importlib.metadata
import logging
import os
import select
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from prmkit.cli.failures import explain, one_line, readable_output
from prmkit.cli.namespace import check_packages, clashes, pin_packages
from prmkit.errors import PrmkitError

__all__ = ["COMMANDS", "Command", "main", "run_process"]

pin_packages()  # before any module of the packages beside prmkit is imported

USER_ERROR = 2
INTERRUPTED = 130
OUTPUT_CLOSED = 128 + 13  # as a program that SIGPIPE ends, in `prm ... | head`


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: the module and function that run it (imported on use), and its line in `prm --help`."""

    module: str
    summary: str
    function: str = "run"


COMMANDS: dict[str, Command] = {
    "fit": Command("prmkit.cli.fit", "train a policy (SFT) or a process reward model from a config", "fit"),
    "validate": Command("prmkit.cli.fit", "one pass over the validation data of a config", "validate"),
    "test": Command("prmkit.cli.fit", "one pass over the test data of a config", "test"),
    "predict": Command("prmkit.cli.fit", "write a PRM's step scores to predictions.jsonl", "predict"),
    "export": Command("prmkit.cli.export", "write a model folder that transformers reads from a checkpoint"),
    "annotate": Command("prmkit.cli.annotate", "sample a policy and label its steps by Monte-Carlo rollouts"),
    "search": Command("prmkit.cli.search", "solve problems with searches under a PRM; accuracy against budget"),
    "grade": Command("prmkit.cli.grade", "verdicts on a file of answers, and why; attack a grader with cheap strings"),
    "regime": Command("prmkit.cli.regime", "before training: which reward a policy can learn from, and why"),
    "serve": Command("prmkit.cli.serve", "serve a policy and a PRM over HTTP, for other machines and processes"),
    "loop": Command("prmkit.cli.loop", "annotate, train PRM and policy, evaluate, publish, gate; again and again"),
    "pairs": Command("prmkit.cli.pairs", "publish, list, compare, pull and promote versions of policy and PRM"),
    "configs": Command("prmkit.cli.configs", "the shipped configs: list, show, copy"),
    "estimate": Command("prmkit.cli.estimate", "memory and time of a training config, before it is submitted"),
    "demo": Command("prmkit.cli.demo", "the whole loop on built-in data, 175 s on two cores"),
    "doctor": Command("prmkit.cli.doctor", "what is installed, which devices, what is missing and how to get it"),
    "completion": Command("prmkit.cli.completion", "a script that completes commands and options in a shell"),
}


class _ToStderr(logging.Handler):
    """Prints log lines to what `sys.stderr` is at the moment; logging's own handler keeps the one it found first."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


_log_handler = _ToStderr()
log = logging.getLogger(__name__)

_BUILD_CLASSES = ("fit", "validate", "test", "predict", "export")  # commands whose configs name classes

EXAMPLES = """examples:
  prm demo                                                  train, annotate, judge and search, from nothing
  prm fit --config configs/sft/accumulator.yaml             train a policy
  prm fit --config configs/prm/accumulator.yaml --ckpt_path last --model.optimizer.lr 5e-4
  prm fit --config configs/prm/accumulator.yaml --print_config
  prm doctor                                                check the installation"""


def run_process() -> NoReturn:
    """The process `prm`: runs it and ends with its status.

    A worker of a distributed job is left at once when its work and the exit handlers are done. Threads of torch's
    process groups otherwise end one now and then with SIGABRT while the interpreter shuts down, and the launcher
    takes a job for failed that has succeeded.
    """
    status = main()
    preemption = sys.modules.get("callbacks.preemption")
    if preemption is not None:  # a second signal must not change the status
        preemption.ignore_signals()
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit._run_exitfuncs()  # Lightning's, which takes leave of the group, and loggers'
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `prm`. Returns the exit status: 0, 2 for a user's error, 130 when interrupted.

    Args:
        argv: arguments without the program's name; None takes those of the process. `--debug` anywhere in them, or
            `PRMKIT_DEBUG=1`, shows the traceback of a user's error too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("PRMKIT_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    readable_output()
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return OUTPUT_CLOSED
    except SystemExit as stop:  # argparse ends `--help` and usage errors this way, rich a pipe that is closed
        return OUTPUT_CLOSED if isinstance(stop.__context__, BrokenPipeError) else _status(stop.code)
    except Exception as error:
        line = one_line(str(error)) if isinstance(error, PrmkitError) else explain(error)
        if line is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        return USER_ERROR


def _reader_has_gone() -> bool:
    """Is standard output a pipe that nobody reads any more? Then nothing more is written there."""
    output = select.poll()
    output.register(sys.stdout.fileno(), select.POLLOUT)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _status(code: str | int | None) -> int:
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return code or 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"prmkit {importlib.metadata.version('prmkit')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `prm {near[0]}`?" if near else f"Known: {', '.join(COMMANDS)}."
        raise PrmkitError(f"prm {name}: no such command. {hint} `prm --help` lists them.")
    check_packages()
    _configure_logging()
    if name in _BUILD_CLASSES and os.environ.get("LOCAL_RANK", "0") == "0":
        for line in clashes():
            log.warning("%s", line)
    function = getattr(importlib.import_module(command.module), command.function)
    status: int = function(rest)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: prm [--version] [--debug] <command> [arguments]\n\n"
        "Train a policy and a process reward model (PRM) that improve each other.\n\n"
        f"commands:\n{lines}\n\n"
        f"{EXAMPLES}\n\n"
        "`prm <command> --help` explains a command. `--debug` shows the traceback of a reported error."
    )


def _configure_logging() -> None:
    """Send the packages' own log lines to stderr: INFO on the first process of a run, warnings on the others. The
    bars that transformers draws for loading and writing weights are off; it reads the variable when it is imported."""
    from prmkit.quiet import quiet_libraries

    quiet_libraries()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    for package in ("prmkit", "lightning_modules", "datamodules", "callbacks", "registry"):
        logger = logging.getLogger(package)
        logger.addHandler(_log_handler)
        logger.setLevel(logging.INFO if rank == "0" else logging.WARNING)
