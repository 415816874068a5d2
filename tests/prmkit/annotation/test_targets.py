"""Targets of hand-worked records."""

import math
from dataclasses import replace

import pytest

from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import confidence_interval, first_error, step_intervals, step_pairs, step_targets
from prmkit.errors import ConfigError


def record(*values):
    n = len(values)
    return StepLabels("p", "q", None, tuple("abcdefgh"[:n]), values, (0,) * n, "test", "")


@pytest.mark.parametrize(
    ("values", "kind", "mask", "threshold", "expected"),
    [
        ((0.9, 0.25, 0.0, 0.5), "hard", True, 0.0, (1.0, 1.0, 0.0, None)),
        ((0.9, 0.25, 0.0, 0.5), "hard", False, 0.0, (1.0, 1.0, 0.0, 1.0)),
        ((0.9, 0.25, 0.0, 0.5), "soft", True, 0.0, (0.9, 0.25, 0.0, None)),
        ((0.9, 0.25, 0.0, 0.5), "soft", True, 0.25, (0.9, 0.25, None, None)),
        ((0.9, 0.25, 0.0, 0.5), "hard", True, 0.25, (1.0, 0.0, None, None)),
        ((None, 0.5, None, 0.0), "hard", True, 0.0, (1.0, 1.0, None, 0.0)),  # a right step vouches for those before it
        ((None, 0.5, None, 0.0), "hard", True, 0.5, (None, 0.0, None, None)),
        ((None, 0.5, 0.0, 1.0), "soft", True, 0.0, (None, 0.5, 0.0, None)),
        ((1, 1), "hard", True, 0.0, (1.0, 1.0)),
        ((None, None), "soft", True, 0.0, (None, None)),
        ((), "hard", True, 0.0, ()),
    ],
)
def test_step_targets(values, kind, mask, threshold, expected):
    targets = step_targets(record(*values), kind, mask, threshold)
    assert targets == expected
    assert all(target is None or isinstance(target, float) for target in targets)


@pytest.mark.parametrize(
    ("values", "correct", "expected"),
    [
        ((1.0, 0.5, 0.0, 0.0), None, 2),
        ((0.0,), None, 0),
        ((1.0, 1.0), None, -1),
        ((None, 1.0, 0.0), None, 2),  # a right step vouches for those before it
        ((1.0, None, 0.0), None, -2),  # either of the last two
        ((None, 0.0), None, -2),
        ((1.0, None), None, -2),
        ((1.0, None), True, -1),
        ((1.0, None), False, -2),
        ((), None, -2),
    ],
)
def test_first_error(values, correct, expected):
    assert first_error(values, correct=correct) == expected


def test_first_error_threshold():
    assert first_error((0.9, 0.4, 0.1), threshold=0.4) == 1


def test_pairs_are_all_ordered_pairs_of_different_targets():
    assert step_pairs((1.0, None, 0.5, 0.0, 1.0)) == ((0, 2), (0, 3), (2, 3), (4, 2), (4, 3))
    assert step_pairs((1.0, 1.0, None)) == ()


@pytest.mark.parametrize(("kind", "threshold", "field"), [("firm", 0.0, "targets.kind"), ("hard", 1.0, "threshold")])
def test_refusals(kind, threshold, field):
    with pytest.raises(ConfigError, match=field):
        step_targets(record(1.0), kind, threshold=threshold)


# -- confidence intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "rollouts", "interval"),
    [
        # z^2 = 3.8414588: for a share of 0 the bounds are 0 and z^2 / (n + z^2) = 3.8414588 / 11.8414588.
        (0.0, 8, (0.0, 0.32440756)),
        (1.0, 8, (0.67559244, 1.0)),
        # (4 + z^2 / 2) / (8 + z^2) = 1/2, half width z sqrt(1/32 + z^2 / 256) / (1 + z^2 / 8) = 0.28474 by hand.
        (0.5, 8, (0.21521608, 0.78478392)),
        # The example that textbooks print: 81 of 263, 95 per cent.
        (81 / 263, 263, (0.2553, 0.3662)),
        (0.3, 0, (0.0, 1.0)),
    ],
)
def test_wilson_interval(value, rollouts, interval):
    assert confidence_interval(value, rollouts) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_bounds_solve_wilsons_equation_and_mirror(level):
    """Independent of the closed form: each bound p lies z standard errors of p from the share."""
    z = {0.5: 0.6744898, 0.9: 1.6448536, 0.95: 1.9599640, 0.999: 3.2905267}[level]
    for n in (1, 3, 8, 100):
        for right in range(n + 1):
            low, high = confidence_interval(right / n, n, level)
            assert 0.0 <= low <= right / n <= high <= 1.0
            for bound in {low, high} - {0.0, 1.0}:
                assert abs(right / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6)
            mirrored = confidence_interval((n - right) / n, n, level)
            assert mirrored == pytest.approx((1 - high, 1 - low))


def test_true_probability_is_inside_about_as_often_as_promised():
    """Exact coverage over the binomial distribution, averaged over probabilities: Wilson's is close to nominal."""
    n, grid = 16, [i / 200 for i in range(1, 200)]
    inside = [confidence_interval(k / n, n) for k in range(n + 1)]
    coverage = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if inside[k][0] <= p <= inside[k][1])
        for p in grid
    ]
    assert sum(coverage) / len(coverage) == pytest.approx(0.95, abs=0.01)


def test_intervals_of_a_record():
    row = replace(record(None, 0.0, 1.0), rollouts=(0, 8, 0))
    assert step_intervals(row)[0] is None
    assert step_intervals(row)[1] == confidence_interval(0.0, 8)
    assert step_intervals(row)[2] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "field"), [((1.1, 8, 0.9), "value"), ((0.5, -1, 0.9), "rollouts"), ((0.5, 8, 1.0), "level")]
)
def test_interval_refusals(arguments, field):
    with pytest.raises(ConfigError, match=rf"confidence_interval\.{field}"):
        confidence_interval(*arguments)
