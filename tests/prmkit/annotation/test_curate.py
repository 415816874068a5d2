"""Curation of hand-made records: what is merged, what is kept, and that neither depends on order."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from prmkit.annotation.curate import (
    Curated,
    CurationParams,
    balance_positions,
    balance_values,
    curate,
    deduplicate,
    keep_agreed,
    merge,
)
from prmkit.annotation.judge import Verdict, solution_key
from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR, first_error
from prmkit.errors import ConfigError


def record(*values, name="q", rollouts=8, **fields):
    n = len(values)
    made = StepLabels(
        "p", name, None, tuple(f"s{i}" for i in range(n)), values, tuple(0 if v is None else rollouts for v in values),
        "test", "",
    )  # fmt: skip
    return replace(made, **fields)


def verdict(row, first_error):
    return {solution_key(row): Verdict(solution_key(row), "judge", first_error)}


# -- duplicates -------------------------------------------------------------------------------------------------------


def test_merged_values_are_the_share_of_right_rollouts_among_all():
    one = record(0.5, 0.25, None, rollouts=8, correct=True)  # 4 and 2 of 8
    two = record(0.75, None, 1.0, rollouts=16, answer="7", policy="other")  # 12 and 16 of 16
    made = merge([one, two])
    assert made.values == (16 / 24, 2 / 8, 1.0)
    assert made.rollouts == (24, 8, 16)
    assert (made.correct, made.answer, made.policy) == (True, "7", "")


def test_values_without_rollouts_count_only_among_themselves():
    human, other, sampled = record(1.0, rollouts=0), record(0.0, rollouts=0), record(0.25, rollouts=4)
    assert merge([human, other]).values == (0.5,)
    assert merge([human, sampled, other]).values == (0.25,)
    assert merge([record(None), record(None)]).values == (None,)


def test_deduplicate_keeps_the_first_of_each_solution_in_place():
    rows = [
        record(1.0, name="a"),
        record(0.5, name="b"),
        record(0.0, name="a"),
        record(0.5, 0.5, name="a"),
        record(1.0, name="b"),
        record(0.5, name="b", steps=("another",)),
    ]
    done = deduplicate(rows)
    assert done.kept == (0, 1, 3, 5)
    assert done.dropped == {"duplicates": 2}
    left = done.over(rows)
    assert [row.values for row in left] == [(0.5,), (0.75,), (0.5, 0.5), (0.5,)]
    assert (len(left), left[-1].steps, [row.question for row in left[1:3]]) == (4, ("another",), ["b", "a"])


def test_texts_that_only_join_alike_are_different_solutions():
    assert solution_key(record(1.0, 1.0, steps=("ab", "c"))) != solution_key(record(1.0, 1.0, steps=("a", "bc")))
    assert solution_key(record(1.0, name="q")) == solution_key(record(0.0, name="q", rollouts=1))


# -- consensus --------------------------------------------------------------------------------------------------------


def test_consensus_keeps_what_both_see_and_says_why_the_rest_went():
    cases = [
        (record(1.0, 0.0, name="same error"), 1, None),
        (record(1.0, 1.0, name="both none"), NO_ERROR, None),
        (record(1.0, 0.0, name="earlier"), 0, "judge disagrees"),
        (record(1.0, 0.0, name="no error"), NO_ERROR, "judge disagrees"),
        (record(1.0, None, name="unknown"), NO_ERROR, "first error not known"),
        (record(1.0, None, name="known by the answer", correct=True), NO_ERROR, None),
        (record(1.0, name="unreadable"), None, "verdict not readable"),
    ]
    verdicts = {key: found for row, error, _ in cases for key, found in verdict(row, error).items()}
    rows = [*(row for row, _, _ in cases), record(1.0, name="unseen")]
    done = keep_agreed(rows, verdicts)
    assert [row.question for row in done.over(rows)] == [row.question for row, _, why in cases if why is None]
    assert done.dropped == Counter([*(why for _, _, why in cases if why), "without verdict"])


def test_consensus_reads_labels_with_the_threshold_of_training():
    row = record(0.9, 0.2, 0.0)
    assert keep_agreed([row], verdict(row, 2)).kept == (0,)
    assert keep_agreed([row], verdict(row, 1), threshold=0.25).kept == (0,)


# -- balance ----------------------------------------------------------------------------------------------------------


def with_error_at(place, n_steps, number):
    """A solution whose first error is at a step; at none with None; unknown with a gap before it."""
    values = [1.0] * n_steps
    if place == "gap":
        values = [1.0, None, 0.0]
    elif place is not None:
        values[place:] = [0.0] * (n_steps - place)
    return record(*values, name=f"{place}/{n_steps}/{number}")


def test_positions_are_cut_to_the_median_class():
    sizes = {None: 40, 0: 30, 3: 10, 7: 4, "gap": 2}  # of 8 steps: classes none, 0, 1, 3, and not known
    rows = [with_error_at(place, 8, number) for place, size in sizes.items() for number in range(size)]
    for ratio, cap in ((1.0, 10), (1.55, 15), (3.5, 35), (100.0, 40)):
        done = balance_positions(rows, ratio)
        kept = Counter(row.question.split("/")[0] for row in done.over(rows))
        assert kept == {str(place): min(size, cap) for place, size in sizes.items()}
        assert sum(done.dropped.values()) == len(rows) - len(done.kept)


def test_positions_are_parts_of_the_solution():
    """Errors at 1 of 2 and at 4 of 8 are one class: the third quarter; 3 of 8 is the second."""
    rows = [with_error_at(1, 2, i) for i in range(3)] + [with_error_at(4, 8, i) for i in range(3)]
    rows += [with_error_at(3, 8, i) for i in range(2)]
    assert len(balance_positions(rows, 1.0).kept) == 2 + 2
    rows += [with_error_at(0, 8, 0)]  # now the smallest of three; the median class has two
    assert len(balance_positions(rows, 1.0).kept) == 2 + 2 + 1
    assert len(balance_positions(rows, 1.0, bins=1).kept) == len(rows)


def test_values_count_up_to_the_first_error():
    """Means .95, .5 (of 1 and 0; what follows does not count) and .1: classes 3, 2 and 0 of 4."""
    rows = [record(0.9, 1.0, name=f"easy{i}") for i in range(6)]
    rows += [record(1.0, 0.0, 1.0, 1.0, name=f"wrong{i}") for i in range(3)]
    rows += [record(0.1, name=f"hard{i}") for i in range(2)]
    kept = Counter(row.question[:4] for row in balance_values(rows).over(rows))
    assert kept == {"easy": 3, "wron": 3, "hard": 2}
    assert balance_values([record(None)]).kept == (0,)


@pytest.mark.parametrize("balance", [balance_positions, balance_values])
def test_choice_is_one_of_content_and_seed_not_of_order(balance):
    draw = random.Random(0)
    rows = [with_error_at(draw.choice([None, None, None, 0, 2, 5]), 6, number) for number in range(200)]

    def kept(rows, seed=0):
        return {row.question for row in balance(rows, 1.0, seed=seed).over(rows)}

    shuffled = draw.sample(rows, len(rows))
    assert kept(rows) == kept(shuffled) != kept(rows, seed=1)
    assert balance(rows, 1.0).kept == tuple(sorted(balance(rows, 1.0).kept))
    assert balance([], 1.0) == Curated(0, ())


# -- all together -----------------------------------------------------------------------------------------------------


def test_curate_is_the_chain_of_its_parts():
    draw = random.Random(1)
    places = [None, None, None, 0, 2, 5]
    rows = [with_error_at(draw.choice(places), 6, draw.randrange(40)) for _ in range(300)]
    verdicts = {}
    for row in rows:
        verdicts |= verdict(row, draw.choice([first_error(row.values)] * 3 + [0]))
    params = CurationParams(
        deduplicate=True, verdicts="given", position_ratio=1.0, value_ratio=1.0, value_bins=2, seed=3
    )
    done = curate(rows, params, verdicts)
    by_hand, dropped = rows, Counter()
    for stage in (
        deduplicate,
        lambda rows: keep_agreed(rows, verdicts),
        lambda rows: balance_positions(rows, 1.0, seed=3),
        lambda rows: balance_values(rows, 1.0, 2, seed=3),
    ):
        step = stage(by_hand)
        by_hand = list(step.over(by_hand))
        dropped += Counter(step.dropped)
    assert list(done.over(rows)) == by_hand
    assert done.dropped == dropped
    assert len(done.kept) + sum(dropped.values()) == done.given == 300
    assert set(done.merged) <= set(done.kept)
    assert done.describe().startswith(f"{len(by_hand)} of 300 records kept (")


def test_nothing_asked_for_is_nothing_done():
    rows = [record(1.0), record(1.0)]
    assert not CurationParams().active
    done = curate(rows, CurationParams())
    assert (done.kept, done.dropped, list(done.over(rows))) == ((0, 1), {}, rows)
    assert done.describe() == "2 of 2 records kept (none dropped)"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position_ratio", 0.5),
        ("value_ratio", float("inf")),
        ("position_bins", 0),
        ("value_bins", 0),
        ("threshold", 1.0),
    ],
)
def test_params_are_checked(field, value):
    with pytest.raises(ConfigError, match=rf"curation\.{field}: got"):
        CurationParams(**{field: value})
