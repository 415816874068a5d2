"""PRMs trained on OmegaPRM's labels and on Math-Shepherd's, for the same policy tokens.

    python benchmarks/prm_from_labels.py runs/demo runs/demo-1 runs/demo-2

Each folder is a finished `prm demo`: its policy, OmegaPRM labels, PRM and the figures of that PRM on the test problems
are taken as they are. Math-Shepherd labels as many problems as the same number of policy tokens pays for: every
prefix of up to 3 wrong solutions a problem gets k rollouts of its own, none shared (brute force, as published). A PRM
is then trained on them with the same config for the same number of optimiser steps, and scored on the same problems.

Written to results/prm_from_labels.json: by run, tokens and first-error F1, AUROC, gain at 16 of both; and the mean
difference in F1 with its standard error over runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _environment import write_result

from prmkit.io import read_json

PRM = (sys.executable, "-m", "prmkit.cli")
PILOT = 60  # problems that tell what one costs


def prm(*arguments: str) -> None:
    """Run a command; its output goes to the terminal."""
    subprocess.run([*PRM, *arguments], check=True)


def brute_force(run: Path, seed: int, tokens: int) -> tuple[Path, int]:
    """Math-Shepherd's labels for about so many tokens, and how many they took."""
    out = run / "math_shepherd"

    def annotate(path: Path, limit: int) -> int:
        prm(
            *("annotate", "--method", "math_shepherd", "--policy", str(run / "sft/policy"), "--output", str(path)),
            *("--task", "accumulator", "--split", "train", "--offset", "12000", "--limit", str(limit)),
            *("--solutions_per_problem", "8", "--rollouts", "8", "--reuse_rollouts", "false"),
            *("--sampling.max_tokens", "64", "--engine.max_rows", "256", "--in_flight", "200", "--seed", str(seed)),
        )
        return int(read_json(f"{path}.meta.json")["usage"]["generated_tokens"])

    cost = annotate(out / "pilot.jsonl", PILOT) / PILOT
    path = out / "annotations.jsonl"
    return path, annotate(path, round(tokens / cost))


def train_and_score(run: Path, seed: int, labels: Path, steps: int) -> dict[str, Any]:
    """Figures of a PRM trained on labels, as `prm demo` trains and scores its own."""
    out = run / "math_shepherd"
    prm(
        *("fit", "--config", "configs/prm/accumulator.yaml", "--seed_everything", str(seed)),
        *("--trainer.default_root_dir", str(out / "prm"), "--trainer.max_steps", str(steps), "--trainer.max_epochs"),
        *("-1", "--model.init_args.source.path", str(run / "sft/policy"), "--data.init_args.targets.threshold", "0.0"),
        *("--data.init_args.train.0.path", str(labels), "--ckpt_path", "last"),
    )
    prm(
        *("search", "--config", "configs/search/accumulator.yaml", "--policy", str(run / "sft/policy")),
        *("--prm", str(out / "prm/model"), "--output", str(out / "search"), "--seed", str(seed)),
    )
    return dict(read_json(out / "search/summary.json")["figures"])


def compare(run: Path) -> dict[str, Any]:
    """One run's figures for both kinds of labels."""
    summary = read_json(run / "summary.json")
    tokens = summary["tokens"]["annotate"]
    steps = read_json(run / "prm/training.json")["steps"]
    labels, spent = brute_force(run, summary["seed"], tokens)
    theirs = train_and_score(run, summary["seed"], labels, steps)
    return {
        "steps": steps,
        "omegaprm": {"tokens": tokens, **_kept(summary["figures"])},
        "math_shepherd": {"tokens": spent, **_kept(theirs)},
    }


def _kept(figures: dict[str, Any]) -> dict[str, Any]:
    return {**{name: figures["prm"][name] for name in ("first_error_f1", "auroc")}, "gain_at_16": figures["gain_at_16"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished demos")
    arguments = parser.parse_args()
    rows = {str(number): compare(run) for number, run in enumerate(arguments.runs)}
    gains = [row["omegaprm"]["first_error_f1"] - row["math_shepherd"]["first_error_f1"] for row in rows.values()]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
    figures = {"first_error_f1_gain": {"mean": statistics.mean(gains), "se": error}, "runs": rows}
    print(write_result("prm_from_labels", figures, ("torch", "transformers", "lightning")))


if __name__ == "__main__":
    main()
