"""`prm demo`: once around the loop on built-in data, from random weights to PRM-guided best-of-N and a better policy.

Eight stages, each a process of its own that is skipped when it is complete and continued when it was interrupted: SFT
fit; annotation; PRM fit and GRPO fit; search with policy and PRM, and with the improved policy under the PRM;
publication of the pair with the metrics of the search in the run's own registry; promotion to `best` through the gate.
Stages that do not need each other run at the same time, each on one thread, so that the figures do not depend on the
number of cores. Their results are gathered in `summary.json` and one picture.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.cli.outputs import check_output_folder
from prmkit.cli.plain_parser import PlainParser
from prmkit.io import read_json, write_json

if TYPE_CHECKING:
    from prmkit.stages import Stage, StageResult

__all__ = ["SUMMARY", "parser", "run", "stages", "summarise"]

SUMMARY = "train a policy and a PRM on built-in data, then compare best-of-N with majority voting"

_EPILOG = """examples:
  prm demo                                  175 s on two cores; leaves runs/demo
  prm demo --seed 1 --output runs/demo-1    the same with other random numbers
  prm demo --config quick                   to see that everything works; its figures mean nothing

Interrupted at any moment and started again it goes on where it was, and ends with the same figures."""

PICTURE = "accuracy_vs_budget.png"
PAIR = "demo"
_NO_PULL = ("--model.kl.weight", 0)  # the demo's policy learns from outcomes alone
_JOBS = ("sft", "annotate", "prm", "grpo", "search")
_STAGE_NAMES = {"sft": "policy (SFT)", "annotate": "annotation", "prm": "PRM beside GRPO", "search": "best-of-N"}


def run(argv: Sequence[str]) -> int:
    """`prm demo`. Returns the exit status."""
    arguments = parser().parse_args(argv)
    check_output_folder("output", arguments.output)

    from prmkit.stages import StageRunner

    planned = stages(arguments.output, arguments.config, arguments.seed)
    rounds: list[list[StageResult]] = []
    written = [arguments.output / name for name in ("summary.json", PICTURE)]
    with StageRunner(
        arguments.output,
        outputs=written,
        write=lambda data: _forward(data),
        say=lambda line: print(f"== {line}", flush=True),
    ) as runner:
        for together in planned:
            rounds.append(runner.run_together(together))
    summary = summarise(arguments.output, arguments.seed, rounds)
    _report(summary, arguments.output)
    return 0


def parser() -> PlainParser:
    """The command's parser."""
    made = PlainParser(
        "prm demo", description=SUMMARY, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", default="runs/demo", type=Path, help="folder of the run (default: %(default)s)")
    made.add_argument("--seed", default=0, type=int, help="seed of everything (default: %(default)s)")
    made.add_argument(
        "--config",
        default="accumulator",
        help="name of the configs, one in each of configs/{sft,annotate,prm,grpo,search} (default: %(default)s)",
    )
    return made


def stages(output: Path, config: str, seed: int) -> list[list[Stage]]:
    """The stages of the demo in order; those of an inner list run at the same time."""
    from prmkit.resources import find_config
    from prmkit.stages import Stage

    configs = {kind: find_config(f"configs/{kind}/{config}.yaml") for kind in _JOBS}
    policy, annotations = output / "sft" / "policy", output / "annotate" / "annotations.jsonl"
    model, improved = output / "prm" / "model", output / "grpo" / "policy"
    registry, published = ("--registry", output / "registry"), output / "publish" / "published.json"
    promoted, metrics = output / "gate" / "gate.json", output / "search" / "summary.json"
    environment = {"OMP_NUM_THREADS": "1", "PRMKIT_CACHE": str(output / "cache")}

    def stage(name: str, kind: str, command: Sequence[object], outputs: Sequence[Path], *inputs: Path) -> Stage:
        argv = (sys.executable, "-m", "prmkit.cli", *map(str, command))
        read = (configs[kind], *inputs) if kind in configs else inputs
        return Stage(name, argv, output / name, tuple(outputs), read, environment=environment)

    def fit(kind: str, made: Path, *inputs: Path, settings: Sequence[object] = ()) -> Stage:
        # a config finds what earlier stages left in the folders beside its own
        root = ("--trainer.default_root_dir", output / kind, "--seed_everything", seed)
        command = ("fit", "--config", configs[kind], *root, "--ckpt_path", "last", *settings)
        return stage(kind, kind, command, (made,), *inputs)

    def search(name: str, solver: Path, *options: object) -> Stage:
        made = [output / name / file for file in ("rows.jsonl", "summary.json", PICTURE)]
        command = ("search", "--config", configs["search"], "--policy", solver, "--prm", model, *options)
        return stage(name, "search", (*command, "--output", output / name, "--seed", seed), made, solver, model)

    recipe = shlex.join(["prm", "demo", "--config", config, "--seed", str(seed)])
    models = ("--policy", policy, "--prm", model, "--once", *registry, "--seed", seed)
    notes = ("--metrics", metrics.parent, "--command", recipe, "--report", published)
    publish = ("pairs", "publish", PAIR, *models, *notes)
    promote = ("pairs", "promote", PAIR, "best", "--if-passed", *registry, "--report", promoted)
    annotate = ("annotate", "--config", configs["annotate"], "--policy", policy, "--output", annotations)
    return [
        [fit("sft", policy)],
        [stage("annotate", "annotate", (*annotate, "--seed", seed), (annotations,), policy)],
        [fit("prm", model, policy, annotations), fit("grpo", improved, policy, settings=_NO_PULL)],
        [search("search", policy), search("improved", improved, "--n", 4)],
        [stage("publish", "publish", publish, (published,), policy, model, metrics)],
        [stage("gate", "gate", promote, (promoted,), published)],
    ]


def summarise(output: Path, seed: int, rounds: Sequence[Sequence[StageResult]]) -> dict[str, Any]:
    """Gather the stages' figures into `summary.json` and copy the picture beside it; returns the summary.

    Args:
        output: folder of the run.
        seed: of the run.
        rounds: what became of the stages; those of an inner list ran at the same time.
    """
    searched, improved = (read_json(output / name / "summary.json") for name in ("search", "improved"))
    annotated = read_json(output / "annotate" / "annotations.jsonl.report.json")
    results = [result for together in rounds for result in together]
    total = sum(max(result.seconds for result in together) for together in rounds)
    tokens = {kind: read_json(output / kind / "training.json")["tokens"] for kind in ("sft", "prm", "grpo")}
    tokens |= {"annotate": annotated["usage"]["generated_tokens"], "search": searched["tokens"]}
    summary = {
        "seed": seed,
        "seconds": {"total": round(total, 1), **{result.name: round(result.seconds, 1) for result in results}},
        "attempts": {result.name: result.attempts for result in results},
        "tokens": {**tokens, "improved": improved["tokens"]},
        "annotation": {key: annotated[key] for key in ("counts", "truth") if key in annotated},
        "figures": {
            **searched["figures"],
            "grpo": {
                when: {name: found["figures"][name] for name in ("pass_at_1", "greedy", "greedy_se")}
                for when, found in (("before", searched), ("after", improved))
            },
        },
    }
    write_json(output / "summary.json", summary)
    shutil.copyfile(output / "search" / PICTURE, output / PICTURE)
    return summary


def _forward(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _report(summary: dict[str, Any], output: Path) -> None:
    from prmkit.cli.ending import show_ending
    from prmkit.progress import format_seconds
    from registry.gate import gate_word

    figures, seconds = summary["figures"], summary["seconds"]
    gain, before, after = figures["gain_at_16"], figures["grpo"]["before"], figures["grpo"]["after"]
    times = ", ".join(f"{stage} {seconds[name]:.0f} s" for name, stage in _STAGE_NAMES.items())
    gate = read_json(output / "gate" / "gate.json")
    registry = output / "registry"
    print()
    show_ending(
        [output / "summary.json", output / PICTURE, f"{PAIR}@1 in {registry}"],
        [
            f"PRM vote less majority at N = 16, paired by problem: {100 * gain['mean']:+.1f} ± {100 * gain['se']:.1f} "
            f"points",
            f"policy before and after GRPO: pass@1 {before['pass_at_1']:.3f} and {after['pass_at_1']:.3f}, "
            f"greedy {before['greedy']:.3f} and {after['greedy']:.3f}",
            f"gate {gate_word(gate['promoted'])}" + (f", {PAIR}@best is {PAIR}@1" if gate["promoted"] else ""),
            f"{format_seconds(seconds['total'])}: {times}",
        ],
        [("prm", "pairs", "show", f"{PAIR}@1", "--registry", registry)],
    )
