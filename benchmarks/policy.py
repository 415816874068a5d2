"""Policy optimisation on the built-in task: what each reward makes of the demo's policy, and what it costs.

    python benchmarks/policy.py [--pairs runs/demo ...] [--only grpo ppo ...] [--trl PYTHON] [--quick]

Every pair is the folder of a `prm demo` run, and its place in the list the seed of its experiments. An experiment is
`prm fit` on a shipped config with a few settings changed (EXPERIMENTS), in a process of its own; the policy that it
leaves is then examined: pass@1 of 2 samples at temperature 1 for 300 problems each of the splits validation and hard,
which nothing was trained on (standard error at most .02). Experiments that are done are not repeated: the benchmark may
be interrupted. With --trl, TRL's GRPOTrainer does the updates of `grpo` in an environment of its own (trl_grpo.py).

Written to results/policy.json, and with prm_only_raw a picture to docs/policy_over_optimisation.png:

- before: pass@1 by split; runs: by experiment and seed, pass@1 after it and what follows. Experiments whose name ends
  in hotter_prm and refreshed_prm train a PRM first: on solutions at temperature 1.6 too, and on those of the policy
  after 10 updates, from which they go on.
- grpo_pass_at_1, ppo_pass_at_1: worst seed, split validation.
- tokens_ratio_process_vs_outcome: tokens sampled until the rollouts' outcome first reaches .8 in the mean of three
  iterations, outcome + process (min form) over outcome alone, means over seeds; null where one does not get there.
- prm_only_with_guards_pass_at_1: worst seed of the PRM as only reward, stopped and rolled back by the guards.
- cpu_seconds, wall_seconds, peak_mib: of the process of a fit and its examination.
- iterations: figures of the rollouts, and seconds of generation and training, iteration by iteration.
- speedup_vs_trl_grpo, peak_memory_vs_trl_grpo: CPU seconds of an iteration, TRL's over ours; peak memory, ours over
  TRL's. Medians over iterations but the first, both systems run in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _environment import write_result
from _policy_plot import draw_exhibit
from _policy_prms import hotter_prm, refreshed_pair
from _policy_runs import examine, fit, forked
from _policy_trl import compare

from prmkit.errors import DataError

GRPO, PRIME, PPO = "configs/grpo/accumulator.yaml", "configs/grpo/prime.yaml", "configs/ppo/accumulator.yaml"
VERIFIER_WATCHES = ("--data.rewards.outcome.weight", "0")
TRL_UPDATES = 8
PICTURE = Path(__file__).parent.parent / "docs" / "policy_over_optimisation.png"
NO_CHECKPOINTS = ("--trainer.callbacks.0.init_args.every_n_train_steps", "1000000")


def process(form: str, weight: float = 1.0) -> tuple[str, ...]:
    """Settings of a process reward."""
    return ("--data.rewards.process.form", form, "--data.rewards.process.weight", str(weight))


def guarded(**settings: object) -> tuple[str, ...]:
    """The guards in place of the callback that writes samples, number 3 of the config."""
    guard = {"class_path": "callbacks.reward_guards.RewardGuards", "init_args": settings}
    return ("--trainer.callbacks.3", json.dumps(guard))


def prm_only(form: str, *settings: str) -> tuple[str, tuple[str, ...]]:
    """GRPO with the PRM as only reward; the verifier only watches."""
    return GRPO, (*VERIFIER_WATCHES, *process(form), *settings)


EXPERIMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpo": (GRPO, ()),
    "ppo": (PPO, ()),
    "grpo_outcome_and_min": (GRPO, process("min")),
    "grpo_outcome_and_progress": (GRPO, process("progress")),
    "grpo_prime": (PRIME, ()),
    "ppo_steps": (PPO, ("--model.levels", "steps")),
    "prm_only_raw": prm_only("raw", *guarded()),
    "prm_only_guarded": prm_only("raw", *guarded(rollback=True)),
    "prm_only_min": prm_only("min", *guarded()),
    "prm_only_min_guarded": prm_only("min", *guarded(rollback=True)),
    "prm_only_progress": prm_only("progress", *guarded()),
    "prm_only_min_token_baseline": prm_only("min", "--model.advantage.process", "token_baseline", *guarded()),
    "prm_only_min_by_trace": prm_only("min", "--model.credit", "trace", *guarded()),
    "prm_only_min_strong_kl": prm_only("min", "--model.kl.weight", "0.2", *guarded()),
    "prm_only_min_kl_target": prm_only("min", "--model.kl.weight", "0.1", "--model.kl.target", "0.05", *guarded()),
}
OTHER_PRMS = {"prm_only_min_hotter_prm": prm_only("min"), "prm_only_min_refreshed_prm": prm_only("min")}
EXPERIMENTS |= {name: (config, (*settings, *guarded())) for name, (config, settings) in OTHER_PRMS.items()}
TRIALS = {"grpo": 3, "ppo": 3, "prm_only_guarded": 3, "grpo_outcome_and_min": 3}  # seeds at most; all others have one


def train(name: str, seed: int, pair: Path, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """One experiment with one seed."""
    config, settings = EXPERIMENTS[name]
    root = out / f"{name}-{seed}"
    policy, model = pair / "sft" / "policy", pair / "prm" / "model"
    if name == "prm_only_min_hotter_prm":
        policy, model = hotter_prm(pair, out, seed)
    elif name == "prm_only_min_refreshed_prm":
        policy, model = refreshed_pair(pair, out, seed, *OTHER_PRMS[name])
    with_prm = ("--data.prm.path", str(model)) if "--data.rewards.process.form" in settings else ()
    arguments = (*settings, *with_prm, *NO_CHECKPOINTS, "--seed_everything", str(seed), *more)
    arguments += ("--model.source.path", str(policy))

    def work() -> dict[str, Any]:
        return {**fit(config, arguments, root), "pass_at_1": examine(root / "policy")}

    run = forked(work, root, {"config": Path(config).read_text(), "arguments": arguments})
    outcome = [line["outcome"] for line in run["iterations"]]
    tokens = [256 * line["length"] for line in run["iterations"]]
    reached = next((n for n in range(2, len(outcome)) if sum(outcome[n - 2 : n + 1]) / 3 >= 0.8), None)
    return {**run, "tokens_to_80": None if reached is None else round(sum(tokens[: reached + 1]))}


def worst(runs: dict[str, dict[str, Any]]) -> float | None:
    """Of all seeds, on the validation split; null when the experiment was not run."""
    return min((run["pass_at_1"]["validation"] for run in runs.values()), default=None)


def ratio(runs: dict[str, dict[str, dict[str, Any]]], one: str, other: str) -> float | None:
    """Tokens to .8, one experiment over another: means over the seeds that both were run with."""
    seeds = sorted(runs.get(one, {}).keys() & runs.get(other, {}).keys())
    tokens = [[runs[name][seed]["tokens_to_80"] for seed in seeds] for name in (one, other)]
    if not seeds or None in tokens[0] + tokens[1]:
        return None
    return sum(tokens[0]) / sum(tokens[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=Path, nargs="+", default=[Path("runs/demo")], help="folders of `prm demo` runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/policy"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--trl", metavar="PYTHON", help="interpreter of an environment with TRL, to compare with")
    parser.add_argument("--quick", action="store_true", help="three iterations each, to see that it works")
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        for folder in (pair / "sft" / "policy", pair / "prm" / "model"):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such model; `prm demo` makes both")
    more = ["--trainer.max_epochs", "3"] if arguments.quick else []
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    before: dict[str, dict[str, float]] = {}
    for seed, pair in enumerate(arguments.pairs):
        policy = pair / "sft" / "policy"
        before[str(seed)] = forked(partial(examine, policy), arguments.out / f"before-{seed}", {"pair": str(pair)})
        print(f"before, seed {seed}: {before[str(seed)]}", flush=True)
    for name in arguments.only:
        for seed, pair in list(enumerate(arguments.pairs))[: TRIALS.get(name, 1)]:
            run = train(name, seed, pair, arguments.out, more)
            runs.setdefault(name, {})[str(seed)] = run
            print(f"{name}, seed {seed}: {run['pass_at_1']}, {run['cpu_seconds']:.0f} CPU-s", flush=True)
    versus: dict[str, Any] = {}
    if arguments.trl is not None:
        updates = 3 if arguments.quick else TRL_UPDATES
        policy = arguments.pairs[0] / "sft" / "policy"
        versus = compare(arguments.trl, GRPO, policy, arguments.out / "trl", updates)
        print(f"TRL: {json.dumps(versus)}", flush=True)
    figures = {
        "speedup_vs_trl_grpo": versus.get("speedup"),
        "peak_memory_vs_trl_grpo": versus.get("memory"),
        "versus_trl": versus,
        "grpo_pass_at_1": worst(runs.get("grpo", {})),
        "ppo_pass_at_1": worst(runs.get("ppo", {})),
        "tokens_ratio_process_vs_outcome": ratio(runs, "grpo_outcome_and_min", "grpo"),
        "prm_only_with_guards_pass_at_1": worst(runs.get("prm_only_guarded", {})),
        "before": before,
        "runs": runs,
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "runs"}, indent=2))
    if not arguments.quick:
        print(write_result("policy", figures, ("torch", "lightning", "transformers")))
        exhibit = runs.get("prm_only_raw", {}).get("0")
        if exhibit is not None:
            draw_exhibit(exhibit, PICTURE, runs.get("grpo", {}).get("0"))
            print(PICTURE)


if __name__ == "__main__":
    main()
