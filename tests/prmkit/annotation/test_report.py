"""What is said about a file of labels, counted by hand."""

import pytest

from prmkit.annotation.records import StepLabels
from prmkit.annotation.report import compare_with_truth, describe_labels
from prmkit.errors import DataError
from prmkit.records import Problem
from prmkit.tasks.accumulator import AccumulatorTask


def labels(values, correct=False):
    n = len(values)
    return StepLabels("p", "q", "1", ("s",) * n, tuple(values), (1,) * n, "s", "p", separator="\n", correct=correct)


def test_truth_by_hand():
    # truth: the second step is the first error. Labels: right, right, wrong -> 1 of 2 steps, first error one late
    late = compare_with_truth(labels([0.5, 0.1, 0.0]), (True, False, True))
    assert (late.steps, late.steps_agree, late.first_error_agree, late.wrong_first_error_agree) == (2, 1, 0, 0)
    exact = compare_with_truth(labels([0.5, 0.0, None]), (True, False, False))
    assert (exact.steps, exact.steps_agree, exact.first_error_agree, exact.wrong_solutions) == (2, 2, 1, 1)
    right = compare_with_truth(labels([1.0, 1.0], correct=True), (True, True))
    assert (right.steps, right.steps_agree, right.first_error_agree, right.wrong_solutions) == (2, 2, 1, 0)
    lucky = compare_with_truth(labels([1.0, 1.0], correct=True), (False, True))
    assert (lucky.steps, lucky.steps_agree, lucky.first_error_agree) == (1, 0, 0)
    total = late + exact + right + lucky
    assert total.figures() == {
        "step_accuracy": 5 / 7,
        "first_error_accuracy": 2 / 4,
        "first_error_accuracy_wrong_solutions": 1 / 2,
        "false_positive_rate": 1 / 2,
    }
    assert set((total.__class__()).figures().values()) == {None}


def test_a_right_prefix_vouches_for_the_steps_before_it():
    # no value for the first step, but the second is right: three labels, all true
    found = compare_with_truth(labels([None, 0.5, 0.0, None]), (True, True, False, True))
    assert (found.steps, found.steps_agree, found.first_error_agree) == (3, 3, 1)
    # nothing vouches for the first step when the second is wrong
    assert compare_with_truth(labels([None, 0.0]), (True, False)).steps == 1
    # with a threshold, a lucky rollout is not enough
    assert compare_with_truth(labels([0.5, 0.125, 0.0]), (True, False, True), threshold=0.125).first_error_agree == 1


def test_histograms_and_shares():
    task = AccumulatorTask()
    problem = Problem("p", "f+5g*3,8", "7", "f+5=D\ng*3=7")  # 8 + 5 = 13, 13 * 3 = 39 = 7 modulo 16

    def record(steps, values, correct):
        return StepLabels(
            "p", problem.question, "7", steps, values, (8,) * 2, "s", "p", separator="\n", correct=correct
        )

    records = [
        record(("f+5=D", "g*3=7"), (1.0, 1.0), True),
        record(("f+5=D", "g*3=8"), (0.5, 0.0), False),
        record(("f+5=E", "g*3=A"), (0.25, 0.0), False),  # wrong from the first step, labelled from the second
    ]
    found = describe_labels(records, 0.0, (task, {"p": problem}))
    assert found["values"] == [2, 0, 1, 0, 0, 1, 0, 0, 0, 2]
    assert found["first_error"] == {"none": 1, "2": 2}
    assert found["step_accuracy_by_position"] == {"1": 2 / 3, "2": 1.0}
    assert found["step_accuracy_by_rollouts"] == {"8": 4 / 5}
    assert found["truth"]["first_error_accuracy_wrong_solutions"] == 1 / 2
    assert "truth" not in describe_labels(records)
    with pytest.raises(DataError, match="no such problem"):
        describe_labels(records, 0.0, (task, {}))
