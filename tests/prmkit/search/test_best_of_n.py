"""Best-of-N over a policy and a scorer whose every answer is known."""

import asyncio

import pytest

from prmkit.errors import ConfigError
from prmkit.records import SamplingParams, StepScores
from prmkit.search.best_of_n import BestOfNParams, CoTParams, best_of_n, chain_of_thought
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.sampling import sample_traces
from prmkit.seeding import derive_seed


class Scorer:
    """A step's score is its length over 10; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    async def score(self, question, steps):
        self.asked.append((question, tuple(steps)))
        return StepScores(tuple(len(step) / 10 for step in steps), encoded_tokens=sum(map(len, steps)))


def two_steps(steps):
    """First a or bb, then an answer."""
    return {(): {"a": 0.5, "bb": 0.5}, ("a",): {"=1": 0.7, "=22": 0.3}, ("bb",): {"=22": 1.0}}.get(steps, {})


def run(engine, scorer, problem, budget=None, **params):
    budget = budget or Budget()
    result = asyncio.run(best_of_n(problem, engine, scorer, BestOfNParams(**params), budget))
    assert result.nodes == (), "the traces show it all"
    return list(result.traces), budget


def test_traces_scores_and_usage(tree_policy, coin_problem):
    engine, scorer = tree_policy(two_steps, weight_version=4), Scorer()
    traces, budget = run(engine, scorer, coin_problem, n=40)
    texts = [tuple(step.text for step in trace.steps) for trace in traces]
    assert set(texts) == {("a", "=1"), ("a", "=22"), ("bb", "=22")}
    assert scorer.asked == [("q", steps) for steps in dict.fromkeys(texts)], "equal traces are scored once"
    for trace, steps in zip(traces, texts, strict=True):
        assert trace.scores.values == tuple(len(step) / 10 for step in steps)
        assert (trace.problem_id, trace.finish, trace.weight_version, trace.answer) == ("p0", "stop", 4, None)
        assert trace.n_tokens == sum(len(step) + 1 for step in steps) + 1
    spent = budget.spent
    assert (spent.samples, spent.engine_calls, spent.scorer_calls) == (40, 1, 3)
    assert spent.generated_tokens == sum(trace.n_tokens for trace in traces), "repeated samples are paid for too"
    assert spent.scored_tokens == sum(len(step) for _, steps in scorer.asked for step in steps)


def test_seeds_come_from_the_run_and_the_problem(tree_policy, coin_problem):
    engine = tree_policy(two_steps)
    first, _ = run(engine, None, coin_problem, n=20, seed=1)
    again, _ = run(engine, None, coin_problem, n=20, seed=1)
    other, _ = run(engine, None, coin_problem, n=20, seed=2)
    assert first == again != other
    assert [request.seed for request in engine.requests] == [
        derive_seed(1, "search", "p0"),
        derive_seed(1, "search", "p0"),
        derive_seed(2, "search", "p0"),
    ]


def test_cut_off_traces_are_not_scored(tree_policy, coin_problem):
    engine, scorer = tree_policy(two_steps), Scorer()
    traces, _ = run(engine, scorer, coin_problem, n=40, sampling=SamplingParams(max_tokens=6))
    assert {trace.finish for trace in traces} == {"stop", "length"}  # "a\n=1\n" and the end are 6 tokens
    traces, _ = run(engine, scorer, coin_problem, n=4, sampling=SamplingParams(max_tokens=3))
    assert all(trace.finish == "length" and trace.scores is None for trace in traces)


def test_without_a_scorer_and_without_budget(tree_policy, coin_problem):
    engine = tree_policy(two_steps)
    traces, _ = run(engine, None, coin_problem, n=3)
    assert [trace.scores for trace in traces] == [None] * 3
    assert len(run(engine, None, coin_problem, Budget(BudgetLimits(samples=2)), n=3)[0]) == 2
    assert run(engine, None, coin_problem, Budget(BudgetLimits(engine_calls=0)), n=3)[0] == []
    with pytest.raises(ConfigError, match=r"best_of_n\.n: got 0"):
        BestOfNParams(n=0)


def test_a_prefix_is_continued_from_its_own_ids(tree_policy, coin_problem):
    engine = tree_policy(two_steps)
    whole = run(engine, None, coin_problem, n=8)[0]
    trace = next(t for t in whole if t.steps[0].text == "bb")
    rest = asyncio.run(sample_traces(coin_problem, engine, 5, SamplingParams(), 0, Budget(), trace.steps[:1]))
    assert [tuple(step.text for step in t.steps) for t in rest] == [("bb", "=22")] * 5
    assert engine.format.decode(engine.requests[-1].prompt_ids) == "q\nbb\n"


def test_chain_of_thought_is_greedy_best_of_1(tree_policy, coin_problem):
    engine, scorer = tree_policy(two_steps), Scorer()
    result = asyncio.run(chain_of_thought(coin_problem, engine, scorer, CoTParams(), Budget()))
    assert [[step.text for step in trace.steps] for trace in result.traces] == [["a", "=1"]]
    assert result.traces[0].scores.values == (0.1, 0.2)
    assert (engine.requests[0].n, engine.requests[0].params.temperature) == (1, 0.0)


def test_a_token_limit_is_spent_to_the_end(tree_policy, coin_problem):
    """Traces have 6 or 8 tokens. What is left for the last one cuts it."""
    engine, scorer = tree_policy(lambda steps: two_steps(steps) if len(steps) < 2 else {}), Scorer()
    budget = Budget(BudgetLimits(generated_tokens=100))
    traces, budget = run(engine, scorer, coin_problem, budget, n=50, sampling=SamplingParams(max_tokens=10))
    assert budget.spent.generated_tokens == 100 == sum(trace.n_tokens for trace in traces)
    assert [trace.finish for trace in traces[:-1]] == ["stop"] * (len(traces) - 1)
    assert 100 / 8 <= len(traces) <= 100 / 6 + 1
    assert [len(engine.requests), engine.requests[0].n] == [budget.spent.engine_calls, 10]
