"""What samples tell about rewards, by hand; and the verdict in every case."""

import itertools

import pytest

from prmkit.errors import ConfigError
from prmkit.evaluation.regime import regime_figures, scored_solutions
from prmkit.evaluation.regime_verdict import CONSTANT_WEIGHT, FADING_WEIGHT, RegimeThresholds, verdict
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.tasks import RecordTask, get_task
from prmkit.types import Problem

TASK = get_task("accumulator")
ONE = Problem("1", "f+5g*3h-8,7", "C", "f+5=C\ng*3=4\nh-8=C")
TWO = Problem("2", "a+3b+3,1", "7", "a+3=4\nb+3=7")
RIGHT = ("f+5=C", "g*3=4", "h-8=C")
SHORT = ("f+5=C",)  # right by luck: the answer is the first line's value
WRONG = ("f+5=C", "g*3=5", "h-8=D")


def trace(
    steps: tuple[str, ...], correct: bool, finish="stop", answer: str | None = "x", tokens: int = 6
) -> TraceRecord:
    return TraceRecord(steps, finish, answer, 0, correct, tokens)


def row(problem: Problem, *traces: TraceRecord, error: str | None = None) -> SearchRow:
    return SearchRow(problem.id, problem.question, problem.answer, traces, error=error)


ROWS = [
    row(ONE, trace(RIGHT, True), trace(SHORT, True, tokens=2), trace(WRONG, False), trace((), False, answer=None)),
    row(TWO, *[trace(("a+3=5", "b+3=8"), False, "length")] * 3, trace(("a+3=4", "b+3=8"), False)),
    row(Problem("3", "a+3,1", "4"), error="lost"),
]
SCORES = {
    (ONE.question, RIGHT): (0.9, 0.8, 0.7),
    (ONE.question, SHORT): (0.9,),
    (ONE.question, WRONG): (0.8, 0.3, 0.9),
    (TWO.question, ("a+3=5", "b+3=8")): (0.75, 0.1),
    (TWO.question, ("a+3=4", "b+3=8")): (0.6, 0.2),
}


def test_figures_by_hand():
    assert scored_solutions(ROWS) == list(SCORES)
    other = {key: tuple(1.0 - value for value in values) for key, values in SCORES.items()}
    found = regime_figures(ROWS, [ONE, TWO], TASK, {"one": SCORES, "other": other})
    assert (found["problems"], found["failed"], found["samples"], found["chance"]) == (3, 1, 8, 1 / 16)
    assert found["pass_at_1"] == {"mean": 0.25, "se": pytest.approx(0.25)}
    assert found["tokens"]["mean"] == pytest.approx((20 / 4 + 6) / 2)
    assert (found["all_wrong"], found["all_right"]) == (0.5, 0.0)
    assert (found["earned"], found["lucky"]) == (1 / 8, 0.5)
    assert found["right_before_error"] == pytest.approx((1 + 1 / 3 + 1 / 3 + 0 + 0 + 0 + 0 + 1 / 2) / 8)
    assert (found["truncated"], found["no_answer"]) == (3 / 8, 1 / 8)
    # Steps up to the first wrong one: right .9 .8 .7 .9 .8 .6, wrong .3 .75 .2.
    pairs = list(itertools.product((0.9, 0.8, 0.7, 0.9, 0.8, 0.6), (0.3, 0.75, 0.2)))
    assert found["prms"]["one"]["auroc"] == pytest.approx(sum(right > wrong for right, wrong in pairs) / len(pairs))
    assert found["prms"]["one"]["outcome_auroc"] == 1.0
    assert found["prms"]["other"]["auroc"] == pytest.approx(1.0 - found["prms"]["one"]["auroc"])
    assert found["disagreement"] == 1.0


def test_without_a_checker_right_answers_count_beyond_chance():
    task = RecordTask("mine", {}, None, TASK.grader)
    found = regime_figures(ROWS, [ONE, TWO], task, {"one": SCORES}, chance=0.2)
    assert found["earned"] == pytest.approx((0.25 - 0.2) / 0.8)
    assert (found["lucky"], found["right_before_error"], found["prms"]["one"]["auroc"]) == (None, None, None)
    assert regime_figures(ROWS, [ONE, TWO], task, {})["earned"] == 0.25
    assert regime_figures(ROWS, [ONE, TWO], task, {}, chance=0.5)["earned"] == 0.0


def figures(**changes) -> dict:
    usual = {"pass_at_1": {"mean": 0.11, "se": 0.01}, "chance": 1 / 16, "all_wrong": 0.4, "all_right": 0.0}
    usual |= {"earned": 0.05, "lucky": 0.55, "right_before_error": 0.4, "truncated": 0.0, "no_answer": 0.0}
    return {**usual, "prms": {}, "disagreement": None, **changes}


def prm(auroc: float | None, outcome: float | None = 0.5) -> dict:
    return {"prms": {"m": {"auroc": auroc, "outcome_auroc": outcome}}}


NO_TRUTH = {"lucky": None, "right_before_error": None}
CASES = [
    ({"truncated": 0.5}, "unreadable", "nothing", None, "50% of the solutions are cut off"),
    ({"no_answer": 0.8}, "unreadable", "nothing", None, "80% of the solutions have no answer"),
    ({"right_before_error": 0.04}, "weak", "nothing", None, "4.0% of a solution's steps are right"),
    ({"pass_at_1": {"mean": 0.95, "se": 0.0}, "earned": 0.9}, "solved", "nothing", None, "95.0% of the answers"),
    ({"earned": 0.2, **prm(0.99)}, "dense", "outcome", None, "20.0% of the solutions are right and worked out"),
    # As measured at 16 operations, and at 24 with the PRMs of two seeds.
    (prm(0.95), "sparse", "outcome_and_prm", FADING_WEIGHT, "below 20% outcomes are sparse"),
    ({"earned": 0.0, **prm(0.95)}, "absent", "outcome_and_prm", CONSTANT_WEIGHT, "up to 3% outcomes reward luck"),
    ({"earned": 0.0, **prm(0.88)}, "absent", "outcome_and_prm", CONSTANT_WEIGHT, "0.880; below 0.9 it teaches slowly"),
    ({}, "sparse", "outcome", None, "no PRM was given"),
    (prm(0.79), "sparse", "outcome", None, "below 0.8 it is no reward"),
    ({"earned": 0.03}, "absent", "prm_or_curriculum", None, "outcomes alone stay at chance"),
    ({"earned": 0.0, **prm(0.7)}, "absent", "prm_or_curriculum", None, "label problems closer to these"),
    # No truth of steps: answers judge a PRM where they are not luck.
    ({**NO_TRUTH, **prm(None, 0.92)}, "sparse", "outcome_and_prm", FADING_WEIGHT, "lowest step scores against answers"),
    ({**NO_TRUTH, **prm(None, 0.6)}, "sparse", "outcome", None, "right beyond chance (6.2%)"),
    ({**NO_TRUTH, "earned": 0.0, **prm(None, 0.3)}, "absent", "outcome_and_prm", CONSTANT_WEIGHT, "nothing here tells"),
    ({"disagreement": 0.2, **prm(0.95)}, "sparse", "outcome", None, "take different sides on 20% of the steps"),
    ({**NO_TRUTH, "earned": 0, "disagreement": 0.1, **prm(None)}, "absent", "outcome_and_prm", CONSTANT_WEIGHT, "90%"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "regime", "reward", "weight", "said"), CASES)
def test_every_case_has_a_verdict_and_says_why(changes, regime, reward, weight, said):
    found = verdict(figures(**changes), RegimeThresholds())
    assert (found.regime, found.reward, found.process_weight) == (regime, reward, weight)
    assert said in "; ".join(found.why)


def test_thresholds_decide():
    assert verdict(figures(), RegimeThresholds(dense=0.05)).regime == "dense"
    assert verdict(figures(), RegimeThresholds(absent=0.05)).regime == "absent"
    assert verdict(figures(**prm(0.6)), RegimeThresholds(prm_usable=0.5)).reward == "outcome_and_prm"
    for wrong in ({"weak": 2.0}, {"dense": 0.01}, {"prm_usable": 0.95}):
        with pytest.raises(ConfigError, match=f"thresholds.{next(iter(wrong))}: got"):
            RegimeThresholds(**wrong)
