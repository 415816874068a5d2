"""From step scores to one score a trace, and from scored traces to one answer: pure functions.

Two choices are kept apart. *Aggregation* (min, last, mean, product, max) turns the step scores of a trace into its
score. *Selection* turns the traces of a problem into an answer: `majority` counts the traces of every answer, `rm_vote`
sums their scores, `rm_max` takes the best-scored trace. One set of samples thus yields every combination.

Answers are equivalence classes: integers from `Grader.group`, -1 for a trace that may not vote. Scores are handled as
logarithms, so that a product over a long trace does not vanish, and every comparison is relative to the best score of
the row. Totals within a relative `TIE` of each other count as equal.

Leaves to others: extracting, grading and grouping answers (grading), averaging over problems (evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from prmkit.errors import ConfigError

__all__ = [
    "AGGREGATIONS",
    "SELECTIONS",
    "TIE",
    "Aggregation",
    "Selection",
    "aggregate",
    "choose",
    "expected_accuracy",
    "log_aggregate",
    "oracle",
    "voting_classes",
]

Aggregation = Literal["min", "last", "mean", "product", "max"]
Selection = Literal["majority", "rm_max", "rm_vote"]

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
TIE = 1e-9

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def log_aggregate(values: Sequence[float], how: Aggregation) -> float:
    """Natural logarithm of a trace's score, in [-inf, 0].

    Args:
        values: [S] step scores in [0, 1], at least one.
        how: one of AGGREGATIONS. `min` is that of Math-Shepherd (2312.08935, section 3.4).

    Raises:
        ConfigError: unknown aggregation.
        ValueError: no steps, or a score outside [0, 1] (NaN is outside).
    """
    if not values:
        raise ValueError("a trace without steps has no score")
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"step scores must lie in [0, 1], got {list(values)}")
    match how:
        case "min":
            return _log(min(values))
        case "last":
            return _log(values[-1])
        case "mean":
            return _log(math.fsum(values) / len(values))
        case "product":
            return math.fsum(map(_log, values)) if min(values) > 0.0 else -math.inf
        case "max":
            return _log(max(values))
        case _:
            raise ConfigError("aggregation", how, " | ".join(AGGREGATIONS))


def aggregate(values: Sequence[float], how: Aggregation) -> float:
    """A trace's score in [0, 1]: `exp(log_aggregate(values, how))`, with the same errors."""
    return math.exp(log_aggregate(values, how))


def voting_classes(groups: Sequence[int], finishes: Sequence[str]) -> tuple[int, ...]:
    """Answer classes with -1 for every trace that may not vote: cut-off ones and those without an answer.

    Args:
        groups: [N] class of each trace's answer from `Grader.group`; -1 for no answer.
        finishes: [N] `Trace.finish` of each.
    """
    return tuple(group if finish == "stop" else -1 for group, finish in zip(groups, finishes, strict=True))


def choose(classes: Sequence[int], selection: Selection, log_scores: Sequence[float] | None = None) -> int | None:
    """Index of the trace whose answer is given; None when no trace may vote. Among equals the first seen wins.

    Args:
        classes: [N] answer classes, -1 for a trace that may not vote.
        selection: one of SELECTIONS.
        log_scores: [N] from `log_aggregate`, ignored where the class is -1; None only for majority.
    """
    if not classes:
        return None
    rows = np.asarray(classes, dtype=np.int64)[None]
    scores = None if log_scores is None else np.asarray(log_scores, dtype=np.float64)[None]
    winners = np.flatnonzero(_winning_traces(rows, selection, scores)[0])
    return int(winners[0]) if winners.size else None


def expected_accuracy(
    classes: IntArray, correct: BoolArray, selection: Selection, log_scores: FloatArray | None = None
) -> FloatArray:
    """Probability that each row's answer is right when ties are broken at random.

    `majority` and `rm_vote` break ties between answer classes (a class is as right as its share of right traces, 0 or
    1 when grading is consistent), `rm_max` between traces. A row in which nothing may vote is wrong. So majority of
    two voting traces is exactly the mean of the two, and with a constant score `rm_vote` equals majority and `rm_max`
    the mean over the voting traces.

    Args:
        classes: [R, N] answer classes, -1 where a trace may not vote. Numbers need only be distinct within a row.
        correct: [R, N] True where the answer is right.
        selection: one of SELECTIONS.
        log_scores: [R, N] from `log_aggregate`, ignored where the class is -1; None only for majority.

    Returns:
        [R] in [0, 1].

    Raises:
        ConfigError: unknown selection, or one that needs scores without them.
    """
    winners = _winning_traces(classes, selection, log_scores)
    if selection == "rm_max":
        return _row_mean(correct, winners)
    flat, n_classes = _flat_classes(classes)
    counts = _class_sums(flat, n_classes, winners.astype(np.float64))
    right = _class_sums(flat, n_classes, (winners & correct).astype(np.float64))
    share = np.divide(right, counts, out=np.zeros_like(right), where=counts > 0)
    n_winning = (counts > 0).sum(axis=1)
    expected: FloatArray = share.sum(axis=1) / np.maximum(n_winning, 1)
    return expected


def oracle(classes: IntArray, correct: BoolArray) -> FloatArray:
    """pass@N: 1.0 for every row in which a trace that may vote is right. Shapes as in `expected_accuracy`."""
    solved: FloatArray = np.any(correct & (classes >= 0), axis=1).astype(np.float64)
    return solved


def _winning_traces(classes: IntArray, selection: Selection, log_scores: FloatArray | None) -> BoolArray:
    """[R, N] True for the traces of the winning answers (`rm_max`: for the best-scored traces)."""
    voters = classes >= 0
    if selection == "majority":
        weights = voters.astype(np.float64)
    elif selection not in SELECTIONS:
        raise ConfigError("selection", selection, " | ".join(SELECTIONS))
    elif log_scores is None:
        raise ConfigError("log_scores", None, f"scores, with selection {selection}", "Score the traces with a PRM.")
    else:
        weights = _relative_weights(log_scores, voters)
    if selection == "rm_max":
        return voters & (weights >= 1.0 - TIE)
    flat, n_classes = _flat_classes(classes)
    totals = _class_sums(flat, n_classes, weights)
    best = totals.max(axis=1, keepdims=True)
    winning = np.concatenate([totals >= best * (1.0 - TIE), np.zeros((len(totals), 1), dtype=bool)], axis=1)
    winners: BoolArray = voters & np.take_along_axis(winning, np.where(voters, classes, n_classes), axis=1)
    return winners


def _relative_weights(log_scores: FloatArray, voters: BoolArray) -> FloatArray:
    """[R, N] scores over the row's best score; 0 where a trace may not vote. A row of zeros has equal weights."""
    masked = np.where(voters, log_scores, -np.inf)
    best = masked.max(axis=1, keepdims=True)
    some = np.isfinite(best)
    relative = np.where(some, masked - np.where(some, best, 0.0), 0.0)
    return np.where(voters, np.exp(relative), 0.0)


def _flat_classes(classes: IntArray) -> tuple[IntArray, int]:
    """[R * N] bin of every trace (row, class), non-voters in a row's spare last bin; and the number of classes."""
    n_classes = max(int(classes.max(initial=-1)) + 1, 1)
    bins = np.where(classes >= 0, classes, n_classes) + np.arange(len(classes))[:, None] * (n_classes + 1)
    return bins.ravel(), n_classes


def _class_sums(flat: IntArray, n_classes: int, weights: FloatArray) -> FloatArray:
    """[R, C] sums of [R, N] weights by class, non-voters left out."""
    rows = len(weights)
    sums: FloatArray = np.bincount(flat, weights=weights.ravel(), minlength=rows * (n_classes + 1)).astype(np.float64)
    return sums.reshape(rows, n_classes + 1)[:, :n_classes]


def _row_mean(values: BoolArray, mask: BoolArray) -> FloatArray:
    """[R] mean of the values where the mask is True; 0 for a row with none."""
    mean: FloatArray = (values & mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    return mean


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
