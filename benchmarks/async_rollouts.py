"""Sampling an iteration ahead, in a thread, against sampling before training: seconds an iteration, and what is learnt.

    python benchmarks/async_rollouts.py [--policy runs/demo/sft/policy] [--iterations 30] [--seeds 0 1] [--prompts 32]

`prm fit` on configs/grpo/accumulator.yaml with and without `data.ahead`, the processes' arithmetic on one core each so
that two threads have two cores. Written to results/async_rollouts.json, with and without:

- seconds_per_iteration: mean over the iterations after the second, of all seeds, validation left out.
- speedup: the quotient. Of use only where load_average (before and after, in the settings) is below the cores: on a
  machine that is shared, two threads get the share of two.
- outcome: the verifier's mean over the rollouts of the last five iterations, by seed; pass_at_1: on the validation
  split.
- importance_weight, importance_cut, generator_kl: means over those iterations: how far the samples are off-policy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from _environment import write_result

from prmkit.resources import find_config

OFF_POLICY = ("importance_weight", "importance_cut", "generator_kl")


def fit(root: Path, ahead: bool, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of a run, an iteration each; the last with the validation's."""
    config = yaml.safe_load(find_config("configs/grpo/accumulator.yaml").read_text())
    trainer, data = config["trainer"], config["data"]["init_args"]
    trainer |= {"default_root_dir": str(root), "max_epochs": arguments.iterations, "logger": False}
    trainer |= {"check_val_every_n_epoch": arguments.iterations, "enable_progress_bar": False}
    trainer["enable_checkpointing"] = False
    counted = {"class_path": "_iterations.Iterations", "init_args": {"path": str(root / "figures.jsonl")}}
    trainer["callbacks"] = [counted]
    config["seed_everything"] = seed
    config["model"]["init_args"]["source"]["path"] = str(arguments.policy)
    config["model"]["init_args"]["kl"] = {"weight": 0.0}  # the ratio is that of sampling and training alone
    data |= {"ahead": ahead, "iteration": {"prompts": arguments.prompts}}
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prmkit.cli", "fit", "--config", str(root / "config.yaml")]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [json.loads(line) for line in (root / "figures.jsonl").open()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, default=Path("runs/demo/sft/policy"))
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        # turn by turn, so that a machine that is busy for a while does not favour one of them
        runs: dict[str, list[list[dict[str, Any]]]] = {"before": [], "ahead": []}
        for seed in arguments.seeds:
            for name in runs:
                runs[name].append(fit(Path(folder) / f"{name}-{seed}", name == "ahead", seed, arguments))
                print(name, seed, "done", flush=True)
        for name, found in runs.items():
            ends = [run[-5:] for run in found]
            figures[name] = {
                "seconds_per_iteration": round(mean(i["seconds"] for run in found for i in run[2:]), 4),
                "outcome": [round(mean(i["rollout/outcome"] for i in end), 4) for end in ends],
                "pass_at_1": [round(run[-1]["val/pass_at_1"], 4) for run in found],
                **{n: round(mean(i[f"train/{n}"] for end in ends for i in end), 5) for n in OFF_POLICY},
            }
    speedup = figures["before"]["seconds_per_iteration"] / figures["ahead"]["seconds_per_iteration"]
    settings = {name: getattr(arguments, name) for name in ("iterations", "prompts", "seeds")}
    settings["load_average"] = [round(each, 1) for each in (*load, os.getloadavg()[0])]
    packages = ("torch", "lightning", "transformers")
    print(write_result("async_rollouts", {**figures, "speedup": round(speedup, 3)}, packages, settings=settings))
    print(json.dumps(figures, indent=1), speedup)


if __name__ == "__main__":
    main()
