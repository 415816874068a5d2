"""A PRM's step scores against exact truth. Plain numpy; every figure is defined where it is computed.

Of a trace with errors the steps up to and including the first wrong one count: what a step behind an error is worth is
not defined. A step is predicted right when its score is above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from prmkit.errors import DataError

__all__ = ["auroc", "calibration_error", "f1", "first_error_f1", "prm_figures"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
_NO_ERROR = -1


def auroc(scores: FloatArray, truth: BoolArray) -> float | None:
    """Probability that a right step scores above a wrong one, ties counting half; None when one kind is missing.

    Args:
        scores: [S].
        truth: [S] True for right steps.
    """
    right, wrong = int(truth.sum()), int((~truth).sum())
    if right == 0 or wrong == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of equal scores, from 1
    above = mean_rank[inverse][truth].sum() - right * (right + 1) / 2
    return float(above / (right * wrong))


def calibration_error(scores: FloatArray, truth: BoolArray, bins: int = 15) -> float | None:
    """Expected calibration error (1706.04599, equation 3) of P(right): the distance of score and share right in a
    bin, averaged over the steps.

    Args:
        scores: [S] in [0, 1].
        truth: [S] True for right steps.
        bins: equally wide; 1 lies in the last.
    """
    if scores.size == 0:
        return None
    which = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=scores - truth, minlength=bins)
    return float(np.abs(gaps).sum() / scores.size)


def f1(predicted: BoolArray, truth: BoolArray) -> float | None:
    """Harmonic mean of precision and recall of the True class; None when it is neither present nor predicted."""
    hits = int((predicted & truth).sum())
    total = int(predicted.sum() + truth.sum())
    return 2 * hits / total if total else None


def first_error_f1(predicted: Sequence[int], truth: Sequence[int]) -> dict[str, float | None]:
    """ProcessBench (2412.06559): how often the first wrong step is found.

    Args:
        predicted, truth: [traces] index of the first wrong step, -1 for none.

    Returns:
        `first_error_accuracy_wrong` over traces with an error, `first_error_accuracy_right` over those without, and
        their harmonic mean `first_error_f1`; None where there are no such traces.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for guess, index in zip(predicted, truth, strict=True):
        hits[index == _NO_ERROR].append(guess == index)
    right, wrong = (sum(h) / len(h) if h else None for h in (hits[True], hits[False]))
    harmonic = None
    if right is not None and wrong is not None:
        harmonic = 2 * right * wrong / (right + wrong) if right + wrong > 0 else 0.0
    return {
        "first_error_f1": harmonic,
        "first_error_accuracy_wrong": wrong,
        "first_error_accuracy_right": right,
    }


def prm_figures(
    scores: Sequence[Sequence[float]], truth: Sequence[Sequence[bool]], threshold: float = 0.5
) -> dict[str, float | int | None]:
    """All figures of a PRM over traces.

    Args:
        scores: [traces][S] step scores in [0, 1].
        truth: [traces][S] is each step right?
        threshold: a step is predicted wrong at or below it.

    Returns:
        `auroc`, `step_accuracy`, `f1` (of right steps), `f1_wrong` (of wrong steps), `ece`, the three of
        `first_error_f1`, and the numbers of `traces` and `steps` they rest on.

    Raises:
        DataError: scores and truth of a trace differ in length.
    """
    for number, (values, verdicts) in enumerate(zip(scores, truth, strict=True)):
        if len(values) != len(verdicts):
            raise DataError(f"trace {number}: {len(values)} scores for {len(verdicts)} verdicts")
    true_errors = [_first([not right for right in verdicts]) for verdicts in truth]
    guesses = [_first([value <= threshold for value in values]) for values in scores]
    ends = [
        len(verdicts) if error == _NO_ERROR else error + 1 for verdicts, error in zip(truth, true_errors, strict=True)
    ]
    kept = np.array(list(chain.from_iterable(v[:end] for v, end in zip(scores, ends, strict=True))), dtype=np.float64)
    right = np.array(list(chain.from_iterable(t[:end] for t, end in zip(truth, ends, strict=True))), dtype=np.bool_)
    predicted = kept > threshold
    return {
        "auroc": auroc(kept, right),
        "step_accuracy": float((predicted == right).mean()) if kept.size else None,
        "f1": f1(predicted, right),
        "f1_wrong": f1(~predicted, ~right),
        "ece": calibration_error(kept, right),
        **first_error_f1(guesses, true_errors),
        "traces": len(scores),
        "steps": int(kept.size),
    }


def _first(flags: Sequence[bool]) -> int:
    return next((index for index, flag in enumerate(flags) if flag), _NO_ERROR)
