"""From the values of a step-label record to what a PRM is trained on. Pure functions; no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError

__all__ = ["NO_ERROR", "UNKNOWN_ERROR", "TargetKind", "first_error", "step_pairs", "step_targets"]

TargetKind = Literal["hard", "soft"]

NO_ERROR = -1
"""`first_error` of a solution known to have none."""
UNKNOWN_ERROR = -2
"""`first_error` where the labels do not say."""


def first_error(values: Sequence[float | None], threshold: float = 0.0, correct: bool | None = None) -> int:
    """Index of the first wrong step, NO_ERROR (-1) when there is none, UNKNOWN_ERROR (-2) when it cannot be told.

    A step is wrong when its value is at most `threshold`. Steps before one labelled right count as right: its value
    is that of the whole prefix. So unlabelled steps matter only right before the first wrong one (any of them may be
    the error) and at the end (unless the final answer is known to be right).

    Args:
        values: [S] in [0, 1], None where not estimated.
        threshold: in [0, 1).
        correct: is the final answer right?
    """
    last_right = -1
    for index, value in enumerate(values):
        if value is None:
            continue
        if value <= threshold:
            return index if last_right == index - 1 else UNKNOWN_ERROR
        last_right = index
    whole = len(values) > 0 and last_right == len(values) - 1
    return NO_ERROR if whole or correct is True else UNKNOWN_ERROR


def step_targets(
    record: StepLabels,
    kind: TargetKind = "hard",
    mask_after_first_error: bool = True,
    threshold: float = 0.0,
) -> tuple[float | None, ...]:
    """Training targets of a record's steps.

    Args:
        record: the labels.
        kind: "hard": 1.0 when value > threshold, else 0.0 (Math-Shepherd's hard estimation, arXiv 2312.08935
            equation 3, with threshold 0: any rollout right). "soft": the value itself (equation 4).
        mask_after_first_error: train on steps up to and including the first with value <= threshold only. What
            follows an error is neither right nor wrong in a useful sense.
        threshold: in [0, 1).

    Returns:
        [S] targets in [0, 1], None where a step is not trained on (masked, or without a value).

    Raises:
        ConfigError: unknown kind, or threshold out of range.
    """
    if kind not in get_args(TargetKind):
        raise ConfigError("targets.kind", kind, " | ".join(get_args(TargetKind)))
    if not 0.0 <= threshold < 1.0:
        raise ConfigError("targets.threshold", threshold, "a number in [0, 1)")
    targets: list[float | None] = []
    masked = False
    for value in record.values:
        if value is None or masked:
            targets.append(None)
            continue
        right = value > threshold
        targets.append(float(value) if kind == "soft" else float(right))
        masked = mask_after_first_error and not right
    return tuple(targets)


def step_pairs(targets: Sequence[float | None]) -> tuple[tuple[int, int], ...]:
    """All pairs (i, j) of labelled steps of one solution with target i > target j, for the pairwise loss.

    Order: by i, then by j. Steps of one solution share a question, so that a pair compares steps and not problems.
    """
    labelled = [(index, target) for index, target in enumerate(targets) if target is not None]
    return tuple((i, j) for i, better in labelled for j, worse in labelled if better > worse)
