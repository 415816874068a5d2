"""From the values of a step-label record to what a PRM is trained on. Pure functions; no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, get_args

from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError

__all__ = [
    "NO_ERROR",
    "UNKNOWN_ERROR",
    "TargetKind",
    "confidence_interval",
    "first_error",
    "step_intervals",
    "step_pairs",
    "step_targets",
    "step_verdicts",
]

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


def step_verdicts(values: Sequence[float | None], threshold: float = 0.0) -> tuple[bool | None, ...]:
    """[S] is each step labelled right? None where the labels do not say.

    A step is right when its value is above `threshold`. A step without a value is right when a later one is: what was
    found from there, was reached through it. A binary search for the first error leaves such steps.
    """
    verdicts: list[bool | None] = []
    vouched = False
    for value in reversed(values):
        vouched = vouched or (value is not None and value > threshold)
        verdicts.append((True if vouched else None) if value is None else value > threshold)
    return tuple(reversed(verdicts))


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
            equation 3, with threshold 0: any rollout right); a step without a value is right when a later one is,
            see `step_verdicts`. "soft": the value itself (equation 4).
        mask_after_first_error: train on steps up to and including the first with value <= threshold only. What
            follows an error is neither right nor wrong in a useful sense.
        threshold: in [0, 1).

    Returns:
        [S] targets in [0, 1], None where a step is not trained on (masked, or without a label).

    Raises:
        ConfigError: unknown kind, or threshold out of range.
    """
    if kind not in get_args(TargetKind):
        raise ConfigError("targets.kind", kind, " | ".join(get_args(TargetKind)))
    if not 0.0 <= threshold < 1.0:
        raise ConfigError("targets.threshold", threshold, "a number in [0, 1)")
    targets: list[float | None] = []
    masked = False
    for value, right in zip(record.values, step_verdicts(record.values, threshold), strict=True):
        if masked or right is None:
            targets.append(None)
            continue
        soft = None if value is None else float(value)
        targets.append(soft if kind == "soft" else float(right))
        masked = mask_after_first_error and not right
    return tuple(targets)


def step_pairs(targets: Sequence[float | None]) -> tuple[tuple[int, int], ...]:
    """All pairs (i, j) of labelled steps of one solution with target i > target j, for the pairwise loss.

    Order: by i, then by j. Steps of one solution share a question, so that a pair compares steps and not problems.
    """
    labelled = [(index, target) for index, target in enumerate(targets) if target is not None]
    return tuple((i, j) for i, better in labelled for j, worse in labelled if better > worse)


def confidence_interval(value: float, rollouts: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for the probability that a rollout ends right, of which `rollouts` rollouts gave the share `value`.

    Wilson's score interval (E. B. Wilson, JASA 22, 1927): the probabilities p from which `value` lies at most z
    standard errors away, |value - p| <= z sqrt(p (1 - p) / n), z being the normal quantile of (1 + level) / 2. Unlike
    value -+ z standard errors it is right for few rollouts and for shares of 0 and 1, which Monte-Carlo values are
    full of.

    Args:
        value: share of right rollouts, in [0, 1].
        rollouts: n; 0 says nothing and gives (0.0, 1.0).
        level: how often the interval holds the true probability, in (0, 1).

    Returns:
        (low, high) in [0, 1], with low <= value <= high.

    Raises:
        ConfigError: an argument out of range.
    """
    if not 0.0 <= value <= 1.0:
        raise ConfigError("confidence_interval.value", value, "a number in [0, 1]")
    if rollouts < 0:
        raise ConfigError("confidence_interval.rollouts", rollouts, "an integer of at least 0")
    if not 0.0 < level < 1.0:
        raise ConfigError("confidence_interval.level", level, "a number in (0, 1)")
    if rollouts == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    share = z * z / rollouts
    middle = (value + share / 2.0) / (1.0 + share)
    half = z * math.sqrt(value * (1.0 - value) / rollouts + share / (4.0 * rollouts)) / (1.0 + share)
    return min(max(middle - half, 0.0), value), max(min(middle + half, 1.0), value)


def step_intervals(record: StepLabels, level: float = 0.95) -> tuple[tuple[float, float] | None, ...]:
    """[S] `confidence_interval` of each step's value; None where there is no value."""
    return tuple(
        None if value is None else confidence_interval(value, rollouts, level)
        for value, rollouts in zip(record.values, record.rollouts, strict=True)
    )
