"""Policy optimisation on the built-in task: what each reward makes of the demo's policy, and what it costs.

    python benchmarks/policy.py [--policy runs/demo/sft/policy] [--prm runs/demo/prm/model] [--seeds 0 1 2]
                                [--only grpo ppo ...] [--quick]

Every experiment is `prm fit` on a shipped config with a few settings changed (EXPERIMENTS), a process of its own. Its
policy is then examined by `prm validate`: pass@1 of 4 samples at temperature 1 for 300 problems each of the splits
validation and hard, which it was not trained on. Written to results/policy.json:

- pass_at_1: by experiment and split: before, and after for every seed.
- grpo_pass_at_1, ppo_pass_at_1: worst seed, split validation.
- tokens_ratio_process_vs_outcome: tokens sampled until the rollouts' outcome first reaches .8 in the mean of three
  iterations, outcome + process over outcome alone; null where one does not get there.
- prm_only_with_guards_pass_at_1: worst seed of the PRM as only reward, stopped and rolled back by the guards.
- seconds: wall clock of a fit; seconds_per_iteration, with sampling and scoring apart.
- peak_mib: highest resident memory of a fit.
- outcome: the verifier's mean over the rollouts, iteration by iteration.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _environment import write_result

from prmkit.errors import DataError

GRPO, PPO = "configs/grpo/accumulator.yaml", "configs/ppo/accumulator.yaml"
VERIFIER_WATCHES = ("--data.rewards.outcome.weight", "0")


def process(form: str, weight: float = 1.0) -> tuple[str, ...]:
    """Settings of a process reward."""
    return ("--data.rewards.process.form", form, "--data.rewards.process.weight", str(weight))


def guarded(**settings: object) -> tuple[str, ...]:
    """The guards in place of the callback that writes samples, number 3 of the config."""
    guard = {"class_path": "callbacks.reward_guards.RewardGuards", "init_args": settings}
    return ("--trainer.callbacks.3", json.dumps(guard))


EXPERIMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpo": (GRPO, ()),
    "ppo": (PPO, ()),
    "grpo_outcome_and_min": (GRPO, process("min")),
    "grpo_outcome_and_progress": (GRPO, process("progress")),
    "grpo_outcome_and_min_by_trace": (GRPO, (*process("min"), "--model.credit", "trace")),
    "prm_only_raw": (GRPO, (*VERIFIER_WATCHES, *process("raw"))),
    "prm_only_min": (GRPO, (*VERIFIER_WATCHES, *process("min"))),
    "prm_only_progress": (GRPO, (*VERIFIER_WATCHES, *process("progress"))),
    "prm_only_min_token_baseline": (
        GRPO,
        (*VERIFIER_WATCHES, *process("min"), "--model.advantage.process", "token_baseline"),
    ),
    "prm_only_min_strong_kl": (GRPO, (*VERIFIER_WATCHES, *process("min"), "--model.kl.weight", "0.2")),
    "prm_only_guarded": (GRPO, (*VERIFIER_WATCHES, *process("raw"), *guarded(rollback=True))),
}


def prm(*arguments: str) -> None:
    """Run a command of prmkit; its own process, so that nothing is shared."""
    subprocess.run([sys.executable, "-m", "prmkit.cli", *arguments], check=True)


def examine(policy: Path, root: Path) -> dict[str, float]:
    """pass@1 by split."""
    found: dict[str, float] = {}
    for split in ("validation", "hard"):
        out = subprocess.run(
            [
                sys.executable, "-m", "prmkit.cli", "validate", "--config", GRPO, "--trainer.logger", "false",
                "--trainer.default_root_dir", str(root), "--model.source.path", str(policy),
                "--data.validation.split", split, "--data.evaluation.temperature", "1",
                "--data.evaluation.samples", "4", "--trainer.callbacks", "null",
            ],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        line = next(line for line in out.splitlines() if "val/pass_at_1" in line)
        found[split] = float(line.split()[-2 if line.rstrip().endswith("│") else -1])
    return found


def curve(root: Path, name: str) -> list[float]:
    """A logged figure, one value an iteration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root), size_guidance={"scalars": 0})
    events.Reload()
    if name not in events.Tags()["scalars"]:
        return []
    iterations = [event.value for event in events.Scalars("rollout/iteration")]
    values = [event.value for event in events.Scalars(name)]
    return [value for n, value in enumerate(values) if n == 0 or iterations[n] != iterations[n - 1]]


def train(name: str, seed: int, policy: Path, model: Path, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """One experiment with one seed."""
    config, settings = EXPERIMENTS[name]
    root = out / f"{name}-{seed}"
    with_prm = ("--data.prm.path", str(model)) if any("rewards.process" in part for part in settings) else ()
    start = time.perf_counter()
    prm(
        "fit", "--config", config, *settings, *with_prm, "--seed_everything", str(seed), "--model.source.path",
        str(policy), "--trainer.default_root_dir", str(root), *more,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    outcome, length = curve(root, "rollout/outcome"), curve(root, "rollout/length")
    tokens = [256 * sum(length[: n + 1]) for n in range(len(length))]
    reached = next((n for n in range(2, len(outcome)) if sum(outcome[n - 2 : n + 1]) / 3 >= 0.8), None)
    return {
        "pass_at_1": examine(root / "policy", root),
        "seconds": round(seconds, 1),
        "iterations": len(outcome),
        "sampling_seconds": curve(root, "rollout/sampling_seconds"),
        "scoring_seconds": curve(root, "rollout/scoring_seconds"),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,  # of all fits so far
        "outcome": [round(value, 4) for value in outcome],
        "tokens_to_80": None if reached is None else tokens[reached],
    }


def worst(runs: dict[str, dict[str, Any]]) -> float | None:
    """Of all seeds, on the validation split; null when the experiment was not run."""
    return min((run["pass_at_1"]["validation"] for run in runs.values()), default=None)


def ratio(runs: dict[str, dict[str, dict[str, Any]]], one: str, other: str) -> float | None:
    """Mean over seeds of tokens to .8, one experiment over another."""
    means = []
    for name in (one, other):
        tokens = [run["tokens_to_80"] for run in runs.get(name, {}).values()]
        if not tokens or None in tokens:
            return None
        means.append(sum(tokens) / len(tokens))
    return means[0] / means[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", type=Path, default=Path("runs/demo/sft/policy"), help="folder of a trained policy")
    parser.add_argument("--prm", type=Path, default=Path("runs/demo/prm/model"), help="folder of its PRM")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/policy"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="three iterations each, to see that it works")
    arguments = parser.parse_args()
    for folder in (arguments.policy, arguments.prm):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such model; `prm demo` makes both")
    more = ["--trainer.max_epochs", "3"] if arguments.quick else []
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for name in arguments.only:
        for seed in arguments.seeds:
            run = train(name, seed, arguments.policy, arguments.prm, arguments.out, more)
            runs.setdefault(name, {})[str(seed)] = run
            print(f"{name}, seed {seed}: {run['pass_at_1']}, {run['seconds']:.0f} s", flush=True)
    figures = {
        "grpo_pass_at_1": worst(runs.get("grpo", {})),
        "ppo_pass_at_1": worst(runs.get("ppo", {})),
        "tokens_ratio_process_vs_outcome": ratio(runs, "grpo_outcome_and_min", "grpo"),
        "prm_only_with_guards_pass_at_1": worst(runs.get("prm_only_guarded", {})),
        "before": examine(arguments.policy, arguments.out),
        "runs": runs,
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "runs"}, indent=2))
    if not arguments.quick:
        print(write_result("policy", figures, ("torch", "lightning", "transformers"), seeds=arguments.seeds))


if __name__ == "__main__":
    main()
