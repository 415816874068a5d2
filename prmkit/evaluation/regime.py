"""What a few hundred samples of a policy tell about rewards before training: figures, no advice (`regime_verdict`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from prmkit.evaluation.accuracy import Estimate, mean_and_se
from prmkit.evaluation.prm_metrics import auroc, prm_figures
from prmkit.rewards import count_groups
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.tasks.luck import is_worked_out
from prmkit.types import Problem, Task, VerifiableTask

__all__ = ["StepScoresOf", "regime_figures", "scored_solutions"]

StepScoresOf = Mapping[tuple[str, tuple[str, ...]], Sequence[float]]
"""Step scores of a PRM by question and steps."""


def scored_solutions(rows: Iterable[SearchRow]) -> list[tuple[str, tuple[str, ...]]]:
    """Question and steps of every distinct solution that has steps, in order."""
    return list(dict.fromkeys((row.question, trace.steps) for row in rows for trace in row.traces if trace.steps))


def regime_figures(
    rows: Sequence[SearchRow],
    problems: Sequence[Problem],
    task: Task,
    scores: Mapping[str, StepScoresOf],
    chance: float | None = None,
) -> dict[str, Any]:
    """Figures of samples, as JSON; shares in [0, 1], None where something cannot be told.

    Args:
        rows: one per problem, its samples graded; those of failed problems are left out. At least one did not fail.
        problems: of the rows.
        task: checks steps, where it can.
        scores: of every PRM, by its name, for all `scored_solutions`.
        chance: share of right answers by guessing; None takes what the task knows.

    Returns:
        `problems`, `failed`, `samples`; `pass_at_1` and `tokens` of a solution ({mean, se over problems}); `chance`;
        `all_wrong`, `all_right`: shares of groups; `earned`: share of solutions that are right and worked out, or where
        steps cannot be checked right beyond chance, (p - c) / (1 - c); `lucky`: share of right answers that were not
        worked out; `right_before_error`: mean share of a solution's steps that are right before the first error;
        `truncated`, `no_answer`: shares of solutions; `prms`: by name, figures of its step scores against truth
        (`prm_figures`) and `outcome_auroc`, of a solution's lowest score against its answer; `disagreement`: share of
        steps on which several PRMs take different sides of 0.5.
    """
    good = [row for row in rows if row.error is None and row.traces]
    traces = [trace for row in good for trace in row.traces]
    if chance is None and isinstance(task, VerifiableTask):
        chance = task.chance
    right = _by_problem(good, lambda _, trace: float(trace.correct))
    groups = count_groups([trace.correct for trace in row.traces] for row in good)
    found = {
        "problems": len(rows),
        "failed": len(rows) - len(good),
        "samples": len(traces),
        "pass_at_1": right.to_json(),
        "chance": chance,
        "all_wrong": groups.all_wrong / len(good),
        "all_right": groups.all_right / len(good),
        "truncated": _share(trace.finish != "stop" for trace in traces),
        "no_answer": _share(trace.answer is None for trace in traces),
        "tokens": _by_problem(good, lambda _, trace: float(trace.tokens)).to_json(),
        "earned": right.mean if chance is None else max(0.0, (right.mean - chance) / (1.0 - chance)),
        "lucky": None,
        "right_before_error": None,
    }
    truth: StepTruth | None = None
    if isinstance(task, VerifiableTask):
        found |= _worked_out(good, problems, task)
        truth = _truth(good, problems, task)
    prms = {name: _prm(good, known, truth) for name, known in scores.items()}
    return {**found, "prms": prms, "disagreement": _disagreement(list(scores.values()))}


StepTruth = Mapping[tuple[str, tuple[str, ...]], Sequence[bool]]


def _by_problem(rows: Sequence[SearchRow], value: Callable[[SearchRow, TraceRecord], float]) -> Estimate:
    """Mean over problems of the mean over a problem's samples."""
    return mean_and_se(np.array([sum(value(row, t) for t in row.traces) / len(row.traces) for row in rows]))


def _share(flags: Iterable[bool]) -> float:
    kept = list(flags)
    return sum(kept) / len(kept)


def _truth(rows: Sequence[SearchRow], problems: Sequence[Problem], task: VerifiableTask) -> StepTruth:
    by_question = {problem.question: problem for problem in problems}
    return {key: task.check(by_question[key[0]], key[1]) for key in scored_solutions(rows)}


def _worked_out(
    rows: Sequence[SearchRow], problems: Sequence[Problem], task: VerifiableTask
) -> dict[str, float | None]:
    by_id = {problem.id: problem for problem in problems}

    def earned(row: SearchRow, trace: TraceRecord) -> float:
        return float(trace.correct and is_worked_out(task, by_id[row.problem_id], trace.steps))

    def progress(row: SearchRow, trace: TraceRecord) -> float:
        problem = by_id[row.problem_id]
        verdicts = task.check(problem, trace.steps)
        right = next((index for index, verdict in enumerate(verdicts) if not verdict), len(verdicts))
        return min(1.0, right / max(1, len((problem.solution or "").splitlines())))

    correct = sum(trace.correct for row in rows for trace in row.traces)
    honest = sum(earned(row, trace) for row in rows for trace in row.traces)
    return {
        "earned": _by_problem(rows, earned).mean,
        "lucky": None if correct == 0 else 1.0 - honest / correct,
        "right_before_error": _by_problem(rows, progress).mean,
    }


def _prm(rows: Sequence[SearchRow], known: StepScoresOf, truth: StepTruth | None) -> dict[str, Any]:
    """A PRM against the truth of steps, on distinct solutions, and against answers, on all samples."""
    of_steps = prm_figures(list(known.values()), [truth[key] for key in known]) if truth else {"auroc": None}
    judged = [(min(known[row.question, t.steps]), t.correct) for row in rows for t in row.traces if t.steps]
    lowest, right = (np.array(values) for values in zip(*judged, strict=True)) if judged else ([], [])
    against = auroc(np.asarray(lowest, dtype=np.float64), np.asarray(right, dtype=np.bool_))
    return {**of_steps, "outcome_auroc": against}


def _disagreement(members: Sequence[StepScoresOf]) -> float | None:
    if len(members) < 2 or not members[0]:
        return None
    steps = chain.from_iterable(zip(*(member[key] for member in members), strict=True) for key in members[0])
    return _share(min(scores) <= 0.5 < max(scores) for scores in steps)
