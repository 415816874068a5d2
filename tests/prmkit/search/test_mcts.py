"""MCTS against a plain reference on trees with known values, and where it differs from greedy search."""

import asyncio
import math
import random

import pytest

from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import DataError
from prmkit.records import Completion, Problem, SamplingParams
from prmkit.scoring.table import TableScorer
from prmkit.search.beam import BeamParams, beam_search
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.mcts import MCTSParams, mcts

PROBLEM = Problem("p", "q", "1")
DEPTH = 3
DRAWS = "aaabbc"  # what six samples write behind every node: priors 1/2, 1/3, 1/6


class Bandit:
    """Solutions of DEPTH letters; sample i behind any prefix writes DRAWS[i], and a rollout goes on with the same.

    The value of a prefix is known for every one: `leaves` for whole solutions, for others the mean of its leaves.
    """

    def __init__(self, seed, bound_format):
        rng = random.Random(seed)
        self.leaves = {a + b + c: rng.randint(0, 16) / 16 for a in "abc" for b in "abc" for c in "abc"}
        self.engine = ScriptedEngine(bound_format, self.script)
        self.scorer = TableScorer(lambda question, steps: self.value("".join(steps)))

    def script(self, prefix, index, seed):
        missing = DEPTH - prefix.count("\n") + 1
        return "\n".join(DRAWS[index] * missing)

    def value(self, prefix):
        below = [value for leaf, value in self.leaves.items() if leaf.startswith(prefix)]
        return sum(below) / len(below)

    def search(self, **params):
        params = MCTSParams(width=len(DRAWS), **params)
        return asyncio.run(mcts(PROBLEM, self.engine, self.scorer, params, Budget()))


def reference(bandit, simulations, c_puct, leaf):
    """PUCT with nothing stored but the history: (node evaluated, value) of every simulation; all else is recounted."""
    prior = {"a": 1 / 2, "b": 1 / 3, "c": 1 / 6}
    history, opened, initial = [], set(), {}

    def visits(node):
        return sum(end.startswith(node) for end, _ in history)

    def q(node):
        values = [value for end, value in history if end.startswith(node)]
        return sum(values) / len(values) if values else initial[node]

    def best_branch(node):
        def rank(branch):
            return q(branch) + c_puct * prior[branch[-1]] * math.sqrt(max(1, visits(node))) / (1 + visits(branch))

        return max((node + letter for letter in "abc"), key=rank)

    for _ in range(simulations):
        node = ""
        while node in opened:
            node = best_branch(node)
        if len(node) < DEPTH:
            opened.add(node)
            for letter in "abc":
                at_root = 0.0 if not history else None
                own = bandit.value(node + letter) if leaf == "prm" else at_root
                initial[node + letter] = q(node) if own is None else own
            node = best_branch(node)
        rolled = node if leaf == "prm" else node + "a" * (DEPTH - len(node))
        history.append((node, bandit.value(rolled)))
    nodes = {""} | {end[:n] for end, _ in history for n in range(1, len(end) + 1)}
    return {node: visits(node) for node in nodes}


def visit_counts(result):
    names, counts = {0: ""}, {}
    for place, node in enumerate(result.nodes):
        if place:
            names[place] = names[node.parent] + node.text
        if node.visits:
            counts[names[place]] = node.visits
    return counts


@pytest.mark.parametrize("leaf", ["prm", "rollout"])
@pytest.mark.parametrize("seed", range(12))
def test_visits_are_those_of_the_reference(step_policy, seed, leaf):
    bandit = Bandit(seed, step_policy(None).format)
    for simulations, c_puct in ((1, 1.0), (2, 0.1), (10, 0.5), (60, 1.0), (60, 4.0)):
        result = bandit.search(simulations=simulations, c_puct=c_puct, leaf=leaf)
        assert visit_counts(result) == reference(bandit, simulations, c_puct, leaf)
        assert result.nodes[0].visits == simulations, "every simulation backs up to the root"


def test_the_best_leaf_is_found_as_often_as_by_the_reference(step_policy):
    found = expected = 0
    for seed in range(20):
        bandit = Bandit(seed, step_policy(None).format)
        best = max(bandit.leaves.values())
        counts = visit_counts(bandit.search(simulations=80, leaf="prm"))
        twin = reference(bandit, 80, 1.0, "prm")
        found += bandit.leaves[max(bandit.leaves, key=lambda leaf: counts.get(leaf, 0))] == best
        expected += bandit.leaves[max(bandit.leaves, key=lambda leaf: twin.get(leaf, 0))] == best
    assert found == expected >= 15


def test_values_are_means_of_what_was_backed_up(step_policy):
    """By hand, three simulations: the root's branches a, b, c are worth .5, .75, .25 with priors 1/2, 1/3, 1/6, c = .6.
    1: a .5 + .3 = .8, b .75 + .2 = .95, c .35: b, value .75. 2: N(root) = 1; a .8, b .75 + .1 = .85, c .35: b again,
    expanded; its branches are worth .9, .7, .65: ba .9 + .3. Value .9. 3: N = 2; b = (.75 + .9) / 2 = .825 + .6 *
    sqrt(2) / 3 / 3 = .919; a .5 + .3 * sqrt(2) = .924: a, expanded."""
    values = {"a": 0.5, "b": 0.75, "c": 0.25, "ba": 0.9, "bb": 0.7, "bc": 0.65, "aa": 0.5, "ab": 0.4, "ac": 0.4}
    bandit = Bandit(0, step_policy(None).format)
    bandit.value = lambda prefix: values.get(prefix, 0.0)
    by_name = {}
    for n in (1, 2, 3):
        result = bandit.search(simulations=n, c_puct=0.6, leaf="prm", sampling=SamplingParams(max_tokens=40))
        by_name[n] = visit_counts(type(result)(result.traces, tuple(x for x in result.nodes if x.action == "step")))
    assert by_name == {1: {"": 1, "b": 1}, 2: {"": 2, "b": 2, "ba": 1}, 3: {"": 3, "b": 2, "ba": 1, "a": 1, "aa": 1}}


def test_one_simulation_is_not_greedy_beam_search(step_policy):
    """The prior decides against the score where it outweighs it; greedy search knows the score alone."""
    bandit = Bandit(0, step_policy(None).format)
    bandit.value = lambda prefix: {"a": 0.5, "b": 0.6, "c": 0.2}[prefix[0]]
    for c_puct, expected in ((0.0, "b"), (1.0, "a")):
        result = bandit.search(simulations=1, c_puct=c_puct, leaf="prm")
        assert visit_counts(result) == {"": 1, expected: 1}
        assert result.traces[0].steps[0].text == expected, "completed behind the most visited leaf"
        assert result.traces[0].finish == "stop"
    params = BeamParams(n=6, width=6)
    beam = asyncio.run(beam_search(PROBLEM, bandit.engine, bandit.scorer, params, Budget()))
    assert {trace.steps[0].text for trace in beam.traces} == {"b"}


def test_the_root_is_expanded_once_and_paid_for(step_policy):
    bandit = Bandit(1, step_policy(None).format)
    asked = []

    class Watched(ScriptedEngine):
        async def generate(self, request):
            asked.append(request)
            return await super().generate(request)

    engine, budget = Watched(step_policy(None).format, bandit.script), Budget()
    params = MCTSParams(width=6, simulations=10, leaf="prm")
    result = asyncio.run(mcts(PROBLEM, engine, bandit.scorer, params, budget))
    prompt = engine.format.prompt_ids("q")
    assert [request.n for request in asked if request.prompt_ids == prompt] == [6]
    assert len({request.prompt_ids for request in asked}) == len(asked), "nothing is expanded twice"
    assert budget.spent.generated_tokens == engine.stats.generated_tokens == sum(node.tokens for node in result.nodes)


def test_priors(step_policy):
    """By hand: aaabbc by frequency 3/6, 2/6, 1/6; by probability in the ratio of exp of the sums of log-probabilities,
    -2 for a two-token step and -3 for one of three."""
    engine = step_policy(lambda question, written: {"a": 1.0, "bb": 1.0} if not written else {})
    scorer = TableScorer({}, default=0.5)
    result = asyncio.run(
        mcts(PROBLEM, engine, scorer, MCTSParams(simulations=1, width=20, prior="probability"), Budget())
    )
    priors = {node.text: node.prior for node in result.nodes if node.depth == 1}
    assert priors["a"] / priors["bb"] == pytest.approx(math.e)
    assert sum(priors.values()) == pytest.approx(1.0)
    bandit = Bandit(0, engine.format)
    assert [node.prior for node in bandit.search(simulations=1).nodes if node.depth == 1] == [
        pytest.approx(p) for p in (1 / 2, 1 / 3, 1 / 6)
    ]

    class Silent(type(engine)):
        def _sample(self, request, i):
            whole = super()._sample(request, i)
            return Completion(whole.token_ids, (), whole.text, whole.finish_reason, whole.stop_reason)

    with pytest.raises(DataError, match="needs log-probabilities"):
        asyncio.run(
            mcts(PROBLEM, Silent(engine.lines), scorer, MCTSParams(simulations=1, prior="probability"), Budget())
        )


def test_noise_at_the_root_only(step_policy):
    bandit = Bandit(0, step_policy(None).format)
    quiet, noisy, other = (
        bandit.search(simulations=30, noise=noise, seed=seed) for noise, seed in ((0, 0), (0.5, 0), (0.5, 1))
    )
    priors = [[node.prior for node in result.nodes if node.parent == 0] for result in (quiet, noisy, other)]
    assert priors[0] != priors[1] != priors[2]
    for mixed, plain in zip(priors[1], priors[0], strict=True):
        assert mixed >= plain / 2 - 1e-12
    assert all(sum(prior for prior in row if prior) == pytest.approx(1.0) for row in priors)
    assert {node.prior for node in noisy.nodes if node.depth > 1 and node.prior} == {1 / 2, 1 / 3, 1 / 6}


def test_the_last_tokens_are_kept_for_an_answer(digit_policy, digit_scorer):
    """A solution has 10 tokens at most; 20 simulations on PRM values alone would spend 100 without finishing one."""
    params = MCTSParams(
        simulations=20, width=9, leaf="prm", c_puct=5.0, sampling=SamplingParams(max_tokens=10), step_tokens=5
    )
    budget = Budget(BudgetLimits(generated_tokens=100))
    result = asyncio.run(mcts(PROBLEM, digit_policy, digit_scorer, params, budget))
    assert result.traces[0].finish == "stop"
    assert budget.spent.generated_tokens <= 100
