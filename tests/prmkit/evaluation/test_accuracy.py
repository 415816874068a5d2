"""Accuracy curves against hand-worked rows, brute force and invariances."""

import itertools
import math

import numpy as np
import pytest

from prmkit.aggregate import AGGREGATIONS, aggregate
from prmkit.errors import ConfigError, DataError
from prmkit.evaluation.accuracy import (
    Samples,
    accuracy_table,
    block_sizes,
    mean_and_se,
    method_names,
    paired_gain,
    problem_accuracy,
    samples_from_rows,
)
from prmkit.search.rows import SearchRow, TraceRecord


def trace(group, correct, *scores, finish="stop"):
    answer = None if group < 0 else str(group)
    return TraceRecord(("s",) * max(len(scores), 1), finish, answer, group, correct, 1, scores or None)


def row(number, *traces, error=None):
    return SearchRow(f"p{number}", "q", "0", tuple(traces), error=error)


ROWS = [
    row(0, trace(0, False, 0.1), trace(1, True, 0.9), trace(0, False, 0.2), trace(1, True, 0.1, 0.9)),
    row(1, trace(0, True, 0.5), trace(0, True, 0.5), trace(1, False, 0.4), trace(-1, False, finish="stop")),
    row(2, trace(0, False, 0.6, finish="length"), trace(-1, False), trace(0, False, 0.9), trace(1, True, 0.8)),
    row(3, error="ValueError: too long"),
]


def test_by_hand():
    samples = samples_from_rows(ROWS)
    assert samples.classes.tolist() == [[0, 1, 0, 1], [0, 0, 1, -1], [-1, -1, 0, 1], [-1, -1, -1, -1]]
    expected = {
        ("majority", 1): [0.5, 0.5, 0.25, 0],
        ("majority", 2): [0.5, 0.5, 0.25, 0],
        ("majority", 4): [0.5, 1, 0.5, 0],
        ("oracle", 2): [1, 0.5, 0.5, 0],
        ("oracle", 4): [1, 1, 1, 0],
        ("min_max", 2): [0.5, 0.5, 0, 0],  # blocks: (.1 wrong, .9 right), (.2 wrong, .1 right)
        ("last_max", 2): [1, 0.5, 0, 0],
        ("product_vote", 2): [0.5, 0.5, 0, 0],
        ("product_vote", 4): [1, 1, 0, 0],  # .3 for 0 against .99 for 1
        ("min_vote", 4): [1, 1, 0, 0],
    }
    for (method, n), values in expected.items():
        assert problem_accuracy(samples, method, n).tolist() == values, (method, n)
    gain = paired_gain(samples, "product_vote", "majority", 4)
    differences = np.array([0.5, 0, -0.5, 0])
    assert gain.mean == 0.0
    assert gain.se == pytest.approx(differences.std(ddof=1) / 2)
    table = accuracy_table(samples)
    assert set(table) == set(method_names(scored=True))
    assert table["majority"][4].mean == 0.5
    assert list(table["oracle"]) == [1, 2, 4]


def random_samples(problems=40, n=16, seed=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, (problems, n))
    correct = classes == rng.integers(0, 4, (problems, 1))
    return Samples(classes, correct, {how: np.log(rng.random((problems, n))) for how in AGGREGATIONS})


def test_equal_at_one_and_majority_of_two_is_one():
    samples = random_samples()
    for method in method_names(scored=True):
        assert problem_accuracy(samples, method, 1) == pytest.approx(samples.correct.mean(axis=1))
    assert problem_accuracy(samples, "majority", 2) == pytest.approx(problem_accuracy(samples, "majority", 1))


def test_blocks_against_a_loop():
    samples = random_samples(problems=10, n=11)
    logs = samples.log_scores["min"]
    for n in (1, 2, 3, 4, 8, 11):
        got = problem_accuracy(samples, "min_max", n)
        for p in range(10):
            hits = []
            for start in range(0, 11 - n + 1, n):
                block = slice(start, start + n)
                hits.append(samples.correct[p, block][np.argmax(logs[p, block])])
            assert got[p] == pytest.approx(np.mean(hits))


def test_block_means_are_unbiased():
    """Over all orders of four samples, the mean over blocks of two is the mean over all pairs."""
    classes, scores = (0, 1, 1, 2), (0.5, 0.2, 0.25, 0.1)
    orders = list(itertools.permutations(range(4)))
    samples = Samples(
        np.array([[classes[i] for i in order] for order in orders]),
        np.array([[classes[i] == 1 for i in order] for order in orders]),
        {how: np.log([[scores[i] for i in order] for order in orders]) for how in AGGREGATIONS},
    )
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    wins = [max(pair, key=lambda i: scores[i]) in (1, 2) for pair in pairs]
    assert problem_accuracy(samples, "min_max", 2).mean() == pytest.approx(np.mean(wins))


def test_scores_of_rows_are_aggregated():
    samples = samples_from_rows(ROWS)
    for how in AGGREGATIONS:
        assert math.exp(samples.log_scores[how][0, 3]) == pytest.approx(aggregate((0.1, 0.9), how))


def test_small_and_bad_input():
    assert block_sizes(1) == (1,)
    assert block_sizes(100) == (1, 2, 4, 8, 16, 32, 64)
    assert mean_and_se(np.array([0.5])).to_json() == {"mean": 0.5, "se": None}
    assert mean_and_se(np.array([0.0, 1.0, 1.0, 0.0])).se == pytest.approx(math.sqrt(1 / 3) / 2)
    unscored = samples_from_rows([row(0, trace(0, True), trace(1, False))])
    assert unscored.log_scores is None
    assert method_names(scored=False) == ("oracle", "majority")
    with pytest.raises(ConfigError, match="Score the traces"):
        problem_accuracy(unscored, "min_vote", 1)
    with pytest.raises(ConfigError, match=r"method: got 'median_vote'; accepted: oracle | majority"):
        problem_accuracy(unscored, "median_vote", 1)
    with pytest.raises(ConfigError, match=r"n: got 4; accepted: an integer in \[1, 2\]"):
        problem_accuracy(unscored, "majority", 4)
    with pytest.raises(DataError, match="all of them failed"):
        samples_from_rows([row(0, error="x")])
    with pytest.raises(DataError, match="1 of 2 voting traces are scored"):
        samples_from_rows([row(0, trace(0, True, 0.5), trace(1, False))])
