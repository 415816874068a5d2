"""Policy optimisation on the built-in task: what each reward makes of the demo's policy, and what it costs.

    python benchmarks/policy.py [--pairs runs/demo ...] [--only grpo ppo ...] [--trl PYTHON] [--quick]

Every pair is the folder of a `prm demo` run, and its place in the list the seed of its experiments. An experiment is
`prm fit` on a shipped config with a few settings changed (EXPERIMENTS), in a process of its own; the policy that it
leaves is then examined: pass@1 of 2 samples at temperature 1 for 300 problems each of the splits validation and hard,
which nothing was trained on (standard error at most .02). Experiments that are done are not repeated: the benchmark may
be interrupted. With --trl, TRL's GRPOTrainer does the updates of `grpo` in an environment of its own (trl_grpo.py).

Written to results/policy.json, what is not asked for as it was, and a picture of the runs to
docs/policy_over_optimisation.png:

- before: pass@1 by split; runs: by experiment and seed, pass@1 after it and what follows.
- grpo_pass_at_1, ppo_pass_at_1: worst seed, split validation.
- tokens_ratio_process_vs_outcome: tokens sampled until the rollouts' outcome first reaches .8 in the mean of three
  iterations, `grpo_outcome_and_process` over `grpo`, means over seeds; null where one does not get there.
- prm_only_with_guards_pass_at_1: worst seed of `prm_only_kl`, the PRM as only reward with a pull to the reference and
  guards that roll back. prm_only_guarded_pass_at_1: the same without the pull.
- confirmation (--confirm): `prm_only_kl` was chosen on the problems above; pass@1 on 600 others each, `as_chosen` of
  its policies and `anew` of as many trained with other random numbers.
- cpu_seconds, wall_seconds, peak_mib: of the process of a fit and its examination.
- iterations: of a run's rollouts, update by update: outcome, score (mean of a solution's lowest step score by the PRM),
  length in tokens. More figures and the seconds of each update are in the folder of the runs.
- speedup_vs_trl_grpo, peak_memory_vs_trl_grpo: CPU seconds of an iteration, TRL's over ours; peak memory, ours over
  TRL's. Medians over iterations but the first, both systems run in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from _environment import write_result
from _policy_plot import draw_exhibit
from _policy_prms import hotter_prm, refreshed_prm
from _policy_runs import FRESH, examine, fit, forked
from _policy_trl import compare

from prmkit.errors import DataError
from prmkit.io import read_json

GRPO, PROCESS, PRIME = (f"configs/grpo/{name}.yaml" for name in ("accumulator", "process", "prime"))
PPO = "configs/ppo/accumulator.yaml"
VERIFIER_WATCHES = ("--data.rewards.outcome.weight", "0")
TRL_UPDATES = 5
DIARY = ("outcome", "score", "length")
RESULTS_OF = Path(__file__).parent / "results" / "policy.json"
PICTURE = Path(__file__).parent.parent / "docs" / "policy_over_optimisation.png"
NO_CHECKPOINTS = ("--trainer.callbacks.0.init_args.every_n_train_steps", "1000000")


@dataclass(frozen=True)
class Experiment:
    """A run of `prm fit`.

    Attributes:
        config: the shipped config.
        settings: changes to it.
        seeds: how many of the pairs it is run with.
        prm: "" for the pair's own; "all" for those of all pairs as an ensemble; "hotter" or "refreshed" for one that
            was trained further, see _policy_prms.
    """

    config: str
    settings: tuple[str, ...] = ()
    seeds: int = 1
    prm: Literal["", "all", "hotter", "refreshed"] = ""


def process(form: str, weight: float = 1.0) -> tuple[str, ...]:
    """Settings of a process reward."""
    return ("--data.rewards.process.form", form, "--data.rewards.process.weight", str(weight))


def guarded(**settings: object) -> tuple[str, ...]:
    """The config's guards, callback number 3, with other settings."""
    guard = {"class_path": "callbacks.reward_guards.RewardGuards", "init_args": settings}
    return ("--trainer.callbacks.3", json.dumps(guard))


def loose(form: str, *settings: str) -> tuple[str, ...]:
    """The PRM as only reward and nothing to hold the policy; the verifier only watches, and the guards warn."""
    return (*VERIFIER_WATCHES, *process(form), *kl(0.0), *settings, *guarded())


def kl(weight: float, estimator: str = "k3_k2") -> tuple[str, ...]:
    """Settings of the pull to the reference."""
    return ("--model.kl.weight", str(weight), "--model.kl.estimator", estimator)


EACH_BY_ITSELF = ("--model.advantage.gamma", "0")
STEPS_TO_GO = ("--model.advantage.gamma", "1")
EXPERIMENTS = {
    "grpo": Experiment(GRPO, kl(0.0), seeds=3),
    "ppo": Experiment(PPO, kl(0.0), seeds=3),
    "grpo_prime": Experiment(PRIME, kl(0.0)),
    "ppo_steps": Experiment(PPO, ("--model.levels", "steps", *kl(0.0))),
    # Outcome and process.
    "grpo_kl": Experiment(GRPO, kl(0.1), seeds=3),
    "grpo_outcome_and_min": Experiment(GRPO, (*process("min"), *kl(0.0)), seeds=3),
    "grpo_outcome_and_progress": Experiment(GRPO, (*process("progress"), *kl(0.0))),
    "grpo_outcome_and_process": Experiment(GRPO, (*process("raw"), "--model.process_weight", "0.3", *kl(0.1)), seeds=3),
    "grpo_outcome_and_process_refreshed": Experiment(
        GRPO, (*process("min"), "--model.process_weight", "0.3", *kl(0.1)), prm="refreshed"
    ),
    "grpo_outcome_and_each_step": Experiment(
        GRPO, (*process("raw"), "--model.process_weight", "0.5", *EACH_BY_ITSELF, *kl(0.1))
    ),
    "grpo_outcome_and_each_step_refreshed": Experiment(
        GRPO, (*process("raw"), "--model.process_weight", "0.5", *EACH_BY_ITSELF, *kl(0.1)), seeds=3, prm="refreshed"
    ),
    # The PRM as only reward, and nothing to hold the policy.
    "prm_only_raw": Experiment(GRPO, loose("raw")),
    "prm_only_guarded": Experiment(
        GRPO, (*VERIFIER_WATCHES, *process("raw"), *kl(0.0), *guarded(rollback=True)), seeds=3
    ),
    "prm_only_min": Experiment(GRPO, loose("min")),
    "prm_only_progress": Experiment(GRPO, loose("progress")),
    "prm_only_each_step": Experiment(GRPO, loose("raw", *EACH_BY_ITSELF)),
    "prm_only_min_token_baseline": Experiment(GRPO, loose("min", "--model.advantage.process", "token_baseline")),
    "prm_only_min_by_trace": Experiment(GRPO, loose("min", "--model.credit", "trace")),
    "prm_only_ensemble": Experiment(GRPO, loose("raw"), prm="all"),
    "prm_only_hotter_prm": Experiment(GRPO, loose("raw"), prm="hotter"),
    "prm_only_refreshed_prm": Experiment(GRPO, loose("raw"), prm="refreshed"),
    # The PRM as only reward, and a pull to the reference.
    "prm_only_k3": Experiment(PROCESS, ("--model.kl.estimator", "k3")),
    "prm_only_kl": Experiment(PROCESS, seeds=3),
    "prm_only_kl_half": Experiment(PROCESS, ("--model.kl.weight", "0.3"), seeds=3),
    "prm_only_kl_min": Experiment(PROCESS, (*process("min"), *STEPS_TO_GO)),
    "prm_only_kl_steps_to_go": Experiment(PROCESS, STEPS_TO_GO, seeds=3),
    "prm_only_kl_ensemble": Experiment(PROCESS, prm="all"),
    "prm_only_kl_hotter_prm": Experiment(PROCESS, prm="hotter"),
    "prm_only_kl_refreshed_prm": Experiment(PROCESS, seeds=3, prm="refreshed"),
}


def train(name: str, seed: int, pairs: Sequence[Path], out: Path, more: Sequence[str]) -> dict[str, Any]:
    """One experiment with one seed."""
    experiment, pair, root = EXPERIMENTS[name], pairs[seed], out / f"{name}-{seed}"
    arguments = [*experiment.settings]
    if experiment.config == PROCESS or "--data.rewards.process.form" in experiment.settings:
        arguments += ["--data.prm.path", prm_of(experiment.prm, seed, pairs, out)]
    arguments += [*NO_CHECKPOINTS, "--seed_everything", str(seed), *more]
    arguments += ["--model.source.path", str(pair / "sft" / "policy")]

    def work() -> dict[str, Any]:
        return {**fit(experiment.config, arguments, root), "pass_at_1": examine(root / "policy")}

    run = forked(work, root, {"config": Path(experiment.config).read_text(), "arguments": arguments})
    diary = {name: [line[name] for line in run["iterations"] if name in line] for name in DIARY}
    outcome, tokens = diary["outcome"], [256 * length for length in diary["length"]]
    reached = next((n for n in range(2, len(outcome)) if sum(outcome[n - 2 : n + 1]) / 3 >= 0.8), None)
    run["iterations"] = diary
    return {**run, "tokens_to_80": None if reached is None else round(sum(tokens[: reached + 1]))}


def prm_of(which: str, seed: int, pairs: Sequence[Path], out: Path) -> str:
    """Value of data.prm.path; see Experiment.prm."""
    match which:
        case "all":
            return json.dumps([str(pair / "prm" / "model") for pair in pairs])
        case "hotter":
            return str(hotter_prm(pairs[seed], out, seed))
        case "refreshed":
            return str(refreshed_prm(pairs[seed], out, seed, GRPO, loose("raw")))
    return str(pairs[seed] / "prm" / "model")


def confirm(pairs: Sequence[Path], out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{as_chosen, anew: {seed: pass@1 of problems that nothing was chosen on}} of `prm_only_kl`."""
    found: dict[str, dict[str, dict[str, float]]] = {"as_chosen": {}, "anew": {}}
    for seed in range(len(pairs)):
        for name, root, more in (("as_chosen", out, []), ("anew", out / "anew", ["--seed_everything", str(seed + 10)])):
            train("prm_only_kl", seed, pairs, root, more)
            found[name][str(seed)] = examine(root / f"prm_only_kl-{seed}" / "policy", 7, FRESH)
    return found


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
    parser.add_argument("--confirm", action="store_true", help="examine what was chosen on problems of its own")
    parser.add_argument("--quick", action="store_true", help="three iterations each, to see that it works")
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        for folder in (pair / "sft" / "policy", pair / "prm" / "model"):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such model; `prm demo` makes both")
    more = ["--trainer.max_epochs", "3"] if arguments.quick else []
    known = read_json(RESULTS_OF)["figures"] if RESULTS_OF.is_file() else {}
    runs: dict[str, dict[str, dict[str, Any]]] = {
        name: known["runs"][name] for name in EXPERIMENTS if name in known.get("runs", {})
    }
    before: dict[str, dict[str, float]] = {}
    for seed, pair in enumerate(arguments.pairs):
        policy = pair / "sft" / "policy"
        before[str(seed)] = forked(partial(examine, policy), arguments.out / f"before-{seed}", {"pair": str(pair)})
        print(f"before, seed {seed}: {before[str(seed)]}", flush=True)
    for name in arguments.only:
        runs[name] = {}
        for seed in range(min(EXPERIMENTS[name].seeds, len(arguments.pairs))):
            run = runs[name][str(seed)] = train(name, seed, arguments.pairs, arguments.out, more)
            print(f"{name}, seed {seed}: {run['pass_at_1']}, {run['cpu_seconds']:.0f} CPU-s", flush=True)
    versus: dict[str, Any] = known.get("versus_trl", {})
    if arguments.trl is not None:
        updates = 3 if arguments.quick else TRL_UPDATES
        policy = arguments.pairs[0] / "sft" / "policy"
        root, key = arguments.out / "trl", {"updates": updates, "policy": str(policy)}
        versus = forked(partial(compare, arguments.trl, GRPO, policy, root, updates), root, key)
        print(f"TRL: {json.dumps(versus)}", flush=True)
    figures = {
        "speedup_vs_trl_grpo": versus.get("speedup"),
        "peak_memory_vs_trl_grpo": versus.get("memory"),
        "versus_trl": versus,
        "grpo_pass_at_1": worst(runs.get("grpo", {})),
        "ppo_pass_at_1": worst(runs.get("ppo", {})),
        "tokens_ratio_process_vs_outcome": ratio(runs, "grpo_outcome_and_process", "grpo"),
        "prm_only_with_guards_pass_at_1": worst(runs.get("prm_only_kl", {})),
        "prm_only_guarded_pass_at_1": worst(runs.get("prm_only_guarded", {})),
        "confirmation": confirm(arguments.pairs, arguments.out) if arguments.confirm else known.get("confirmation"),
        "before": before,
        "runs": runs,
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "runs"}, indent=2))
    if not arguments.quick:
        print(write_result("policy", figures, ("torch", "lightning", "transformers")))
        shown = {name: runs[name]["0"] for name in ("prm_only_raw", "prm_only_kl", "grpo") if name in runs}
        if len(shown) == 3:
            draw_exhibit(shown["prm_only_raw"], shown["prm_only_kl"], shown["grpo"], PICTURE)
            print(PICTURE)


if __name__ == "__main__":
    main()
