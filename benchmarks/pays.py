"""Where the PRM pays: policies trained on outcomes, on a PRM's scores, and on both, where outcomes are rare.

    python benchmarks/pays.py [--seeds 0 1 2] [--lengths 24 16 ...] [--rewards outcome both ...] [--out runs/pays]
    make pays                                              # the headline alone: 24 operations, seed 0

For every seed: the demo's policy on demonstrations of 4 to 25 operations, OmegaPRM labels on problems of few
operations (4 to 10), a PRM on them; then 30 updates of GRPO of 32 prompts x 8 solutions on problems of a length,
once a reward (_pays_rewards.py). Stages that are done are not repeated: the benchmark may be interrupted.

Written to results/pays.json, what is not asked for as it was, and pictures to docs/:

- final_pass_at_1: by length and reward, mean and standard error over seeds, one sample for each of 600 test problems,
  which nothing was chosen on; `before` is the policy that all begin with. runs: the same by seed.
- to_level (runs): by length, reward and seed, updates and tokens until pass@1 of validation problems is LEVEL; null
  where it never is. The tokens are those sampled for training; tokens_of_labels are what a PRM's labels took besides.
- updates_to_level_ratio, tokens_to_level_ratio, tokens_to_level_ratio_with_labels: `both` over a rival without a PRM,
  by length and rival, means over the seeds; absent where one of them does not get there.
- transfer: by length and PRM, on samples of the first policy, mean and standard error over seeds; see
  _pays_transfer.py.
"""

from __future__ import annotations

import sys

# A neighbour of this file has the name of the package `registry`; the folder, which Python puts first, comes last.
sys.path.append(sys.path.pop(0))

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same figures on every number of cores

import argparse
import json
import math
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _environment import write_result
from _pays_plot import draw_headline, draw_lengths
from _pays_rewards import REWARDS, UPDATES, Reward
from _pays_stages import VALIDATED, Lab, options
from _pays_transfer import transfer

from prmkit.errors import PrmkitError
from prmkit.io import read_json

SOLUTIONS, LEVEL = 256, 0.7
LABELLED = {"own": (4, 10), "short": (4, 7)}  # operations of the problems that a PRM's labels are of
RATIOS = ("updates_to_level_ratio", "tokens_to_level_ratio", "tokens_to_level_ratio_with_labels")
TEST = ("test", 600, 1)
RESULTS_OF = Path(__file__).parent / "results" / "pays.json"
DOCS = Path(__file__).parent.parent / "docs"
HEADLINE = ("outcome", "curriculum_shortest", "curriculum_mixed", "both_short_labels")


def prms_of(kind: str, lab: Lab, policy: Path) -> list[Path]:
    """The PRMs that a reward asks for; see Reward.prm."""
    match kind:
        case "":
            return []
        case "own" | "short":
            return [lab.prm(policy, [lab.labels(policy, *LABELLED[kind])])]
        case "shuffled":
            return [lab.prm(policy, [lab.shuffled(lab.labels(policy))])]
        case "other":
            other = Lab(lab.out, (lab.seed + 1) % 3)
            return prms_of("own", other, other.policy())
    raise ValueError(kind)


def stretches(reward: Reward, operations: int) -> list[tuple[int, int, int]]:
    """(operations from, to, updates) of the runs that make one reward's training, as many tokens as UPDATES at the
    length that is measured."""
    found = []
    for low, high, share in reward.lengths or ((0, 0, 1.0),):
        first, last = low or operations, min(high or operations, operations)
        if first <= last:
            found.append((first, last, round(share * UPDATES * operations / ((first + last) / 2))))
    return found


def train(name: str, lab: Lab, policy: Path, operations: int) -> dict[str, Any]:
    """One reward's training: its diary, update by update, and what is left of it on the test problems."""
    reward, diary = REWARDS[name], []
    settings = [*reward.settings]
    prms = [str(path) for path in prms_of(reward.prm, lab, policy)]
    if prms:
        settings += ["--data.prm.path", json.dumps(prms) if len(prms) > 1 else prms[0]]
    for first, last, updates in stretches(reward, operations):
        prompts = {"task": "accumulator", "task_options": options(first, last), "split": "train", "offset": 20000}
        more = ["--data.prompts", json.dumps({**prompts, "count": 16000})]
        run = lab.rl(name, policy, operations, [*settings, *more], updates)
        policy, diary = Path(run["folder"]) / "policy", [*diary, *run["diary"]]
    return {"diary": diary, "policy": policy, **lab.examined(policy, operations, *TEST)}


def curve(diary: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Figures by update: outcome of the rollouts, tokens sampled until then, and pass@1 of validation where it was."""
    tokens, found = 0.0, {"outcome": [], "tokens": [], "validation": [], "seconds": []}
    for line in diary:
        tokens += SOLUTIONS * line["rollout/length"]
        found["outcome"].append(round(line["rollout/outcome"], 4))
        found["tokens"].append(round(tokens))
        examined = line["rollout/iteration"] % VALIDATED == VALIDATED - 1  # other lines repeat the last one
        found["validation"].append(round(line["val/pass_at_1"], 4) if examined else None)
        found["seconds"].append(round(line["seconds"], 2))
    return found


def to_level(shown: dict[str, list[float]]) -> dict[str, float | None]:
    """Updates, and tokens, until an examination on validation problems finds LEVEL."""
    for number, value in enumerate(shown["validation"]):
        if value is not None and value >= LEVEL:
            return {"updates": number + 1, "tokens": shown["tokens"][number]}
    return {"updates": None, "tokens": None}


def mean_se(values: Iterable[float]) -> dict[str, float | int | None]:
    """Mean and standard error over seeds."""
    found = list(values)
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return {"mean": round(statistics.mean(found), 4), "se": None if error is None else round(error, 4), "n": len(found)}


def measure(lab: Lab, lengths: Sequence[int], rewards: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """One seed's figures: the first policy and its PRMs by length, and each reward's training."""
    policy, found = lab.policy(), dict(known)
    kinds = sorted({REWARDS[name].prm for name in rewards} & LABELLED.keys())
    for kind in kinds:
        report = read_json(f"{lab.labels(policy, *LABELLED[kind])}.report.json")
        found["tokens_of_labels"] = found.get("tokens_of_labels", {}) | {kind: report["usage"]["generated_tokens"]}
    for length in lengths:
        here, traces = found.setdefault(str(length), {}), lab.traces(policy, length)
        seen = here.get("before", {}).get("transfer", {})
        seen |= {kind: transfer(traces, lab.scores(prms_of(kind, lab, policy), traces)[0]) for kind in kinds}
        here["before"] = lab.examined(policy, length, *TEST) | {"transfer": seen}
        for name in rewards:
            run = train(name, lab, policy, length)
            shown = curve(run.pop("diary"))
            here[name] = {key: value for key, value in run.items() if key != "policy"} | {"to_level": to_level(shown)}
            here[name]["curve"] = shown
            print(f"seed {lab.seed}, {length} operations, {name}: {run['pass_at_1']:.3f}", flush=True)
    return found


def summary(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Over seeds; see the module."""
    lengths = sorted({length for run in runs.values() for length in run if length.isdigit()}, key=int)
    figures: dict[str, Any] = {"final_pass_at_1": {}, "transfer": {}, **{name: {} for name in RATIOS}}
    for length in lengths:
        here = [run[length] for run in runs.values() if length in run]
        names = sorted({name for run in here for name in run})
        figures["final_pass_at_1"][length] = {
            name: mean_se(run[name]["pass_at_1"] for run in here if name in run) for name in names
        }
        of_prms = [run["before"]["transfer"] for run in here]
        figures["transfer"][length] = {
            kind: {name: mean_se(one[kind][name] for one in of_prms if kind in one) for name in ("auroc", "auroc_all")}
            for kind in sorted({kind for one in of_prms for kind in one})
        }
        for rival in ("outcome", "curriculum_mixed", "curriculum_short"):
            for name, value in _ratios(runs, length, rival).items():
                figures[name].setdefault(length, {})[rival] = value
    return figures


def _ratios(runs: dict[str, dict[str, Any]], length: str, rival: str) -> dict[str, float]:
    """`both` over a rival on the seeds that have both, where all of them reach LEVEL; nothing where one does not."""
    pairs = [
        (run[length]["both"]["to_level"], run[length][rival]["to_level"], run["tokens_of_labels"]["own"])
        for run in runs.values()
        if {"both", rival} <= run.get(length, {}).keys()
    ]
    if not pairs or any(level["updates"] is None for pair in pairs for level in pair[:2]):
        return {}
    means = [{kind: statistics.mean(pair[side][kind] for pair in pairs) for kind in pairs[0][0]} for side in (0, 1)]
    labels = statistics.mean(pair[2] for pair in pairs)
    (both, other), tokens = means, means[1]["tokens"]
    found = (both["updates"] / other["updates"], both["tokens"] / tokens, (both["tokens"] + labels) / tokens)
    return dict(zip(RATIOS, (round(value, 3) for value in found), strict=True))


def train_side_by_side(lab: Lab, lengths: Sequence[int], rewards: Sequence[str]) -> None:
    """Train in two processes: rewards that need no PRM in one of them; in the other the PRM and what it rewards."""
    lab.policy()
    fixed = [sys.executable, __file__, "--seeds", str(lab.seed), "--lengths", *map(str, lengths), "--out", str(lab.out)]
    sides = [[name for name in rewards if bool(REWARDS[name].prm) is with_prm] for with_prm in (False, True)]
    running = [subprocess.Popen([*fixed, "--train_only", "--rewards", *side]) for side in sides if side]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise PrmkitError(f"a training of seed {lab.seed} failed; its output is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=[24])
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(HEADLINE))
    parser.add_argument("--out", type=Path, default=Path("runs/pays"), help="folder of the runs")
    parser.add_argument("--train_only", action="store_true", help="train, in this process; write no results")
    parser.add_argument("--picture", type=Path, default=DOCS, help="folder of the pictures")
    arguments = parser.parse_args()
    if arguments.train_only:
        for seed in arguments.seeds:
            lab = Lab(arguments.out, seed)
            for length in arguments.lengths:
                for name in arguments.rewards:
                    train(name, lab, lab.policy(), length)
        return
    known = read_json(RESULTS_OF)["figures"]["runs"] if RESULTS_OF.is_file() else {}
    runs = {seed: run for seed, run in known.items() if int(seed) not in arguments.seeds}
    for seed in arguments.seeds:
        before = known.get(str(seed), {})
        train_side_by_side(Lab(arguments.out, seed), arguments.lengths, arguments.rewards)
        runs[str(seed)] = measure(Lab(arguments.out, seed), arguments.lengths, arguments.rewards, before)
    figures = summary(runs)
    print(json.dumps(figures, indent=2))
    print(write_result("pays", {**figures, "runs": runs}, ("torch", "lightning", "transformers")))
    print(draw_headline(runs, str(arguments.lengths[0]), HEADLINE, arguments.picture / "where_the_prm_pays.png"))
    print(draw_lengths(figures["final_pass_at_1"], HEADLINE, arguments.picture / "where_the_prm_pays_lengths.png"))


if __name__ == "__main__":
    main()
