"""Cost and truth of step labels, method against method, on the built-in task.

    python benchmarks/annotation.py [--policy runs/demo/sft/policy] [--problems 400] [--quick]

Three policies whose labels can be checked exactly:

- the synthetic one of the OpenR settings (k 16, 20 searches, 200 rollouts a question): every step is right with
  probability .9, nothing comes back from a wrong one, and no two samples share a step by chance;
- teachers of the accumulator task: they go on from any prefix as its demonstrations are written, on programs of 4 to 6
  operations, and on 12 to 16 with slips rare enough that problems are solved;
- a trained policy (`--policy`, as `prm demo` leaves it), for the batch of the engine and for seconds.

Written to results/annotation.json:

- samples_per_distinct_prefix: rollouts, those from the bare question included, a distinct prefix of a wrong solution
  whose label is known, on the synthetic policy with 10 steps (openr_settings has other lengths); repeated_searches:
  searches that ended at a prefix which another one had found before.
- tokens_vs_brute_force_short, tokens_vs_brute_force_long: policy tokens a wrong solution whose first error is found,
  over Math-Shepherd's with every prefix estimated and no rollout shared, at the same k and from the same number of
  solutions. OmegaPRM has threshold 1/k, with which its labels are as true (first_errors_true in `short` and `long`).
- label_quality: by k, OmegaPRM with threshold 0 and 1/k: accuracy of steps and first errors, by position too, and how
  many solutions that end right hold a wrong step (false_positive_rate).
- batch_occupancy: mean number of rows in a decode step over the most there may be.
- seconds_by_questions: a whole run on so many questions; seconds_exponent: slope of log seconds over log questions.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _environment import write_result

from prmkit.annotation.counts import AnnotationCounts, ProblemLabels
from prmkit.annotation.math_shepherd import MathShepherdParams
from prmkit.annotation.methods import get_method
from prmkit.annotation.omegaprm import OmegaPRMParams
from prmkit.annotation.report import describe_labels
from prmkit.annotation.targets import first_error
from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.grading.exact import ExactGrader
from prmkit.protocols import Engine, Grader
from prmkit.records import Problem, SamplingParams, Usage
from prmkit.search.budget import Budget
from prmkit.tasks import get_task
from prmkit.tasks.accumulator import HEX, AccumulatorTask, apply, is_hard, misapply, parse_program
from prmkit.tasks.vocabulary import character_tokenizer

STEP_ACCURACY = 0.9


def annotate(
    problems: Sequence[Problem], engine: Engine, grader: Grader, method: str, params: Any
) -> tuple[list[ProblemLabels], AnnotationCounts, Usage]:
    """All problems at once; labels, counts and what they cost."""

    async def one(problem: Problem) -> tuple[ProblemLabels, Usage]:
        budget = Budget()
        labels = await get_method(method).annotate(problem, engine, grader, params, "benchmark", budget)
        return labels, budget.spent

    async def run() -> list[tuple[ProblemLabels, Usage]]:
        return await asyncio.gather(*map(one, problems))

    done = asyncio.run(run())
    labels = [found for found, _ in done]
    return (
        labels,
        sum((found.counts for found in labels), AnnotationCounts()),
        sum((spent for _, spent in done), Usage()),
    )


def synthetic(steps: int) -> tuple[ScriptedEngine, Grader]:
    """Steps are an `a` (right) or a `b` (wrong) and a number that makes them distinct."""

    def script(prefix: str, index: int, seed: int) -> str:
        lines = prefix.split("\n")[1:-1]
        rng = random.Random(f"{prefix} {index} {seed}")
        broken = any(line.startswith("b") for line in lines)
        out = []
        for at in range(len(lines), steps):
            broken = broken or rng.random() >= STEP_ACCURACY
            last = at == steps - 1
            out.append(f"={int(not broken)}\n" if last else f"{'b' if broken else 'a'}{rng.randrange(10**6)}\n")
        return "".join(out)

    tokenizer = character_tokenizer("+-=ab0123456789q\n")
    grader = ExactGrader(lambda text: text.rpartition("=")[2].strip() or None if "=" in text else None)
    return ScriptedEngine(BoundStepFormat(get_step_format("plain"), tokenizer), script), grader


def teacher(task: AccumulatorTask) -> ScriptedEngine:
    """Goes on from the value written last, with the task's own misconceptions."""

    def script(prefix: str, index: int, seed: int) -> str:
        question, *lines = prefix.split("\n")[:-1]
        operations, value = parse_program(question)
        value = int(lines[-1][-1], 16) if lines else value
        rng = random.Random(f"{prefix} {index} {seed}")
        out = []
        for operation in operations[len(lines) :]:
            _, operator, operand = operation
            slip = task.slip_hard if is_hard(operator, value, operand) else task.slip_easy
            value = (misapply if rng.random() < slip else apply)(operator, value, operand)
            out.append(f"{operation.text}={HEX[value]}\n")
        return "".join(out)

    return ScriptedEngine(BoundStepFormat(task.step_format, task.tokenizer()), script)


def openr_settings(questions: int, steps: int) -> dict[str, Any]:
    """Samples a distinct labelled prefix, and searches that repeat another, at OpenR's settings."""
    engine, grader = synthetic(steps)
    params = OmegaPRMParams(
        filter_rollouts=16, rollouts=16, max_searches=20, max_rollouts=200, searches_at_once=1, right_per_problem=0
    )
    problems = [Problem(f"q{i}", f"q{i}", "1") for i in range(questions)]
    labels, counts, usage = annotate(problems, engine, grader, "omegaprm", params)
    found = [
        s.steps[: s.first_error + 1]
        for one in labels
        if one.tree is not None
        for s in one.tree.solutions
        if s.first_error is not None
    ]
    return {
        "samples_per_distinct_prefix": usage.samples / counts.labels,
        "samples_per_estimated_prefix": usage.samples / counts.prefixes,
        "searches": counts.searches,
        "repeated_searches": len(found) - len(set(found)),
    }


def against_brute_force(task: AccumulatorTask, k: int, questions: int) -> dict[str, float]:
    """Tokens a first error found, OmegaPRM over Math-Shepherd, and how many of the first errors are true."""
    problems = task.problems("train", questions)
    engine, grader = teacher(task), task.grader
    sampling = SamplingParams(max_tokens=512)
    first = 16  # solutions a problem, of both
    omega = OmegaPRMParams(
        filter_rollouts=first,
        rollouts=k,
        max_searches=16,
        threshold=1 / k,
        right_per_problem=0,
        sampling=sampling,
    )
    brute = MathShepherdParams(
        solutions_per_problem=first,
        wrong_per_problem=None,
        right_per_problem=0,
        skip_unsolved=True,
        rollouts=k,
        reuse_rollouts=False,
        sampling=sampling,
    )
    found: dict[str, float] = {}
    for name, params in (("omegaprm", omega), ("math_shepherd", brute)):
        labels, counts, usage = annotate(problems, engine, grader, name, params)
        records = [record for one in labels for record in one.records]
        threshold = getattr(params, "threshold", 0.0)
        truth = describe_labels(records, threshold, (task, {p.id: p for p in problems}))["truth"]
        # A first error is a prefix: solutions that share it teach a PRM the same, and OmegaPRM writes one of them.
        errors = [(r, first_error(r.values, threshold, correct=False)) for r in records]
        distinct = {(r.problem_id, r.steps[: at + 1]) for r, at in errors}
        found |= {
            f"{name}_tokens_per_wrong_solution": usage.generated_tokens / (counts.records + counts.repeats),
            f"{name}_tokens_per_first_error": usage.generated_tokens / len(distinct),
            f"{name}_first_errors_true": truth["first_error_accuracy_wrong_solutions"],
            f"{name}_wrong_solutions": float(counts.records + counts.repeats),
        }
    return found


def label_quality(task: AccumulatorTask, questions: int) -> dict[str, Any]:
    """Agreement with the truth by rollouts behind a value."""
    problems = task.problems("train", questions)
    engine = teacher(task)
    table: dict[str, Any] = {}
    for k in (1, 2, 4, 8, 16, 32):
        row: dict[str, Any] = {}
        for name, threshold in (("any_right", 0.0), ("two_right", 1 / k)):
            if threshold == 1.0:
                continue
            params = OmegaPRMParams(
                filter_rollouts=16, rollouts=k, max_searches=4, threshold=threshold, right_per_problem=None
            )
            labels, _, usage = annotate(problems, engine, task.grader, "omegaprm", params)
            records = (record for one in labels for record in one.records)
            report = describe_labels(records, threshold, (task, {p.id: p for p in problems}))
            row[name] = {
                **report["truth"],
                "step_accuracy_by_position": report["step_accuracy_by_position"],
                "tokens": usage.generated_tokens,
            }
        table[str(k)] = row
    return table


def trained(policy: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Occupancy of the engine's batch and seconds by number of questions, with a real policy in `run_annotation`."""
    import tempfile

    from prmkit.annotation.runner import AnnotationRun, Workers, run_annotation
    from prmkit.engines import HFEngine
    from prmkit.jobs.chunks import ChunkedOutput
    from prmkit.models import load_policy

    loaded = load_policy(policy)
    task = get_task("accumulator")
    params = OmegaPRMParams(filter_rollouts=16, max_searches=4, sampling=SamplingParams(max_tokens=64))
    run = AnnotationRun("omegaprm", params, in_flight=200, chunk=50)
    rows = 256
    seconds: dict[str, float] = {}
    occupancy = 0.0
    for size in sizes:
        engine = HFEngine(loaded.model, loaded.format, max_rows=rows)
        with tempfile.TemporaryDirectory() as folder, ChunkedOutput(f"{folder}/x.jsonl", {}) as output:
            start = time.perf_counter()
            run_annotation(task.problems("train", size, 50_000), Workers(engine, task.grader), output, run)
            seconds[str(size)] = time.perf_counter() - start
        occupancy = engine.stats.occupancy / rows
    return {
        "batch_occupancy": occupancy,
        "seconds_by_questions": seconds,
        "seconds_exponent": slope([math.log(size) for size in sizes], [math.log(s) for s in seconds.values()]),
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, default=Path("runs/demo/sft/policy"), help="folder of a trained policy")
    parser.add_argument("--problems", type=int, default=200, help="questions a measurement")
    parser.add_argument("--quick", action="store_true", help="a fraction of it all, to see that it works")
    arguments = parser.parse_args()
    if not arguments.policy.is_dir():
        raise DataError(f"{arguments.policy}: no such policy; `prm demo` makes one, or name another with --policy")
    n = 20 if arguments.quick else arguments.problems
    sizes = (20, 40) if arguments.quick else (250, 500, 1000, 2000)

    def timed(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        result = measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s\n  {result}", flush=True)
        return result

    short = timed("4 to 6 steps", lambda: against_brute_force(AccumulatorTask(), 8, n))
    long_task = AccumulatorTask(min_ops=12, max_ops=16, hard_share=0.0, slip_hard=0.12, slip_easy=0.04)
    long = timed("12 to 16 steps", lambda: against_brute_force(long_task, 8, n))
    ratio = "_tokens_per_wrong_solution"
    settings = timed("OpenR's settings", lambda: {str(steps): openr_settings(n, steps) for steps in (6, 8, 10, 12, 16)})
    figures = {
        **settings["10"],
        "openr_settings": settings,
        "tokens_vs_brute_force_short": short[f"omegaprm{ratio}"] / short[f"math_shepherd{ratio}"],
        "tokens_vs_brute_force_long": long[f"omegaprm{ratio}"] / long[f"math_shepherd{ratio}"],
        "short": short,
        "long": long,
        "label_quality": timed("label quality", lambda: label_quality(AccumulatorTask(), n)),
        **timed("a trained policy", lambda: trained(arguments.policy, sizes)),
    }
    if not arguments.quick:
        print(write_result("annotation", figures, ("torch", "transformers"), problems=n))


if __name__ == "__main__":
    main()
