"""The loop on the built-in task: how long two iterations take, and what the second one adds.

    python benchmarks/loop.py [--seeds 0 1 2] [--config configs/loop/accumulator.yaml] [--out runs/benchmarks/loop]

For every seed the loop is run, and then its control: a copy of the run whose second iteration takes its labels from the
first policy (`--labels_from first`), with everything else, the amount of data too, as it was. Both are resumed when
this is started again. Written to results/loop.json:

- minutes: wall clock of the loop's stages by seed, their start-up included; cpu_minutes: processor time by seed, of
  what this call has run, null where it found the run complete.
- iteration2_gain_in_se: the second pair less the first, on the same problems, mean of the differences by problem over
  their standard error; worst seed. `accuracy` is the PRM's vote, `pass_at_1` the policy alone.
- over_control_in_se: the second pair less the control's.
- old_samples: the first pair's samples, which the first policy after RL wrote, judged by the first PRM, the second and
  the control's: what newer labels do for the PRM alone, before another policy comes of it.
- runs: by seed, figures of the first pair, the second and the control's, and both differences.
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

from prmkit.evaluation.accuracy import mean_and_se, problem_accuracy, samples_from_rows
from prmkit.evaluation.summary import truth_figures
from prmkit.io import read_json
from prmkit.models import PRMModel
from prmkit.scoring import PRMScorer
from prmkit.search.rows import SearchRow, read_rows
from prmkit.tasks import get_task
from registry import read_metrics

PRM_FIGURES = ("auroc", "step_accuracy", "first_error_f1", "ece")


def run_loop(config: str, seed: int, run: Path, *more: str) -> float:
    """Run a loop to its end; returns the processor seconds it took now."""
    before = _cpu()
    subprocess.run(
        [
            sys.executable, "-m", "prmkit.cli", "loop", "--config", config, "--seed", str(seed), "--run", str(run),
            "--registry", str(run.with_name(f"{run.name}-registry")), *more,
        ],
        check=True,
    )  # fmt: skip
    return _cpu() - before


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


def gain(one: Path, other: Path) -> dict[str, dict[str, float]]:
    """What one evaluation has over another: mean of the differences, its standard error, and the one in the other."""
    found = {}
    for figure, mine in by_problem(one).items():
        theirs = by_problem(other)[figure]
        differences = np.array([mine[problem] - theirs[problem] for problem in sorted(mine)])
        mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
        found[figure] = {"mean": mean, "se": error, "in_se": mean / error if error > 0 else 0.0}
    return found


def figures_of(folder: Path) -> dict[str, float]:
    summary = read_json(folder / "summary.json")["figures"]
    metrics = {name: figure.value for name, figure in read_metrics(folder).figures.items()}
    return metrics | {f"prm_{name}": summary["prm"][name] for name in PRM_FIGURES}


def rescored(folder: Path, prm: Path) -> dict[str, float]:
    """The samples of an evaluation judged by another PRM: its vote over all of them, and itself against exact truth."""
    rows = list(read_rows(folder / "rows.jsonl"))
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
    source = read_json(folder / "summary.json")["problems"]
    task = get_task(source["task"], source["data"], **source["task_options"])
    problems = list(task.problems(source["split"], source["limit"], source["offset"]))
    samples = samples_from_rows(rows)
    vote = mean_and_se(problem_accuracy(samples, "product_vote", samples.n))
    truth = truth_figures(rows, problems, task)
    return {"product_vote": vote.mean, "product_vote_se": vote.se} | {name: truth[name] for name in PRM_FIGURES}


def measure(config: str, seed: int, out: Path) -> dict[str, Any]:
    """The loop and its control with one seed."""
    run, control = out / f"seed-{seed}", out / f"seed-{seed}-control"
    complete = (run / "summary.json").is_file() and len(read_json(run / "summary.json")["iterations"]) == 2
    cpu = run_loop(config, seed, run)
    copy_first_iteration(run, control)
    control_cpu = run_loop(config, seed, control, "--labels_from", "first")
    first, second, other = run / "iteration-1/evaluate", run / "iteration-2/evaluate", control / "iteration-2/evaluate"
    iterations = read_json(run / "summary.json")["iterations"]
    return {
        "minutes": sum(sum(entry["seconds"].values()) for entry in iterations) / 60,
        "cpu_minutes": None if complete else cpu / 60,
        "control_cpu_minutes": control_cpu / 60,
        "seconds": [entry["seconds"] for entry in iterations],
        "levels": [entry["level"] for entry in iterations],
        "gate_passed": [entry["passed"] for entry in iterations],
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
        "runs": runs,
    }
    print(json.dumps(figures, indent=2))
    if not arguments.dry:
        threads = os.environ.get("OMP_NUM_THREADS")
        protocol = {"config": arguments.config, "seeds": arguments.seeds, "threads": threads, "load": os.getloadavg()}
        print(write_result("loop", figures, ("prmkit", "torch", "lightning", "transformers"), protocol=protocol))


if __name__ == "__main__":
    main()
