"""What holds for every method: exact budgets, whole trees, the same result in any company; and the table of methods."""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prmkit.errors import ConfigError
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.records import Problem, SamplingParams
from prmkit.scoring.table import TableScorer
from prmkit.search.actions import Action
from prmkit.search.beam import BeamParams
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.methods import METHODS, make_method, make_params, needs_prm
from prmkit.search.result import TreeNode
from prmkit.search.rows import read_rows
from prmkit.search.runner import RunParams, Searcher, run_search

SHORT = {"max_tokens": 14}
LIMITS = {"sampling": SHORT, "step_tokens": 5}
VALUES = {
    "cot": {"sampling": SHORT},
    "best_of_n": {"n": 6, "sampling": SHORT},
    "beam_search": {"n": 6, "width": 2, "lookahead": 1, **LIMITS},
    "dvts": {"n": 6, "width": 3, **LIMITS},
    "rebase": {"n": 6, **LIMITS},
    "mcts": {"simulations": 6, "width": 3, "noise": 0.2, **LIMITS},
    "rstar": {"simulations": 4, **LIMITS},
    "compute_optimal": {
        "probes": 2,
        "sampling": SHORT,
        "thresholds": [0.5],
        "methods": [
            {"method": "mcts", "params": {"simulations": 4, "leaf": "prm", **LIMITS}},
            {"method": "best_of_n", "params": {"n": 3, "sampling": SHORT}},
        ],
    },
}
TREELESS = ("cot", "best_of_n")
PROBLEMS = [Problem(f"p{i}", f"q{i}", "1") for i in range(20)]


@pytest.fixture
def world(step_policy, last_step_grader):
    """A policy that also writes nothing, blank lines, endless lines and solutions without an answer."""

    def lines(question, written):
        if len(written) < 3:
            return {"1": 1.0, "2": 1.0, "3": 1.0, "": 0.3, "3" * 9: 0.15, "1$": 0.15, "$": 0.15}
        total = sum(int(line) for line in written if line.isdigit())
        return {} if len(written) > 5 else {f"={total}": 0.7, f"={total + 1}": 0.3, "2": 0.3, "=1$": 0.3}

    def score(question, steps):
        return (len(question) + sum(map(len, steps)) + 3 * len(steps)) % 10 / 10

    def search(name, problem=PROBLEMS[0], budget=None, scored=True, **values):
        params = make_params(name, VALUES[name] | values)
        method = make_method(name, params, grader=last_step_grader, discriminator=policy)
        return method(problem, policy, TableScorer(score) if scored else None, budget=budget or Budget())

    def rows(name, path):
        method = make_method(name, make_params(name, VALUES[name]), grader=last_step_grader, discriminator=policy)
        with ChunkedOutput(path, {}) as output:
            searcher = Searcher(method, policy, TableScorer(score), last_step_grader)
            run_search(PROBLEMS[:6], searcher, output, RunParams())
        return list(read_rows(path))

    policy = search.engine = step_policy(lines)
    search.rows = rows
    return search


def test_every_method_is_tried_here():
    assert VALUES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.none() | st.integers(0, 300),
    samples=st.none() | st.integers(0, 60),
    problem=st.sampled_from(PROBLEMS),
)
def test_budgets_are_exact(world, name, tokens, samples, problem):
    world.engine.requests.clear()
    budget = Budget(BudgetLimits(generated_tokens=tokens, samples=samples))
    result = asyncio.run(world(name, problem, budget))
    spent = budget.spent
    assert tokens is None or spent.generated_tokens <= tokens
    assert samples is None or spent.samples <= samples
    assert spent.samples == sum(request.n for request in world.engine.requests)
    assert {trace.finish for trace in result.traces} <= {"stop", "length"}
    finished = [trace.finish == "stop" for trace in result.traces]
    if name != "best_of_n" and name != "compute_optimal":
        assert finished == sorted(finished, reverse=True), "finished ones first"
    for trace in result.traces:
        assert trace.problem_id == problem.id
        assert trace.n_tokens <= SHORT["max_tokens"]
        if trace.finish == "stop" and trace.steps:
            assert len(trace.scores.values) == len(trace.steps)
    if spent.samples:
        assert result.traces
    if name not in (*TREELESS, "rstar", "compute_optimal"):
        assert sum(node.tokens for node in result.nodes) == spent.generated_tokens, "every token is in the tree"
    assert [TreeNode.from_json(node.to_json()) for node in result.nodes] == list(result.nodes)
    assert all(node.parent < place for place, node in enumerate(result.nodes) if place)


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_for_one_trace_gives_an_answer(digit_policy, digit_scorer, last_step_grader, name):
    """Solutions have 10 tokens, and 14 are let; every limit from there on must be enough for one."""
    search = make_method(name, make_params(name, VALUES[name]), grader=last_step_grader)
    for tokens in range(14, 90, 3):
        for problem in PROBLEMS[:4]:
            budget = Budget(BudgetLimits(generated_tokens=tokens))
            result = asyncio.run(search(problem, digit_policy, digit_scorer, budget=budget))
            assert result.traces[0].finish == "stop"
            assert len(result.traces[0].steps) == 4


@pytest.mark.parametrize("name", METHODS)
def test_a_limit_that_is_not_reached_changes_nothing(world, name):
    for problem in PROBLEMS[:5]:
        free = asyncio.run(world(name, problem))
        limited = Budget(BudgetLimits(generated_tokens=100_000, samples=10_000, engine_calls=1000))
        assert asyncio.run(world(name, problem, limited)) == free


@pytest.mark.parametrize("name", METHODS)
def test_the_same_alone_and_in_company(world, name):
    async def together(problems, limits):
        budgets = [Budget(limits) for _ in problems]
        results = await asyncio.gather(*map(lambda p, b: world(name, p, b), problems, budgets))
        return dict(zip([p.id for p in problems], results, strict=True))

    for limits in (BudgetLimits(), BudgetLimits(generated_tokens=90)):
        alone = {problem.id: asyncio.run(world(name, problem, Budget(limits))) for problem in PROBLEMS}
        for order in range(2):
            shuffled = random.Random(order).sample(PROBLEMS, len(PROBLEMS))
            assert asyncio.run(together(shuffled, limits)) == alone
    assert sum(any(trace.finish == "stop" for trace in result.traces) for result in alone.values()) >= 10
    assert len({repr(result.traces).replace(name, "") for name, result in alone.items()}) > 10, "problems differ"


class Late:
    """An engine or a scorer that answers late, and in another order every time."""

    def __init__(self, inner, seed):
        self._inner, self._random = inner, random.Random(seed)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def _wait(self):
        for _ in range(self._random.randint(0, 9)):
            await asyncio.sleep(0)

    async def generate(self, request):
        await self._wait()
        return await self._inner.generate(request)

    async def score(self, question, steps):
        await self._wait()
        return await self._inner.score(question, steps)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_replies_changes_nothing(digit_policy, digit_scorer, last_step_grader, name):
    search = make_method(name, make_params(name, VALUES[name]), grader=last_step_grader, discriminator=digit_policy)
    for tokens in (None, 60):
        budgets = [Budget(BudgetLimits(generated_tokens=tokens)) for _ in range(4)]
        results = [
            asyncio.run(search(PROBLEMS[0], Late(digit_policy, seed), Late(digit_scorer, seed), budget=budget))
            for seed, budget in enumerate(budgets)
        ]
        assert [budget.spent.generated_tokens for budget in budgets] == [budgets[0].spent.generated_tokens] * 4
        assert [[trace.steps for trace in result.traces] for result in results[1:]] == [
            [trace.steps for trace in results[0].traces]
        ] * 3
        assert [result.nodes for result in results[1:]] == [results[0].nodes] * 3


@pytest.mark.parametrize("name", [name for name in METHODS if name != "cot"])
def test_another_seed_is_another_search(world, name):
    assert asyncio.run(world(name, seed=1)) != asyncio.run(world(name))


@pytest.mark.parametrize("name", METHODS)
def test_an_engine_that_fails_for_one_problem(world, name, tmp_path):
    lines = world.engine.lines

    def fragile(question, written):
        if question == "q3" and (written or name == "cot"):
            raise ValueError("no such token")
        return lines(question, written)

    whole = world.rows(name, tmp_path / "whole.jsonl")
    world.engine.lines = fragile
    broken = world.rows(name, tmp_path / "broken.jsonl")
    assert [row.error for row in broken] == [None] * 3 + ["ValueError: no such token"] + [None] * 2
    assert broken[3].traces == ()
    assert [row for row in broken if row.error is None] == [row for row in whole if row.problem_id != "p3"]


@pytest.mark.parametrize("name", METHODS)
def test_without_a_prm(world, name):
    if needs_prm(name):
        with pytest.raises(ConfigError, match="prm: got None"):
            asyncio.run(world(name, scored=False))
    else:
        result = asyncio.run(world(name, scored=False))
        assert all(trace.scores is None for trace in result.traces)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "compute_optimal"])
@pytest.mark.parametrize("line", ["$", "7" * 30, ""])
def test_policies_that_write_nothing_or_never_end(world, name, line):
    world.engine.lines = lambda question, written: {line: 1.0}
    result = asyncio.run(world(name))
    finish = "stop" if line == "$" else "length"
    assert {(trace.steps if line == "$" else (), trace.finish) for trace in result.traces} == {((), finish)}
    assert all(trace.scores is None for trace in result.traces)


def test_parameters_from_plain_values():
    params = make_params("beam_search", {"n": 8, "width": 2, "sampling": {"temperature": 0.7}, "seed": 3})
    assert params == BeamParams(n=8, width=2, sampling=SamplingParams(temperature=0.7), seed=3)
    actions = make_params("rstar", {"actions": [{"name": "A1", "kind": "step"}]}).actions
    assert actions == (Action("A1", "step"),)
    for name, values, message in (
        ("beam", {}, r"search\.method: got 'beam'; accepted: cot \| best_of_n \| beam_search"),
        ("mcts", {"width": 2, "depth": 3}, r"search\.depth: got 3; accepted: the fields sampling"),
        ("rebase", {"sampling": {"temp": 1}}, r"search\.sampling\.temp: got 1; accepted: the fields max_tokens"),
        ("beam_search", {"n": 6, "width": 4}, r"search\.n: got 6; accepted: a multiple of search.width = 4"),
        ("beam_search", {"aggregation": "sum"}, r"search\.aggregation: got 'sum'; accepted: min \| last"),
        ("mcts", {"leaf": "value"}, r"search\.leaf: got 'value'; accepted: prm \| rollout"),
        ("mcts", {"noise": 2}, r"search\.noise: got 2"),
        ("mcts", {"c_puct": -1.0}, r"search\.c_puct: got -1.0"),
        ("mcts", {"noise_alpha": 0.0}, r"search\.noise_alpha: got 0.0"),
        ("rebase", {"balance": 0.0}, r"search\.balance: got 0.0; accepted: a number above 0"),
        ("rebase", {"aggregation": "sum"}, r"search\.aggregation"),
        ("rstar", {"mask_from": 0.9}, r"search\.mask_from: got 0.9"),
        ("rstar", {"exploration": -1.0}, r"search\.exploration: got -1.0"),
        ("rstar", {"actions": [{"name": "x", "kind": "jump"}]}, r"action\.kind: got 'jump'"),
        ("rstar", {"actions": [{"name": "x", "kind": "subquestion", "prompt": "?"}]}, r"action\.prompt: got '\?'"),
        ("rstar", {"actions": [{"name": "x", "kind": "step", "samples": 0}]}, r"action\.samples: got 0"),
        ("rstar", {"actions": []}, r"search\.actions"),
        ("compute_optimal", {"thresholds": [0.2, 0.1]}, r"search\.thresholds"),
        ("compute_optimal", {"thresholds": [0.2, 0.3]}, r"search\.methods: got '2 methods'"),
        ("compute_optimal", {"probes": 0}, r"search\.probes: got 0"),
        ("compute_optimal", {"aggregation": "sum"}, r"search\.aggregation"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_params(name, values)


def test_methods_are_made_of_their_own_parts(last_step_grader):
    with pytest.raises(ConfigError, match=r"search\.params: got 'BeamParams'; accepted: MCTSParams"):
        make_method("mcts", BeamParams())
    with pytest.raises(ConfigError, match=r"search\.grader: got None"):
        make_method("rstar", make_params("rstar", {}))
    nested = {"thresholds": [], "methods": [{"method": "rstar", "params": {}}]}
    with pytest.raises(ConfigError, match=r"search\.grader: got None"):
        make_method("compute_optimal", make_params("compute_optimal", nested))
    make_method("compute_optimal", make_params("compute_optimal", nested), grader=last_step_grader)
