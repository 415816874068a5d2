"""Monte-Carlo values against exact ones, sharing of prefixes, and taking over of rollouts."""

import asyncio

import pytest

from prmkit.annotation.estimate import AnswerJudge, Estimator
from prmkit.grading.exact import ExactGrader
from prmkit.search.budget import Budget
from prmkit.types import Problem, SamplingParams, Step

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


def steps_of(engine, *texts):
    return tuple(Step(text, tuple(engine.format.encode_piece(text + "\n"))) for text in texts)


@pytest.fixture
def make(tree_policy, last_step_grader, coin_problem):
    def build(k, reuse=True, max_tokens=512, seed=0):
        engine = tree_policy(lambda steps: TREE.get(steps, {}))
        judge, budget = AnswerJudge(coin_problem, last_step_grader), Budget()
        sampling = SamplingParams(max_tokens=max_tokens)
        return engine, budget, Estimator(coin_problem, engine, judge, k, sampling, seed, budget, reuse)

    return build


@pytest.mark.parametrize("reuse", [True, False])
def test_values_are_unbiased(make, reuse):
    """4,000 rollouts from nested prefixes: a standard error is at most .008."""
    engine, _, estimator = make(4_000, reuse)

    async def values():
        return [
            (await estimator.estimate(steps_of(engine, *p))).value for p in (("a",), ("a", "d"), ("b",), ("b", "c"))
        ]

    got = asyncio.run(values())
    assert exact(("a",), TREE) == pytest.approx(0.6)
    assert got == pytest.approx([exact(p, TREE) for p in (("a",), ("a", "d"), ("b",), ("b", "c"))], abs=0.025)


def test_rollouts_through_a_prefix_are_taken_over_and_the_rest_sampled(make):
    engine, budget, estimator = make(200)

    async def both():
        return [await estimator.estimate(steps_of(engine, *p)) for p in (("a",), ("a", "d"))]

    first, second = asyncio.run(both())
    step = tuple(engine.format.encode_piece("d\n"))
    through = [rollout for rollout in first.rollouts if rollout.token_ids[:2] == step]
    assert 70 < len(through) < 130
    assert second.inherited == len(through) == estimator.inherited
    assert [r.right for r in second.rollouts[: len(through)]] == [r.right for r in through]
    assert all(r.token_ids[2:] == s.token_ids for r, s in zip(through, second.rollouts, strict=False))
    assert len(second.rollouts) == len(first.rollouts) == 200
    assert [request.n for request in engine.requests] == [200, 200 - len(through)]
    assert budget.spent.samples == 400 - len(through)


def test_equal_prefixes_are_estimated_once_even_at_the_same_time(make):
    engine, budget, estimator = make(8)

    async def thrice():
        prefix = steps_of(engine, "a", "c")
        return await asyncio.gather(*(estimator.estimate(prefix) for _ in range(3)))

    first, second, third = asyncio.run(thrice())
    assert first is second is third
    assert (estimator.estimated, budget.spent.engine_calls) == (1, 1)


def test_values_do_not_depend_on_what_else_is_asked(make):
    engine, _, alone = make(8, reuse=False)
    value = asyncio.run(alone.estimate(steps_of(engine, "a", "c")))
    _, _, other = make(8, reuse=False)

    async def many():
        return await asyncio.gather(*(other.estimate(steps_of(engine, *p)) for p in (("b",), ("a",), ("a", "c"))))

    assert asyncio.run(many())[2] == value
    _, _, reseeded = make(8, reuse=False, seed=1)
    assert asyncio.run(reseeded.estimate(steps_of(engine, "a", "c"))) != value


def test_cut_off_rollouts_are_wrong(make):
    engine, _, estimator = make(30, max_tokens=3)  # "=1\n" and the end are 4
    estimate = asyncio.run(estimator.estimate(steps_of(engine, "a", "c")))
    assert estimate.value == 0.0
    assert len(estimate.rollouts) == 30


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
