"""Monte-Carlo values against exact ones, sharing of prefixes, and taking over of rollouts."""

import asyncio

import pytest

from prmkit.annotation.estimate import AnswerJudge, Estimator, Sampling
from prmkit.grading.exact import ExactGrader
from prmkit.records import Problem, SamplingParams
from prmkit.search.budget import Budget

TREE = {
    (): {"a": 0.8, "b": 0.2},
    ("a",): {"c": 0.5, "d": 0.5},
    ("b",): {"c": 0.1, "=2": 0.9},
    ("a", "c"): {"=1": 0.9, "=2": 0.1},
    ("a", "d"): {"=1": 0.3, "=2": 0.6, "?": 0.1},
    ("b", "c"): {"=1": 1.0},
}


def exact(prefix, tree):
    """Probability of the answer 1 from a prefix, by recursion."""
    if prefix not in tree:
        return float(prefix[-1] == "=1")
    return sum(p * exact((*prefix, step), tree) for step, p in tree[prefix].items())


def ids(engine, *texts):
    return tuple(engine.format.encode_piece("".join(text + "\n" for text in texts)))


@pytest.fixture
def make(tree_policy, last_step_grader, coin_problem):
    def build(k, reuse=True, max_tokens=512, seed=0, limit=None):
        engine = tree_policy(lambda steps: TREE.get(steps, {}))
        judge, budget = AnswerJudge(coin_problem, last_step_grader), Budget()
        sampling = Sampling(k, SamplingParams(max_tokens=max_tokens), seed, reuse, limit)
        return engine, budget, Estimator(coin_problem, engine, judge, sampling, budget)

    return build


def rounds(engine, estimator, *prefixes):
    """Estimates of prefixes, one a round."""

    async def run():
        return [(await estimator.estimate([ids(engine, *prefix)]))[0] for prefix in prefixes]

    return asyncio.run(run())


@pytest.mark.parametrize("reuse", [True, False])
def test_values_are_unbiased(make, reuse):
    """4,000 rollouts from nested prefixes: a standard error is at most .008."""
    engine, _, estimator = make(4_000, reuse)
    prefixes = (("a",), ("a", "d"), ("b",), ("b", "c"))
    got = [estimate.value for estimate in rounds(engine, estimator, *prefixes)]
    assert exact(("a",), TREE) == pytest.approx(0.6)
    assert got == pytest.approx([exact(p, TREE) for p in prefixes], abs=0.025)


def test_rollouts_through_a_prefix_are_taken_over_and_the_rest_sampled(make):
    engine, budget, estimator = make(200)
    first, second = rounds(engine, estimator, ("a",), ("a", "d"))
    through = [rollout for rollout in first.rollouts if rollout.token_ids[:4] == ids(engine, "a", "d")]
    assert 70 < len(through) < 130
    assert second.inherited == len(through) == estimator.inherited
    assert list(second.rollouts[: len(through)]) == through
    assert {rollout.start for rollout in second.rollouts[len(through) :]} == {4}
    assert len(second.rollouts) == len(first.rollouts) == 200
    assert [request.n for request in engine.requests] == [200, 200 - len(through)]
    assert budget.spent.samples == estimator.sampled == 400 - len(through)


def test_first_rollouts_serve_every_prefix_but_those_they_are_picked_to_judge(make):
    engine, _, estimator = make(8)
    params = SamplingParams(max_tokens=512)

    async def run():
        root = await estimator.sample_root(200, params)
        picked = next(r for r in root if r.token_ids[:4] == ids(engine, "a", "c"))
        return root, picked, await estimator.estimate([ids(engine, "a", "c")], [picked])

    root, picked, (estimate,) = asyncio.run(run())
    others = [r for r in root if r.token_ids[:4] == picked.token_ids[:4] and r is not picked]
    assert estimate.rollouts == tuple(others[:8])
    assert (estimate.inherited, estimator.sampled) == (8, 200)
    other_engine, _, elsewhere = make(8)
    asyncio.run(elsewhere.sample_root(200, SamplingParams(max_tokens=512, temperature=0.5)))
    (fresh,) = rounds(other_engine, elsewhere, ("a", "c"))
    assert fresh.inherited == 0, "sampled otherwise, they estimate something else"


def test_equal_prefixes_are_estimated_once_even_in_one_round(make):
    engine, budget, estimator = make(8)
    prefix = ids(engine, "a", "c")
    first, second = asyncio.run(estimator.estimate([prefix, prefix]))
    (third,) = asyncio.run(estimator.estimate([prefix]))
    assert first is second is third
    assert (estimator.estimated, budget.spent.engine_calls) == (1, 1)


def test_values_do_not_depend_on_what_else_is_asked(make):
    engine, _, alone = make(8, reuse=False)
    (value,) = rounds(engine, alone, ("a", "c"))
    _, _, other = make(8, reuse=False)
    assert asyncio.run(other.estimate([ids(engine, *p) for p in (("b",), ("a",), ("a", "c"))]))[2] == value
    _, _, reseeded = make(8, reuse=False, seed=1)
    assert rounds(engine, reseeded, ("a", "c")) != [value]


def test_the_limit_on_rollouts_holds_exactly(make):
    engine, budget, estimator = make(8, reuse=False, limit=20)
    got = rounds(engine, estimator, ("a",), ("b",), ("a", "c"), ("a",))
    assert [estimate is not None for estimate in got] == [True, True, False, True]
    assert budget.spent.samples == estimator.sampled == 16


def test_cut_off_rollouts_are_wrong(make):
    engine, _, estimator = make(30, max_tokens=3)  # "=1\n" and the end are 4
    (estimate,) = rounds(engine, estimator, ("a", "c"))
    assert estimate.value == 0.0
    assert len(estimate.rollouts) == 30
    assert not any(rollout.finished for rollout in estimate.rollouts)


def test_distinct_answers_are_graded_once():
    class Counting(ExactGrader):
        asked = ()

        def grade(self, pairs):
            self.asked += tuple(pairs)
            return super().grade(pairs)

    grader = Counting(lambda text: text.partition("=")[2] or None)
    judge = AnswerJudge(Problem("p", "q", "1"), grader)
    assert judge.right(["x=1", "y=1", "z=2", "none"]) == [True, True, False, False]
    assert judge.right(["x=2", "x=3", "x=1"]) == [False, False, True]
    assert grader.asked == (("1", "1"), ("2", "1"), ("3", "1"))
