"""Binary search, the pool, limits and records, on policies whose every probability is known."""

import asyncio

import pytest

from prmkit.annotation.omegaprm import OmegaPRMParams, annotate_problem, split_span, urgency
from prmkit.annotation.targets import first_error
from prmkit.errors import ConfigError
from prmkit.records import SamplingParams
from prmkit.search.budget import Budget


@pytest.fixture
def annotate(last_step_grader, coin_problem):
    def run(policy, max_tokens=512, **params):
        settings = OmegaPRMParams(sampling=SamplingParams(max_tokens=max_tokens), **params)
        budget = Budget()
        return asyncio.run(annotate_problem(coin_problem, policy, last_step_grader, settings, "tree", budget)), budget

    return run


def noise_free(length, wrong):
    """A policy that goes wrong at any of `length` steps with probability `wrong`, and never comes back: a right prefix
    is solved with probability (1 - wrong)^left, a wrong one never. Steps: `a` right, other letters wrong."""

    def next_steps(steps):
        if len(steps) == length:
            return {}
        broken = any(not step.endswith("a") and "=1" not in step for step in steps)
        if len(steps) == length - 1:
            return {"=2": 1.0} if broken else {"=1": 1.0 - wrong, "=2": wrong}
        others = "bcdefgh"
        if broken:
            return {letter: 1 / len(others) for letter in others}
        return {"a": 1.0 - wrong, **{letter: wrong / len(others) for letter in others}}

    return next_steps


def true_error(steps):
    return next((i for i, step in enumerate(steps) if step not in ("a", "=1")), -1)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 16])
def test_the_first_error_is_found_wherever_it_is(annotate, tree_policy, length, at_once):
    """No noise: 64 rollouts from a right prefix hold a right one. Hundreds of searches for each length."""
    result, _ = annotate(
        tree_policy(noise_free(length, 0.1)),
        filter_rollouts=64,
        rollouts=64,
        max_searches=60,
        searches_at_once=at_once,
    )
    wrong = [record for record in result.records if not record.correct]
    assert wrong
    for record in wrong:
        assert first_error(record.values, correct=False) == true_error(record.steps)
    for solution in result.tree.solutions:
        assert solution.first_error == true_error(solution.steps)
    assert len({record.steps[: true_error(record.steps) + 1] for record in wrong}) == len(wrong)


@pytest.mark.parametrize("reuse", [True, False])
def test_probes_are_logarithmic_and_estimated_once(annotate, tree_policy, reuse):
    result, budget = annotate(
        tree_policy(noise_free(16, 0.05)), filter_rollouts=16, max_searches=1, rollouts=64, reuse_rollouts=reuse
    )
    assert result.counts.searches == 1
    assert result.counts.prefixes <= 4  # log2(16)
    assert result.counts.rollouts + result.counts.inherited == 64 * result.counts.prefixes
    assert budget.spent.samples == 16 + result.counts.rollouts
    assert (result.counts.inherited == 0) or reuse
    record = result.records[0]
    assert result.counts.labels == min(true_error(record.steps) + 1, 15)
    assert sum(value is not None for value in record.values) <= 5


def test_values_by_hand(annotate, tree_policy):
    """`b` at the third of four steps: the middle is right, then the third is not."""

    def steps(done):
        return [{"a": 1.0}, {"a": 1.0}, {"a": 0.5, "b": 0.5}, {"=2": 1.0} if "b" in done else {"=1": 1.0}, {}][
            len(done)
        ]

    result, _ = annotate(tree_policy(steps), rollouts=8, max_searches=5)
    wrong, right = result.records
    assert wrong.steps == ("a", "a", "b", "=2")
    assert wrong.values[0] is None
    assert 0.0 < wrong.values[1] < 1.0
    assert wrong.values[2:] == (0.0, None)
    assert wrong.rollouts == (0, 8, 8, 0)
    assert (right.steps, right.values, right.correct) == (("a", "a", "a", "=1"), (1.0,) * 4, True)
    assert (wrong.source, wrong.policy, wrong.separator, wrong.tree) == ("omegaprm", "tree", "\n", "p0")
    # All wrong rollouts are the same solution: one enters the pool, and nothing is searched twice.
    assert (result.counts.searches, result.counts.repeats, result.counts.labels) == (1, 0, 3)


def test_the_tree_holds_every_state_and_search(annotate, tree_policy):
    result, _ = annotate(tree_policy(noise_free(8, 0.15)), max_searches=20, rollouts=8)
    tree, counts = result.tree, result.counts
    assert tree.states[0].parent is None
    assert tree.states[0].rollouts == 32
    assert len(tree.states) == counts.prefixes + 1
    assert 15 < len(tree.solutions) == counts.searches <= 20
    assert sum(state.visits for state in tree.states) == counts.searches
    assert sum(state.inherited for state in tree.states) == counts.inherited

    def path(index):
        state = tree.states[index]
        return () if state.parent is None else (*path(state.parent), *state.steps)

    paths = [path(i) for i in range(len(tree.states))]
    assert len(set(paths)) == len(paths)
    for solution in tree.solutions:
        assert solution.steps[: len(paths[solution.state])] == paths[solution.state]
    values = {paths[i]: s.right / s.rollouts for i, s in enumerate(tree.states)}
    for record in result.records:
        for end, value in enumerate(record.values[:-1], start=1):
            if value is not None and not record.correct:
                assert value == values[record.steps[:end]]
    assert tree.to_json()["schema"] == 1


def test_every_first_error_has_a_right_counterpart(annotate, tree_policy):
    policy = tree_policy(noise_free(8, 0.15))
    with_, budget = annotate(policy, max_searches=10, right_per_problem=0, counterparts=True)
    without, same = annotate(policy, max_searches=10, right_per_problem=0)
    wrong = [record for record in with_.records if not record.correct]
    right = [record for record in with_.records if record.correct]
    assert list(without.records) == wrong
    assert budget.spent.samples == same.spent.samples, "they cost nothing"
    assert len({record.steps for record in right}) == len(right)
    for record in wrong:
        before = record.steps[: true_error(record.steps)]
        assert any(other.steps[: len(before)] == before and true_error(other.steps) == -1 for other in right)


def test_what_leaves_the_pool_is_not_searched_again(annotate, tree_policy):
    """With 13 steps and few ways to go wrong, many rollouts err where another did: those are known, not searched."""

    def steps(done):
        if len(done) == 3:
            return {}
        if len(done) == 2:
            return {"=2": 1.0} if "b" in done else {"=1": 1.0}
        return {"c": 0.5, "d": 0.5} if "b" in done else {"a": 0.7, "b": 0.3}

    result, _ = annotate(tree_policy(steps), rollouts=32, searches_at_once=1)
    ends = [solution.steps[: solution.first_error + 1] for solution in result.tree.solutions]
    assert sorted(ends) == [("a", "b"), ("b",)]
    assert result.counts.repeats == 1 + 0 * result.counts.searches  # ("b", "c") or ("b", "d"), whichever came later


def test_problems_solved_always_or_never_are_left_out(annotate, tree_policy):
    for chance, word in ((1.0, "always"), (0.0, "never")):
        policy = tree_policy(lambda done, c=chance: {} if done else {"=1": c, "=2": 1.0 - c})
        result, _ = annotate(policy, filter_rollouts=5)
        assert (result.records, result.tree.dropped, len(policy.requests)) == ((), word, 1)
        assert result.counts.solved == int(chance)
        assert result.tree.states[0].right == 5 * chance


def test_limits_hold_exactly(annotate, tree_policy):
    policy = tree_policy(noise_free(13, 0.15))
    for limit in range(16, 90, 3):
        result, budget = annotate(policy, filter_rollouts=16, rollouts=8, max_rollouts=limit, reuse_rollouts=False)
        assert budget.spent.samples <= limit
        assert budget.spent.samples > limit - 4 * 8, "four searches at once ask for 8 each"
        unfinished = [solution for solution in result.tree.solutions if solution.first_error is None]
        assert len(result.records) <= len(result.tree.solutions) - len(unfinished) + 1
    for searches in (1, 2, 7):
        assert annotate(policy, max_searches=searches)[0].counts.searches == searches


def test_threshold_and_refuted_zeros(annotate, tree_policy):
    """After `b` one rollout in 32 is right by luck: any right one in 64 hides the error, two in 64 or fewer do not."""

    def steps(done):
        if len(done) == 2:
            return {}
        if not done:
            return {"a": 0.5, "b": 0.5}
        return {"=1": 1.0} if done == ("a",) else {"=1": 1 / 32, "=2": 31 / 32}

    lucky, _ = annotate(tree_policy(steps), rollouts=64, max_searches=1)
    wrong = lucky.records[0]
    assert 0.0 < wrong.values[0] < 0.1
    assert first_error(wrong.values, correct=False) == 1
    strict, _ = annotate(tree_policy(steps), rollouts=64, max_searches=1, threshold=0.1)
    assert strict.records[0].values == (wrong.values[0], None)
    assert first_error(strict.records[0].values, 0.1, correct=False) == 0


def test_urgency_by_hand():
    params = OmegaPRMParams()
    assert urgency(params, 1.0, 0, 0, 0) == 1.0
    assert urgency(params, 0.5, 500, 0, 4) == pytest.approx(0.5**0.5 * 0.9 + 0.125 * 2)
    assert urgency(params, 0.0, 1000, 3, 16) == pytest.approx(0.5 * 0.81 + 0.125 * 4 / 4)
    assert urgency(params, 0.5, 10, 0, 9) > urgency(params, 0.5, 10, 1, 9), "a state picked before is less urgent"


def test_spans_of_tokens(annotate, tree_policy):
    policy = tree_policy(noise_free(8, 0.15))
    ids = policy.format.solution_ids("a\na\nb\n=2\n")
    pieces = split_span(ids, 4, policy.format)
    assert [len(piece.token_ids) for piece in pieces] == [3, 3, 3, 1]
    assert tuple(token for piece in pieces for token in piece.token_ids) == ids


def test_in_work_together_or_alone_is_the_same(last_step_grader, tree_policy, coin_problem):
    params = OmegaPRMParams(max_searches=10)

    async def one(budget):
        policy = tree_policy(noise_free(8, 0.2))
        return await annotate_problem(coin_problem, policy, last_step_grader, params, "tree", budget)

    async def many():
        return await asyncio.gather(*(one(Budget()) for _ in range(3)))

    alone = asyncio.run(one(Budget()))
    assert alone.counts.searches == 10
    assert asyncio.run(many()) == [alone] * 3


def test_bad_parameters_are_refused():
    for name, value in (
        ("rollouts", 0),
        ("filter_rollouts", 1),
        ("alpha", 0.0),
        ("beta", 1.5),
        ("threshold", 1.0),
        ("c_puct", -1),
        ("cut_at", "words"),
        ("max_rollouts", 31),
        ("right_per_problem", -1),
    ):
        with pytest.raises(ConfigError, match=rf"annotate\.{name}: got "):
            OmegaPRMParams(**{name: value})
