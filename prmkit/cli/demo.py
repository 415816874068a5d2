"""`prm demo`: the first half of the loop on built-in data, from random weights to PRM-guided best-of-N.

Four stages, each a process of its own that is skipped when it is complete and continued when it was interrupted:
SFT fit, annotation, PRM fit, search. What they leave is gathered in `summary.json` and one picture.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.io import read_json, write_json

if TYPE_CHECKING:
    from prmkit.stages import Stage, StageResult

__all__ = ["SUMMARY", "run", "stages", "summarise"]

SUMMARY = "train a policy and a PRM on built-in data, then compare best-of-N with majority voting"

_EPILOG = """examples:
  prm demo                                  5 to 8 minutes on two CPU cores; leaves runs/demo
  prm demo --seed 1 --output runs/demo-1    the same with other random numbers
  prm demo --config quick                   seconds, to see that everything works; its figures mean nothing

Interrupted at any moment and started again it goes on where it was, and ends with the same figures."""

PICTURE = "accuracy_vs_budget.png"
_STAGE_NAMES = {"sft": "policy (SFT)", "annotate": "annotation", "prm": "PRM", "search": "best-of-N"}


def run(argv: Sequence[str]) -> int:
    """`prm demo`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        "prm demo", description=SUMMARY, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="runs/demo", type=Path, help="folder of the run (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="seed of everything (default: %(default)s)")
    parser.add_argument(
        "--config",
        default="accumulator",
        help="name of the configs, one in each of configs/{sft,annotate,prm,search} (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)

    from prmkit.stages import StageRunner

    results: list[StageResult] = []
    with StageRunner(
        arguments.output, write=lambda data: _forward(data), say=lambda line: print(f"== {line}", flush=True)
    ) as runner:
        for stage in stages(arguments.output, arguments.config, arguments.seed):
            results.append(runner.run(stage))
    summary = summarise(arguments.output, arguments.seed, results)
    _report(summary, arguments.output)
    return 0


def stages(output: Path, config: str, seed: int) -> list[Stage]:
    """The stages of the demo, in order."""
    from prmkit.resources import find_config
    from prmkit.stages import Stage

    prm = (sys.executable, "-m", "prmkit.cli")
    policy, annotations = output / "sft" / "policy", output / "annotate" / "annotations.jsonl"
    model, rows = output / "prm" / "model", output / "search" / "rows.jsonl"

    def fit(kind: str, *overrides: str) -> tuple[str, ...]:
        root = ("--trainer.default_root_dir", str(output / kind), "--seed_everything", str(seed))
        return (*prm, "fit", "--config", str(configs[kind]), *root, *overrides, "--ckpt_path", "last")

    configs = {kind: find_config(f"configs/{kind}/{config}.yaml") for kind in _STAGE_NAMES}
    annotate = ("annotate", "--config", str(configs["annotate"]), "--policy", str(policy), "--output", str(annotations))
    search = ("search", "--config", str(configs["search"]), "--policy", str(policy), "--prm", str(model))
    return [
        Stage("sft", fit("sft"), output / "sft", (policy,), (configs["sft"],)),
        Stage(
            "annotate",
            (*prm, *annotate, "--seed", str(seed)),
            output / "annotate",
            (annotations,),
            (configs["annotate"], policy),
        ),
        Stage(
            "prm",
            fit("prm", "--model.init_args.source.path", str(policy), "--data.init_args.train.0.path", str(annotations)),
            output / "prm",
            (model,),
            (configs["prm"], policy, annotations),
        ),
        Stage(
            "search",
            (*prm, *search, "--output", str(output / "search"), "--seed", str(seed)),
            output / "search",
            (rows, output / "search" / "summary.json", output / "search" / PICTURE),
            (configs["search"], policy, model),
        ),
    ]


def summarise(output: Path, seed: int, results: Sequence[StageResult]) -> dict[str, Any]:
    """Gather the stages' figures into `summary.json` and copy the picture beside it; returns the summary."""
    searched = read_json(output / "search" / "summary.json")
    annotated = read_json(output / "annotate" / "annotations.jsonl.report.json")
    seconds = {result.name: round(result.seconds, 1) for result in results}
    tokens = {
        "sft": read_json(output / "sft" / "training.json")["tokens"],
        "annotate": annotated["usage"]["generated_tokens"],
        "prm": read_json(output / "prm" / "training.json")["tokens"],
        "search": searched["tokens"],
    }
    summary = {
        "seed": seed,
        "seconds": {"total": round(sum(seconds.values()), 1), **seconds},
        "attempts": {result.name: result.attempts for result in results},
        "tokens": tokens,
        "annotation": {key: annotated[key] for key in ("counts", "truth") if key in annotated},
        "figures": searched["figures"],
    }
    write_json(output / "summary.json", summary)
    shutil.copyfile(output / "search" / PICTURE, output / PICTURE)
    return summary


def _forward(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _report(summary: dict[str, Any], output: Path) -> None:
    figures, seconds = summary["figures"], summary["seconds"]
    gain = figures["gain_at_16"]
    print(
        f"\nPRM vote minus majority at N = 16: {gain['mean']:+.3f} +- {gain['se']:.3f} (standard error over problems)\n"
        f"{seconds['total']:.0f} s: "
        + ", ".join(f"{_STAGE_NAMES[name]} {seconds[name]:.0f} s" for name in _STAGE_NAMES)
        + f"\n{output / 'summary.json'}   every figure\n{output / PICTURE}   accuracy against budget"
    )
