"""Everything is counted, and a limit stops the next call."""

import asyncio

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.types import GenerationRequest, StepScores, Usage


class Scorer:
    def __init__(self, *answers):
        self.answers = list(answers)

    async def score(self, question, steps):
        return self.answers.pop(0)


def test_counts_every_call(tree_policy):
    engine = tree_policy(lambda steps: {} if steps else {"a=1": 1.0})
    budget = Budget(clock=iter([10.0, 12.5]).__next__)
    request = GenerationRequest(engine.format.prompt_ids("q"), n=3)
    asyncio.run(budget.generate(engine, request))
    asyncio.run(budget.generate(engine, request))
    asyncio.run(budget.score(Scorer(StepScores((0.5,), encoded_tokens=7)), "q", ("a=1",)))
    # "a=1\n" and the end of sequence are 5 tokens
    assert budget.spent == Usage(30, 7, engine_calls=2, scorer_calls=1, samples=6, seconds=2.5)


@pytest.mark.parametrize(
    "limits", [{"generated_tokens": 15}, {"engine_calls": 1}, {"samples": 3}, {"seconds": 0.0}, {"scored_tokens": 0}]
)
def test_a_limit_reached_exhausts(tree_policy, limits):
    engine = tree_policy(lambda steps: {} if steps else {"a=1": 1.0})
    budget = Budget(BudgetLimits(**limits))
    asyncio.run(budget.generate(engine, GenerationRequest(engine.format.prompt_ids("q"), n=3)))
    assert budget.exhausted
    assert budget.samples_left(5) == 0


def test_limit_on_samples_is_exact(tree_policy):
    engine = tree_policy(lambda steps: {} if steps else {"a=1": 1.0})
    budget = Budget(BudgetLimits(samples=5))
    assert budget.samples_left(4) == 4
    asyncio.run(budget.generate(engine, GenerationRequest(engine.format.prompt_ids("q"), n=4)))
    assert budget.samples_left(4) == 1
    assert not Budget().exhausted


def test_replies_that_do_not_honour_the_request_are_refused(tree_policy):
    engine = tree_policy(lambda steps: {})

    class Stingy(tree_policy):
        async def generate(self, request):
            return (await super().generate(request))[:-1]

    request, stingy = GenerationRequest(engine.format.prompt_ids("q"), n=2), Stingy(engine.next_steps)
    with pytest.raises(DataError, match="asked for 2 samples and gave 1"):
        asyncio.run(Budget().generate(stingy, request))
    for values in ((0.5,), (0.5, 1.5), (0.5, float("nan"))):
        with pytest.raises(DataError, match="for 2 steps"):
            asyncio.run(Budget().score(Scorer(StepScores(values)), "q", ("a", "b")))


def test_negative_limits_are_refused():
    with pytest.raises(ConfigError, match=r"budget\.samples: got -1"):
        BudgetLimits(samples=-1)
