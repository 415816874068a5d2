"""Everything is counted, and limits are kept."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prmkit.errors import ConfigError, DataError
from prmkit.records import Completion, GenerationRequest, SamplingParams, StepScores, Usage
from prmkit.search.budget import Budget, BudgetLimits


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


class Lengths:
    """Sample i of a request with seed s is as long as (7 * s / 1024 + 3 * i) % 11 + 1 tokens, if it is let."""

    def __init__(self):
        self.asked = []

    async def generate(self, request):
        self.asked.append(request)
        wanted = [(7 * request.seed // 1024 + 3 * i) % 11 + 1 for i in range(request.n)]
        limit = request.params.max_tokens
        return [Completion((0,) * min(n, limit), (), "", "stop" if n <= limit else "length") for n in wanted]


def requests(*sizes):
    return [
        GenerationRequest((1,), n, seed=1024 * number, params=SamplingParams(max_tokens=longest))
        for number, (n, longest) in enumerate(sizes)
    ]


def test_waves():
    """By hand: 20 tokens, samples of at most 8. Two are paid for, both of the first request: 1 and 4 tokens. Of the 15
    left one more is, and so on until less than 8 is left and goes into a last sample, or into several if it is short.
    """
    engine, budget = Lengths(), Budget(BudgetLimits(generated_tokens=20))
    found = asyncio.run(budget.generate_all(engine, requests((2, 8), (3, 8))))
    assert [len(completion.token_ids) for completion in found[0]] == [1, 4]
    assert [(request.n, request.params.max_tokens) for request in engine.asked[:2]] == [(2, 8), (1, 8)]
    assert budget.tokens_left == 20 - sum(len(c.token_ids) for completions in found for c in completions)
    seeds = [request.seed for request in engine.asked]
    assert len(set(seeds)) == len(seeds), "a later wave has other randomness"
    assert engine.asked[0].seed == 0


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=5),
    tokens=st.none() | st.integers(0, 120),
    samples=st.none() | st.integers(0, 20),
    calls=st.none() | st.integers(0, 8),
)
def test_limits_are_exact(sizes, tokens, samples, calls):
    """No limit is passed, what is missing is missing because a limit is reached, and at most one sample is cut."""
    limits = BudgetLimits(generated_tokens=tokens, samples=samples, engine_calls=calls)
    engine, budget = Lengths(), Budget(limits)
    found = asyncio.run(budget.generate_all(engine, requests(*sizes)))
    spent = budget.spent
    every = [completion for completions in found for completion in completions]
    assert spent.generated_tokens == sum(len(completion.token_ids) for completion in every)
    assert (spent.samples, spent.engine_calls) == (len(every), len(engine.asked))
    for limit, used in ((tokens, spent.generated_tokens), (samples, spent.samples), (calls, spent.engine_calls)):
        assert limit is None or used <= limit
    complete = all(len(completions) == n for completions, (n, _) in zip(found, sizes, strict=True))
    assert complete or budget.exhausted
    if tokens is None and samples is None and calls is None:
        assert len(engine.asked) == len(sizes), "one wave"


def test_what_is_kept_back():
    """Samples of 8 tokens at most, 30 in all, 12 kept: two are paid for, and more with what they leave. What is
    less than 8 besides pays for no whole sample, and none is cut for it."""
    engine, budget = Lengths(), Budget(BudgetLimits(generated_tokens=30))
    found = asyncio.run(budget.generate_all(engine, requests((9, 8)), keep=12))
    assert budget.tokens_left >= 12
    assert budget.tokens_left - 12 < 8
    assert len(found[0]) == budget.spent.samples < 9
    assert {request.params.max_tokens for request in engine.asked} == {8}
    for limits in (BudgetLimits(samples=5), BudgetLimits(engine_calls=1)):
        budget = Budget(limits)
        few = asyncio.run(budget.generate_all(engine, requests((9, 8)), keep=12))
        assert len(few[0]) == (4 if limits.samples else 0)
        assert not budget.exhausted


def test_an_error_is_raised_when_the_wave_has_ended(tree_policy):
    engine = tree_policy(lambda steps: {} if steps else {"a=1": 1.0})

    class Fragile(tree_policy):
        async def generate(self, request):
            if request.seed == 1024:
                raise OSError("connection lost")
            await asyncio.sleep(0)
            return await super().generate(request)

    budget = Budget()
    wave = [GenerationRequest(engine.format.prompt_ids("q"), n=2, seed=1024 * i) for i in range(3)]
    with pytest.raises(OSError, match="connection lost"):
        asyncio.run(budget.generate_all(Fragile(engine.next_steps), wave))
    assert budget.spent.samples == 4, "the others are paid for"
