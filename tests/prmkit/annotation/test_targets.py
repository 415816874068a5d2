"""Targets of hand-worked records."""

import pytest

from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import first_error, step_pairs, step_targets
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
        ((None, 0.5, None, 0.0, 1.0), "hard", True, 0.0, (None, 1.0, None, 0.0, None)),
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
