"""The loop on the built-in task: how long two iterations take, and what the second one adds.

    python benchmarks/loop.py [--seeds 0 1 2] [--config configs/loop/accumulator.yaml] [--out runs/benchmarks/loop]

For every seed the loop is run, and then its control: a copy of the run whose second iteration takes its labels from the
first pair's (`--labels_from first`), with everything else, the amount of data too, as it was. All of it is resumed when
this is started again. Written to results/loop.json, and a picture to docs/loop.png:

- minutes: wall clock of the loop's stages by seed, their start-up included; cpu_minutes: processor time by seed.
- iteration2_gain_in_se: the second pair less the first, on the same problems, mean of the differences by problem over
  their standard error; worst seed. `accuracy` is the PRM's vote, `pass_at_1` the policy alone.
- over_control_in_se: the second pair less the control's. Where the policy is trained before its labels are made, and
  not on a PRM's scores, both have the same policy, and only the PRM's vote may differ.
- gate: by seed, whether the second pair passed it, and the control's.
- runs: by seed, figures of the first pair, the second and the control's, and both differences; and
    - old_samples: the first pair's samples judged by the three PRMs; new_samples: the second pair's by the first PRM.
    - free, fast: the first iteration's policy when nothing pulls it to the one before (`model.kl.weight` 0), and when
      its learning rate is twice as high besides (configs/grpo/accumulator.yaml as it is); with the first pair's PRM.
    - longer, longer_harder: the first iteration's policy after the updates of both, with its own prompts, and with the
      second iteration's harder ones from the start; with the first pair's PRM.
    - process: the second iteration's policy when the first pair's PRM, which was trained on the policy that it starts
      from, is rewarded too, as the mixture of docs/policy.md has it (PROCESS); with that PRM.
  In all of them steps_right is the share of the samples' steps that are right, right_for_wrong_reasons the share of
  solutions with a wrong step among those with the right answer.
"""

from __future__ import annotations

import sys

# A neighbour of this file has the name of the package `registry`; the folder, which Python puts first, comes last.
sys.path.append(sys.path.pop(0))

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _environment import write_result
from _loop_plot import PICTURE, draw_loop

from prmkit.cli.loop import parse
from prmkit.evaluation.accuracy import mean_and_se, problem_accuracy, samples_from_rows
from prmkit.evaluation.summary import truth_figures
from prmkit.io import read_json, write_json
from prmkit.loop.plan import Begin, Plan, Products
from prmkit.models import PRMModel
from prmkit.protocols import VerifiableTask
from prmkit.records import Problem
from prmkit.scoring import PRMScorer
from prmkit.search.rows import SearchRow, read_rows
from prmkit.tasks import get_task
from registry import read_metrics

FREE = ("--model.kl.weight", "0")
PROCESS = (
    *("--data.rewards.process.form", "raw", "--model.process_weight", "0.3", "--model.kl.estimator", "k3_k2"),
    "--data.prm.path",
)
LONGER = ("--trainer.max_epochs", "40")
HARDER = ("--data.prompts.task_options.hard_share", "0.8")
PRM_FIGURES = ("auroc", "step_accuracy", "first_error_f1", "ece")


def run_loop(config: str, seed: int, run: Path, *more: str) -> float:
    """Run a loop to its end; returns the processor minutes it has taken, earlier calls included."""
    before, spent = _cpu(), run.with_name(f"{run.name}-cpu.json")
    earlier = read_json(spent)["seconds"] if spent.is_file() else 0.0
    subprocess.run(
        [
            sys.executable, "-m", "prmkit.cli", "loop", "--config", config, "--seed", str(seed), "--run", str(run),
            "--registry", str(run.with_name(f"{run.name}-registry")), *more,
        ],
        check=True,
    )  # fmt: skip
    seconds = earlier + _cpu() - before
    write_json(spent, {"seconds": seconds})
    return seconds / 60


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def copy_first_iteration(run: Path, control: Path) -> None:
    """Begin the control with the run's first iteration; its registry too, so that parents are found."""
    if not control.exists():
        control.mkdir(parents=True)
        for name in ("sft", "iteration-1"):
            shutil.copytree(run / name, control / name)
        shutil.copytree(run.with_name(f"{run.name}-registry"), control.with_name(f"{control.name}-registry"))


def by_problem(folder: Path) -> dict[str, dict[str, float]]:
    """Results of single problems, by figure."""
    rows = list(read_rows(folder / "rows.jsonl"))
    single = problem_accuracy(samples_from_rows(rows), "majority", 1)
    return {
        "accuracy": dict(read_metrics(folder).results),
        "pass_at_1": {row.problem_id: float(value) for row, value in zip(rows, single, strict=True)},
    }


def faithfulness(folder: Path) -> dict[str, float]:
    """Shares of right steps, and of solutions with a wrong step among those with a right answer."""
    rows, problems, task = samples_of(folder)
    by_id = {problem.id: problem for problem in problems}
    checked = [(task.check(by_id[row.problem_id], trace.steps), trace.correct) for row in rows for trace in row.traces]
    steps = [right for verdicts, _ in checked for right in verdicts]
    solved = [not all(verdicts) for verdicts, correct in checked if correct]
    return {"steps_right": float(np.mean(steps)), "right_for_wrong_reasons": float(np.mean(solved))}


def samples_of(folder: Path) -> tuple[list[SearchRow], list[Problem], VerifiableTask]:
    """Rows of a search, its problems and its task."""
    source = read_json(folder / "summary.json")["problems"]
    task = get_task(source["task"], source["data"], **source["task_options"])
    assert isinstance(task, VerifiableTask)
    problems = task.problems(source["split"], source["limit"], source["offset"])
    return list(read_rows(folder / "rows.jsonl")), list(problems), task


def gain(one: Path, other: Path) -> dict[str, dict[str, float]]:
    """What one evaluation has over another: mean of the differences, its standard error, and the one in the other."""
    found = {}
    for figure, mine in by_problem(one).items():
        theirs = by_problem(other)[figure]
        differences = np.array([mine[problem] - theirs[problem] for problem in sorted(mine)])
        mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
        found[figure] = {"mean": mean, "se": error, "in_se": mean / error if error > 0 else 0.0}
    return found


def figures_of(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / "summary.json")["figures"]
    metrics = {name: figure.value for name, figure in read_metrics(folder).figures.items()}
    return metrics | {f"prm_{name}": summary["prm"][name] for name in PRM_FIGURES} | faithfulness(folder)


def rescored(folder: Path, prm: Path) -> dict[str, float]:
    """The samples of an evaluation judged by another PRM: its vote over all of them, and itself against exact truth."""
    rows, problems, task = samples_of(folder)
    scorer = PRMScorer(PRMModel.from_pretrained(prm).eval())
    wanted = list({(row.question, trace.steps) for row in rows for trace in row.traces if trace.scores is not None})

    async def score() -> dict[tuple[str, tuple[str, ...]], tuple[float, ...]]:
        found = await asyncio.gather(*(scorer.score(question, steps) for question, steps in wanted))
        return {key: scores.values for key, scores in zip(wanted, found, strict=True)}

    scores = asyncio.run(score())

    def judged(row: SearchRow) -> SearchRow:
        traces = (
            trace if trace.scores is None else replace(trace, scores=scores[row.question, trace.steps])
            for trace in row.traces
        )
        return replace(row, traces=tuple(traces))

    rows = [judged(row) for row in rows]
    samples = samples_from_rows(rows)
    vote = mean_and_se(problem_accuracy(samples, "product_vote", samples.n))
    truth = truth_figures(rows, problems, task)
    return {"product_vote": vote.mean, "product_vote_se": vote.se} | {name: truth[name] for name in PRM_FIGURES}


def variant(config: str, seed: int, run: Path, iteration: int, name: str, *settings: str) -> dict[str, Any]:
    """The policy of an iteration trained otherwise, and judged by the first pair's PRM."""
    loop = parse(["--config", config, "--seed", str(seed), "--run", str(run)])
    configs = {path.stem: path for path in (run / "configs").glob("*.yaml")}
    sft, first = Plan(loop, configs).sft().outputs[0], Products.made(run / "iteration-1")
    level = read_json(run / "summary.json")["iterations"][iteration - 1]["level"]
    begin = Begin(sft, first=sft) if iteration == 1 else Begin(first.policy, first=sft, prm=first.prm, level=level)
    plan = Plan(replace(loop, run=f"{run}-{name}"), configs)
    made = plan.made(iteration)
    if not (made.evaluation / "summary.json").is_file():
        shutil.copytree(first.prm, made.prm, dirs_exist_ok=True)
        subprocess.run([*plan.policy(iteration, begin).argv, *settings], check=True)
        subprocess.run(plan.evaluate(iteration, begin).argv, check=True)
    return figures_of(made.evaluation)


def measure(config: str, seed: int, out: Path) -> dict[str, Any]:
    """The loop and its control with one seed."""
    run, control = out / f"seed-{seed}", out / f"seed-{seed}-control"
    cpu = run_loop(config, seed, run)
    copy_first_iteration(run, control)
    control_cpu = run_loop(config, seed, control, "--labels_from", "first")
    first, second, other = run / "iteration-1/evaluate", run / "iteration-2/evaluate", control / "iteration-2/evaluate"
    iterations, control_iterations = (read_json(r / "summary.json")["iterations"] for r in (run, control))
    return {
        "minutes": sum(sum(entry["seconds"].values()) for entry in iterations) / 60,
        "cpu_minutes": cpu,
        "control_cpu_minutes": control_cpu,
        "seconds": [entry["seconds"] for entry in iterations],
        "levels": [entry["level"] for entry in iterations],
        "gate_passed": [entry["passed"] for entry in iterations],
        "gate_reasons": iterations[1]["reasons"],
        "control_gate_passed": control_iterations[1]["passed"],
        "first": figures_of(first),
        "second": figures_of(second),
        "control": figures_of(other),
        "old_samples": {
            name: rescored(first, folder / "prm" / "model")
            for name, folder in (
                ("first", run / "iteration-1"),
                ("second", run / "iteration-2"),
                ("control", control / "iteration-2"),
            )
        },
        "new_samples": {"first": rescored(second, run / "iteration-1" / "prm" / "model")},
        "free": variant(config, seed, run, 1, "free", *FREE),
        "fast": variant(config, seed, run, 1, "fast", *FREE, "--model.optimizer.lr", "5e-4"),
        "longer": variant(config, seed, run, 1, "longer", *LONGER),
        "longer_harder": variant(config, seed, run, 1, "longer-harder", *LONGER, *HARDER),
        "process": variant(config, seed, run, 2, "process", *PROCESS, str(run / "iteration-1" / "prm" / "model")),
        "second_less_first": gain(second, first),
        "second_less_control": gain(second, other),
    }


def worst(runs: dict[str, dict[str, Any]], difference: str) -> dict[str, float]:
    """Over seeds, by figure."""
    return {
        name: round(min(run[difference][name]["in_se"] for run in runs.values()), 2)
        for name in ("accuracy", "pass_at_1")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="configs/loop/accumulator.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/loop"))
    parser.add_argument("--dry", action="store_true", help="print, and leave the result file as it is")
    arguments = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {}
    for seed in arguments.seeds:
        runs[str(seed)] = measure(arguments.config, seed, arguments.out)
    figures = {
        "minutes": {seed: round(run["minutes"], 2) for seed, run in runs.items()},
        "cpu_minutes": {seed: run["cpu_minutes"] for seed, run in runs.items()},
        "iteration2_gain_in_se": worst(runs, "second_less_first"),
        "over_control_in_se": worst(runs, "second_less_control"),
        "gate": {s: {"second": r["gate_passed"][1], "control": r["control_gate_passed"]} for s, r in runs.items()},
        "runs": runs,
    }
    print(json.dumps(figures, indent=2))
    if not arguments.dry:
        threads = os.environ.get("OMP_NUM_THREADS")
        protocol = {"config": arguments.config, "seeds": arguments.seeds, "threads": threads, "load": os.getloadavg()}
        print(write_result("loop", figures, ("prmkit", "torch", "lightning", "transformers"), protocol=protocol))
        draw_loop(runs, PICTURE)
        print(PICTURE)


if __name__ == "__main__":
    main()
