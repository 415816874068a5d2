"""Which solutions are labelled, and with what; every probability of the policy is known."""

import asyncio

import pytest

from prmkit.annotation import mips
from prmkit.annotation.counts import AnnotationCounts
from prmkit.annotation.math_shepherd import MathShepherdParams, annotate_problem
from prmkit.errors import ConfigError
from prmkit.records import SamplingParams
from prmkit.search.budget import Budget

# `a` is right and leads anywhere, `b` is the first error: nothing right can follow it.
TREE = {
    (): {"a": 0.6, "b": 0.4},
    ("a",): {"c": 0.5, "d": 0.5},
    ("a", "c"): {"=1": 0.5, "=2": 0.5},
    ("a", "d"): {"=3": 1.0},
    ("b",): {"c": 0.5, "d": 0.5},
    ("b", "c"): {"=4": 1.0},
    ("b", "d"): {"e": 0.5, "=6": 0.5},
    ("b", "d", "e"): {"=7": 1.0},
}


@pytest.fixture
def annotate(tree_policy, last_step_grader, coin_problem):
    def run(max_tokens=512, tree=TREE, **params):
        engine, budget = tree_policy(lambda steps: tree.get(steps, {})), Budget()
        settings = MathShepherdParams(sampling=SamplingParams(max_tokens=max_tokens), **params)
        result = asyncio.run(annotate_problem(coin_problem, engine, last_step_grader, settings, "tree", budget))
        return result, engine, budget

    return run


ALL = {"solutions_per_problem": 64, "wrong_per_problem": None, "rollouts": 64}


def test_values_of_every_solution(annotate):
    result, _, _ = annotate(**ALL)
    wrong = {record.steps: record for record in result.records if not record.correct}
    right = [record for record in result.records if record.correct]
    assert set(wrong) == {("a", "c", "=2"), ("a", "d", "=3"), ("b", "c", "=4"), ("b", "d", "=6"), ("b", "d", "e", "=7")}
    for steps, record in wrong.items():
        assert len(record.values) == len(steps)
        assert (record.values[-1], record.rollouts[-1]) == (0.0, 1), "the grade of the whole"
        assert record.rollouts[:-1] == (64,) * (len(steps) - 1)
    assert wrong["a", "c", "=2"].values[:2] == pytest.approx((0.25, 0.5), abs=0.2)
    assert wrong["a", "c", "=2"].values[0] == wrong["a", "d", "=3"].values[0], "a shared prefix has one value"
    assert wrong["a", "d", "=3"].values[0] > 0.0
    assert wrong["a", "d", "=3"].values[1:] == (0.0, 0.0)
    assert wrong["b", "d", "e", "=7"].values == (0.0, 0.0, 0.0, 0.0)
    assert [(r.steps, r.values, r.rollouts) for r in right] == [(("a", "c", "=1"), (1.0, 1.0, 1.0), (1, 1, 1))]
    record = result.records[0]
    assert (record.problem_id, record.question, record.answer, record.source) == ("p0", "q", "1", "math-shepherd")
    assert (record.policy, record.separator, record.tree) == ("tree", "\n", None)


@pytest.mark.parametrize("reuse", [True, False])
def test_counts_are_those_of_the_engine(annotate, reuse):
    result, engine, budget = annotate(**ALL, reuse_rollouts=reuse)
    counts = result.counts
    prefixes = {r.steps[:end] for r in result.records if not r.correct for end in range(1, len(r.steps))}
    assert counts.prefixes == len(prefixes) == 7
    assert counts.rollouts + counts.inherited == 64 * 7
    assert counts.rollouts == sum(request.n for request in engine.requests[1:]) == budget.spent.samples - 64
    assert (counts.inherited > 150) == reuse
    assert (counts.problems, counts.solved, counts.solutions, counts.cut_off) == (1, 1, 64, 0)
    assert counts.values == sum(len(record.steps) for record in result.records)
    assert counts + AnnotationCounts() == counts


def test_stopping_at_the_first_zero_changes_nothing_before_it(annotate):
    full, _, _ = annotate(**ALL)
    short, _, _ = annotate(**ALL, stop_at_first_zero=True)
    assert short.counts.rollouts < full.counts.rollouts
    for one, other in zip(full.records, short.records, strict=True):
        zero = next((i for i, value in enumerate(one.values) if value == 0.0), len(one.values))
        assert other.values == one.values[: zero + 1] + (None,) * (len(one.values) - zero - 1)
        assert other.rollouts == one.rollouts[: zero + 1] + (0,) * (len(one.values) - zero - 1)


def test_which_solutions_are_picked(annotate):
    result, _, _ = annotate(solutions_per_problem=64, wrong_per_problem=2, right_per_problem=0, rollouts=2)
    everything, _, _ = annotate(**(ALL | {"rollouts": 2}))
    assert [record.steps for record in result.records] == [record.steps for record in everything.records[:2]]
    estimated, _, _ = annotate(**ALL, estimate_right=True)
    record = estimated.records[-1]
    assert record.correct
    assert record.values[:2] == pytest.approx((0.25, 0.5), abs=0.2)
    assert record.values[2] == 1.0


def test_right_solutions_sampled_most_often_come_first(annotate):
    tree = {(): {"a": 0.9, "b": 0.1}, ("a",): {"=1": 1.0}, ("b",): {"=1": 1.0}}
    one, _, _ = annotate(tree=tree, **(ALL | {"right_per_problem": 1}))
    both, _, _ = annotate(tree=tree, **(ALL | {"right_per_problem": None}))
    assert [record.steps for record in one.records] == [("a", "=1")]
    assert [record.steps for record in both.records] == [("a", "=1"), ("b", "=1")]
    rare_first = {(): {"a": 0.1, "b": 0.9}, ("a",): {"=1": 1.0}, ("b",): {"=1": 1.0}}
    assert annotate(tree=rare_first, **ALL)[0].records[0].steps == ("b", "=1")


def test_problems_that_nothing_solves_can_be_skipped(annotate):
    hopeless = {(): {"a": 1.0}, ("a",): {"=2": 1.0}}
    kept, _, _ = annotate(tree=hopeless, solutions_per_problem=3)
    assert [record.values for record in kept.records] == [(0.0, 0.0)]
    skipped, engine, _ = annotate(tree=hopeless, solutions_per_problem=3, skip_unsolved=True)
    assert (skipped.records, skipped.counts.rollouts, len(engine.requests)) == ((), 0, 1)
    solved, _, _ = annotate(**ALL, skip_unsolved=True)
    assert solved.records == annotate(**ALL)[0].records


def test_cut_off_and_empty_solutions_are_not_labelled(annotate):
    result, _, _ = annotate(max_tokens=3, solutions_per_problem=5)
    assert (result.records, result.counts.cut_off) == ((), 5)
    nothing, _, _ = annotate(tree={}, solutions_per_problem=5)
    assert (nothing.records, nothing.counts.cut_off, nothing.counts.solved) == ((), 0, 0)


def test_mips_estimates_right_and_wrong_solutions_alike(tree_policy, last_step_grader, coin_problem):
    policy = tree_policy(lambda steps: TREE.get(steps, {}))
    params = mips.MiPSParams(solutions_per_problem=64, rollouts=64)
    result = asyncio.run(mips.annotate_problem(coin_problem, policy, last_step_grader, params, "tree", Budget()))
    values = {record.steps: record.values for record in result.records}
    assert len(values) == 6
    assert values["a", "c", "=1"][:2] == values["a", "c", "=2"][:2] == pytest.approx((0.25, 0.5), abs=0.2)
    assert (values["a", "c", "=1"][2], values["a", "c", "=2"][2]) == (1.0, 0.0)
    assert {record.source for record in result.records} == {"mips"}
    with pytest.raises(ConfigError, match=r"annotate\.rollouts: got 0"):
        mips.MiPSParams(rollouts=0)


def test_bad_parameters_are_refused():
    with pytest.raises(ConfigError, match=r"annotate\.rollouts: got 0"):
        MathShepherdParams(rollouts=0)
    with pytest.raises(ConfigError, match=r"annotate\.wrong_per_problem: got -1"):
        MathShepherdParams(wrong_per_problem=-1)
