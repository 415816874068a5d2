"""Aggregation and selection: hand-worked tables, a slow twin in exact arithmetic, and invariances."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from prmkit.aggregate import (
    AGGREGATIONS,
    SELECTIONS,
    aggregate,
    choose,
    expected_accuracy,
    log_aggregate,
    oracle,
    voting_classes,
)
from prmkit.errors import ConfigError


@pytest.mark.parametrize(
    ("how", "expected"), [("min", 0.2), ("last", 0.8), ("mean", 0.5), ("product", 0.08), ("max", 0.8)]
)
def test_aggregate_by_hand(how, expected):
    assert aggregate([0.5, 0.2, 0.8], how) == pytest.approx(expected, rel=1e-12)
    assert log_aggregate([0.5, 0.2, 0.8], how) == pytest.approx(math.log(expected), rel=1e-12)


def test_aggregations_agree_on_one_step_and_on_zero():
    for how in AGGREGATIONS:
        assert aggregate([0.37], how) == pytest.approx(0.37)
        assert aggregate([0.0], how) == 0.0
        assert aggregate([1.0, 1.0], how) == 1.0


def test_product_of_a_long_trace_keeps_its_order():
    low, high = log_aggregate([1e-3] * 200, "product"), log_aggregate([1.1e-3] * 200, "product")
    assert math.isfinite(low)
    assert low < high
    assert choose([0, 1], "rm_vote", [low, high]) == 1
    assert choose([0, 1], "rm_max", [low, high]) == 1


@pytest.mark.parametrize("values", [[], [0.5, 1.2], [-0.1], [math.nan]])
def test_bad_scores_are_refused(values):
    with pytest.raises(ValueError, match=r"steps|must lie in"):
        aggregate(values, "min")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"aggregation: got 'median'; accepted: min"):
        aggregate([0.5], "median")
    with pytest.raises(ConfigError, match=r"selection: got 'best'; accepted: majority"):
        choose([0], "best", [0.0])
    with pytest.raises(ConfigError, match="Score the traces"):
        choose([0], "rm_vote")


def test_cut_off_and_unanswered_traces_do_not_vote():
    assert voting_classes([0, 1, -1, 0], ["stop", "length", "stop", "abort"]) == (0, -1, -1, -1)
    assert choose([-1, -1], "majority") is None
    assert choose([], "majority") is None
    nobody = np.array([[-1, -1]])
    assert expected_accuracy(nobody, np.array([[True, True]]), "majority").tolist() == [0.0]
    assert oracle(nobody, np.array([[True, True]])).tolist() == [0.0]


TABLE = [
    # classes, correct class, scores, majority, rm_max, rm_vote, and what `choose` gives for each
    ((0, 0, 1), 0, (0.1, 0.2, 0.9), 1.0, 0.0, 0.0, (0, 2, 2)),
    ((0, 0, 1), 0, (0.4, 0.4, 0.7), 1.0, 0.0, 1.0, (0, 2, 0)),
    ((0, 1), 1, (0.5, 0.5), 0.5, 0.5, 0.5, (0, 0, 0)),
    ((0, 0, 1), 1, (0.5, 0.5, 0.5), 0.0, 1 / 3, 0.0, (0, 0, 0)),
    ((0, 1, 2, 1, 2), 2, (0.1, 0.2, 0.3, 0.2, 0.1), 0.5, 1.0, 0.5, (1, 2, 1)),
    ((-1, 0, 1, 1), 0, (0.9, 0.8, 0.1, 0.1), 0.0, 1.0, 1.0, (2, 1, 1)),
    ((0, 1), 0, (0.0, 0.0), 0.5, 0.5, 0.5, (0, 0, 0)),
    ((0, 1, 1), 0, (0.3, 0.1, 0.2), 0.0, 1.0, 0.5, (1, 0, 0)),
]


@pytest.mark.parametrize("row", TABLE)
def test_selection_by_hand(row):
    classes, right, scores, *expected, chosen = row
    logs = [log_aggregate([score], "min") for score in scores]
    correct = np.array([classes]) == right
    got = [expected_accuracy(np.array([classes]), correct, how, np.array([logs]))[0] for how in SELECTIONS]
    assert got == pytest.approx(expected, abs=1e-12)
    assert tuple(choose(classes, how, logs) for how in SELECTIONS) == chosen


def slow_twin(classes, correct, scores, selection):
    """Expected accuracy in exact arithmetic, straight from the definition."""
    voters = [i for i, c in enumerate(classes) if c >= 0]
    if not voters:
        return Fraction(0)
    if all(scores[i] == 0 for i in voters):
        scores = [Fraction(1)] * len(classes)
    if selection == "rm_max":
        best = max(scores[i] for i in voters)
        winners = [i for i in voters if scores[i] == best]
        return Fraction(sum(correct[i] for i in winners), len(winners))
    totals = {}
    for i in voters:
        totals[classes[i]] = totals.get(classes[i], 0) + (1 if selection == "majority" else scores[i])
    tied = [c for c, total in totals.items() if total == max(totals.values())]
    shares = []
    for c in tied:
        members = [i for i in voters if classes[i] == c]
        shares.append(Fraction(sum(correct[i] for i in members), len(members)))
    return sum(shares, Fraction(0)) / len(tied)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_vectorised_form_equals_the_slow_twin(selection):
    rng = random.Random(3)
    rows = []
    for _ in range(300):
        classes = [rng.choice([-1, 0, 1, 2, 3]) for _ in range(7)]
        truth = rng.choice([-1, 0, 1, 2, 3])
        scores = [Fraction(rng.choice([0, 1, 2, 3, 4]), 4) for _ in range(7)]
        rows.append((classes, [c == truth and c >= 0 for c in classes], scores))
    logs = [[math.log(s) if s else -math.inf for s in scores] for _, _, scores in rows]
    got = expected_accuracy(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), selection, np.array(logs))
    expected = [float(slow_twin(*row, selection)) for row in rows]
    assert got == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) >= 4


def random_rows(seed, rows=50, n=8, lowest=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(lowest, 4, (rows, n))
    return classes, (classes == rng.integers(0, 4, (rows, 1))) & (classes >= 0), np.log(rng.random((rows, n)))


def test_two_voters_are_worth_one():
    classes, correct, logs = random_rows(0, n=2)
    assert np.array_equal(expected_accuracy(classes, correct, "majority"), correct.mean(axis=1))
    assert np.array_equal(expected_accuracy(classes, correct, "rm_vote", np.zeros_like(logs)), correct.mean(axis=1))


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_a_scorer_that_knows_nothing_changes_nothing(constant):
    classes, correct, _ = random_rows(1)
    logs = np.full(classes.shape, math.log(constant) if constant else -math.inf)
    majority = expected_accuracy(classes, correct, "majority")
    assert np.array_equal(expected_accuracy(classes, correct, "rm_vote", logs), majority)
    assert expected_accuracy(classes, correct, "rm_max", logs) == pytest.approx(correct.mean(axis=1))


def test_expected_accuracy_ignores_order_class_numbers_and_scale():
    classes, correct, logs = random_rows(2, lowest=-1)
    order = np.random.default_rng(5).permutation(classes.shape[1])
    renumbered = np.where(classes >= 0, 7 - classes, -1)
    for how in SELECTIONS:
        base = expected_accuracy(classes, correct, how, logs)
        assert np.array_equal(base, expected_accuracy(classes[:, order], correct[:, order], how, logs[:, order]))
        assert np.array_equal(base, expected_accuracy(renumbered, correct, how, logs - 800.0))
        assert np.all(base <= oracle(classes, correct))


def test_choose_takes_a_trace_that_wins_in_expectation():
    """Averaged over all orders of the traces, the choice of the first among equals is the expected accuracy."""
    classes, right, scores = (0, 1, 1, 2, 2, -1), 2, (0.85, 0.5, 0.4, 0.2, 0.7, 0.9)
    logs = [math.log(s) for s in scores]
    for how in ("majority", "rm_max", "rm_vote"):
        hits = [
            classes[order[choose([classes[i] for i in order], how, [logs[i] for i in order])]] == right
            for order in itertools.permutations(range(6))
        ]
        expected = expected_accuracy(np.array([classes]), np.array([classes]) == right, how, np.array([logs]))[0]
        assert np.mean(hits) == pytest.approx(expected)
