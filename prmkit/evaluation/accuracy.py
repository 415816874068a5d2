"""Accuracy against the number of samples, for every way of selecting an answer, from one set of samples a problem.

The N samples of a problem are cut into disjoint blocks of 1, 2, 4 ... samples. A method's accuracy at block size n is
the mean over problems of the mean over a problem's blocks; its standard error is over problems, which are independent
(blocks of one problem are not).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prmkit.aggregate import (
    AGGREGATIONS,
    Aggregation,
    Selection,
    expected_accuracy,
    log_aggregate,
    oracle,
    voting_classes,
)
from prmkit.errors import ConfigError, DataError
from prmkit.search.rows import SearchRow

__all__ = [
    "Estimate",
    "Samples",
    "accuracy_table",
    "block_sizes",
    "mean_and_se",
    "method_names",
    "paired_gain",
    "problem_accuracy",
    "samples_from_rows",
    "selection_of",
]

FloatArray = npt.NDArray[np.float64]

_SELECTIONS: Mapping[str, Selection] = {"max": "rm_max", "vote": "rm_vote"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its standard error; `se` is None for fewer than two problems."""

    mean: float
    se: float | None

    def to_json(self) -> dict[str, float | None]:
        return {"mean": self.mean, "se": self.se}


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of P problems as arrays. Failed problems and missing samples never vote and are wrong.

    Attributes:
        classes: [P, N] answer classes, -1 where a trace may not vote.
        correct: [P, N] True where the answer is right.
        log_scores: [P, N] logarithm of the trace's score for every aggregation, -inf where it does not vote; None when
            the traces were not scored.
    """

    classes: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    log_scores: Mapping[Aggregation, FloatArray] | None

    @property
    def n(self) -> int:
        """Samples a problem."""
        return int(self.classes.shape[1])


def samples_from_rows(rows: Iterable[SearchRow]) -> Samples:
    """Arrays from rows. DataError for no row, no sample, or voting traces of which only some are scored."""
    rows = list(rows)
    n = max((len(row.traces) for row in rows), default=0)
    if n == 0:
        raise DataError("no samples to evaluate: there are no rows, or all of them failed")
    classes = np.full((len(rows), n), -1, dtype=np.int64)
    correct = np.zeros((len(rows), n), dtype=np.bool_)
    logs = {how: np.full((len(rows), n), -np.inf) for how in AGGREGATIONS}
    scored = 0
    for p, row in enumerate(rows):
        votes = voting_classes([trace.group for trace in row.traces], [trace.finish for trace in row.traces])
        for i, (trace, group) in enumerate(zip(row.traces, votes, strict=True)):
            classes[p, i], correct[p, i] = group, trace.correct
            if group >= 0 and trace.scores is not None:
                scored += 1
                for how in AGGREGATIONS:
                    logs[how][p, i] = log_aggregate(trace.scores, how)
    voting = int((classes >= 0).sum())
    if scored not in (0, voting):
        raise DataError(f"{scored} of {voting} voting traces are scored; expected all or none of them")
    return Samples(classes, correct, logs if scored else None)


def method_names(scored: bool) -> tuple[str, ...]:
    """`oracle`, `majority`, and for scored traces `<aggregation>_max` and `<aggregation>_vote`."""
    combined = tuple(f"{how}_{selection}" for selection in _SELECTIONS for how in AGGREGATIONS)
    return ("oracle", "majority", *(combined if scored else ()))


def block_sizes(n: int) -> tuple[int, ...]:
    """1, 2, 4 ... up to n."""
    return tuple(2**power for power in range(n.bit_length()))


def problem_accuracy(samples: Samples, method: str, n: int) -> FloatArray:
    """[P] mean accuracy of a method over each problem's disjoint blocks of n consecutive samples.

    Samples that fill no whole block are left out.

    Raises:
        ConfigError: unknown method, a method that needs scores without them, or n outside [1, samples.n].
    """
    if not 1 <= n <= samples.n:
        raise ConfigError("n", n, f"an integer in [1, {samples.n}]")
    problems, blocks = len(samples.classes), samples.n // n

    def cut(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return values[:, : blocks * n].reshape(problems * blocks, n)

    classes, correct = cut(samples.classes), cut(samples.correct)
    selection, how = selection_of(method)
    if selection is None:
        hits = oracle(classes, correct)  # type: ignore[arg-type]
    else:
        logs = None if how is None or samples.log_scores is None else cut(samples.log_scores[how])
        hits = expected_accuracy(classes, correct, selection, logs)  # type: ignore[arg-type]
    means: FloatArray = hits.reshape(problems, blocks).mean(axis=1)
    return means


def accuracy_table(samples: Samples) -> dict[str, dict[int, Estimate]]:
    """{method: {n: accuracy}} for all methods and n = 1, 2, 4 ..."""
    return {
        method: {n: mean_and_se(problem_accuracy(samples, method, n)) for n in block_sizes(samples.n)}
        for method in method_names(samples.log_scores is not None)
    }


def paired_gain(samples: Samples, method: str, baseline: str, n: int) -> Estimate:
    """Accuracy of a method less that of another at n samples, paired by problem."""
    return mean_and_se(problem_accuracy(samples, method, n) - problem_accuracy(samples, baseline, n))


def mean_and_se(values: FloatArray) -> Estimate:
    """Mean of independent values [P] and its standard error, s / sqrt(P) with s over P - 1."""
    se = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(float(values.mean()), se)


def selection_of(method: str) -> tuple[Selection | None, Aggregation | None]:
    """Selection and aggregation of a name in `method_names`; None for what it does without. ConfigError otherwise."""
    if method == "oracle":
        return None, None
    if method == "majority":
        return "majority", None
    name, _, selection = method.rpartition("_")
    for how in AGGREGATIONS:
        if how == name and selection in _SELECTIONS:
            return _SELECTIONS[selection], how
    raise ConfigError("method", method, " | ".join(method_names(scored=True)))
