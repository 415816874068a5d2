"""`prm loop`: policy and PRM improve each other, iteration after iteration. Nothing here imports torch."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.cli.options import build, make_parser, parse_settings, print_help, wants_help
from prmkit.cli.outputs import check_output_folder
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.cli.plain_parser import PlainParser
from prmkit.loop.config import STAGES, LoopConfig

if TYPE_CHECKING:
    from prmkit.cli.loop_run import IterationResult

__all__ = ["SUMMARY", "parse", "parser", "run"]

SUMMARY = "annotate, train the PRM, train the policy, evaluate, publish and gate; again with what came of it"

EXAMPLES = """
examples:
  prm loop --config configs/loop/accumulator.yaml                     two iterations on the built-in task
  prm loop --config configs/loop/accumulator.yaml --iterations 3      one more, with the same run
  prm loop --config configs/loop/accumulator.yaml --run elsewhere     goes on from what the registry has
  prm loop status runs/loop/accumulator --watch                       while it runs, or after it was stopped

Every stage is a process with a log of its own (RUN/logs). Stop it in any way (Ctrl-C, SIGTERM, SIGKILL, a power cut)
and start the same command again: complete stages are skipped, the one that was interrupted goes on, and the last pair
is the same."""


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if argv[:1] == ["status"]:
        return _status(argv[1:])
    if not argv or wants_help(argv):
        print_help(parser(), SUMMARY, EXAMPLES)
        return 0
    config = parse(argv)
    check_output_folder("run", config.run)
    from prmkit.cli.loop_run import CONFIG_FILE, SUMMARY_FILE, Loop
    from prmkit.cli.loop_text import summary_text
    from prmkit.cli.pairs_text import plain
    from prmkit.jobs.stages import StageRunner

    def say(line: str) -> None:
        print(f"== {line}", flush=True)

    copies = [f"configs/{name}" for name in ("gate.json", *(f"{stage}.yaml" for stage in STAGES))]
    written = [Path(config.run) / name for name in (CONFIG_FILE, SUMMARY_FILE, *copies)]
    with StageRunner(config.run, outputs=written, write=_forward, say=say) as runner:
        results = Loop(config, runner, say).run()
    print(plain(summary_text(results, config)))
    _end(results, config)
    return 0


def parser() -> Any:
    """The command's parser."""
    usage = "prm loop --config FILE [--KEY VALUE ...] | prm loop status RUN [--watch] [--json]"
    return make_parser("prm loop", usage, (LoopConfig,), {})


def parse(argv: Sequence[str]) -> LoopConfig:
    """The loop of a command line. Raises PrmkitError for settings that cannot be used."""
    arguments, _ = expand_configs(argv)
    parse_ = parser()
    with user_errors("prm loop", parse_):
        return build(LoopConfig, parse_settings(parse_, arguments))


def _end(results: Sequence[IterationResult], config: LoopConfig) -> None:
    from prmkit.cli.ending import show_ending
    from prmkit.cli.loop_run import SUMMARY_FILE

    last = results[-1]
    named = [result.ref for result in results if result.promoted]
    best = f"{config.pair}@{config.alias}"
    figures = ", ".join(f"{name} {value:.3f}" for name, value in last.figures.items())
    following = ["prm", "pairs", *(("pull", best, config.pair) if named else ("show", last.ref))]
    show_ending(
        [Path(config.run) / SUMMARY_FILE, *(result.ref for result in results if not result.pulled)],
        [f"{last.ref}: {figures}", f"{best} is {named[-1]}" if named else f"no pair of this run got {config.alias!r}"],
        [[*following, *(["--registry", str(config.registry)] if config.registry else [])]],
    )


def _forward(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _status(argv: Sequence[str]) -> int:
    from prmkit.cli.loop_run import CONFIG_FILE
    from prmkit.cli.loop_text import status_text
    from prmkit.cli.pairs_text import plain
    from prmkit.loop.status import read_status

    options = PlainParser("prm loop status", description="How far a loop has come.")
    options.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    options.add_argument("--json", action="store_true", help="print JSON")
    options.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="again and again, until it ends (default: 2)",
    )
    arguments = options.parse_args(argv)
    status = read_status(arguments.run, CONFIG_FILE)
    if arguments.json:
        print(json.dumps({**asdict(status), "complete": status.complete}, indent=2))
        return 0
    while True:
        text = plain(status_text(status, shlex.quote(str(arguments.run))))
        clear = "\x1b[2J\x1b[H" if arguments.watch is not None and sys.stdout.isatty() else ""
        print(f"{clear}{text}", flush=True)
        if arguments.watch is None or status.process is None:
            return 0
        time.sleep(arguments.watch)
        status = read_status(arguments.run, CONFIG_FILE)
