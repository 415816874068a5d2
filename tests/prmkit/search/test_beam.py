"""Beam search, DVTS and REBASE on policies whose best steps are known."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prmkit.records import Problem, SamplingParams
from prmkit.scoring.table import TableScorer
from prmkit.search.beam import BeamParams, beam_search
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.dvts import dvts
from prmkit.search.rebase import RebaseParams, rebase, share_out

PROBLEM = Problem("p", "q", "1")


def lines_of(trace):
    return "".join(step.text for step in trace.steps)


def run(method, engine, scorer, params, budget=None):
    budget = budget or Budget()
    return asyncio.run(method(PROBLEM, engine, scorer, params, budget)), budget


def children(result, place):
    return [node for node in result.nodes if node.parent == place]


def test_beam_keeps_the_best(digit_policy, digit_scorer):
    """Values of first digits are 1/4 to 3/4 and two are kept; an exhaustive first round holds all three."""
    result, budget = run(beam_search, digit_policy, digit_scorer, BeamParams(n=16, width=8, merge_equal=True))
    assert {node.text: node.value for node in children(result, 0)} == pytest.approx({"1": 0.25, "2": 0.5, "3": 0.75})
    widened = [place for place, node in enumerate(result.nodes) if children(result, place)]
    by_depth = {}
    for place in widened[1:]:
        by_depth.setdefault(result.nodes[place].depth, []).append(result.nodes[place])
    assert {depth: len(nodes) for depth, nodes in by_depth.items()} == {1: 2, 2: 2, 3: 2, 4: 2}
    for depth, nodes in by_depth.items():
        candidates = [node for node in result.nodes if node.depth == depth and node.finish is None]
        assert sorted(node.value for node in nodes) == sorted(node.value for node in candidates)[-2:]
    assert len(result.traces) == 16
    assert {trace.finish for trace in result.traces} == {"stop"}
    assert {lines_of(trace) for trace in result.traces} == {"333=9", "233=8"}
    assert budget.spent.samples == 5 * 16
    assert budget.spent.generated_tokens == sum(node.tokens for node in result.nodes)
    assert {node.text for node in result.nodes if node.kept} == {"", "3", "2", "=9", "=8"}


def test_equal_candidates_may_keep_their_places(step_policy):
    """`b` is seldom written and scored a little too high. Merged, it gets as many samples as `a`; else as many places
    as it was drawn, and `a` the rest of the 16."""
    engine = step_policy(lambda _, lines: {"a": 0.9, "b": 0.1} if not lines else {f"{lines[0]}$": 1.0})
    scorer = TableScorer(lambda _, steps: 0.9 if steps[0] == "a" else 0.95)
    merged, _ = run(beam_search, engine, scorer, BeamParams(n=64, width=4, merge_equal=True))
    assert Counter(map(lines_of, merged.traces)) == {"aa": 4, "bb": 4}
    kept, budget = run(beam_search, engine, scorer, BeamParams(n=64, width=4))
    (drawn,) = (node.count for node in children(kept, 0) if node.text == "b")
    assert 0 < drawn < 16
    assert Counter(map(lines_of, kept.traces)) == {"aa": 64 - 4 * drawn, "bb": 4 * drawn}
    assert budget.spent.samples == 128


@pytest.mark.parametrize("most", [None, 2, 1])
def test_a_beam_keeps_so_many_children_at_most(step_policy, most):
    """Of four beams one is `a`, and the steps behind it rank above all that are behind the others."""
    lines = {(): {"a": 0.12, "b": 0.88}, ("a",): {"c": 1.0}, ("b",): {"d": 1.0}}
    engine = step_policy(lambda _, written: lines.get(written, {"e$": 1.0}))
    scorer = TableScorer({"a": 0.55, "b": 0.5, "c": 0.9, "d": 0.6, "e": 1.0})
    result, _ = run(beam_search, engine, scorer, BeamParams(n=16, width=4, max_children=most))
    (gone_on,) = (node.count for node in result.nodes if node.text == "c")
    assert gone_on == 4
    kept = most or 4
    assert Counter(map(lines_of, result.traces)) == Counter({"ace": 4 * kept, "bde": 16 - 4 * kept})


TRAP = {"a": 0.9, "b": 0.6, "c": 0.1, "d": 0.8}


def trap(question, written):
    """a, the better first step, has only bad ones behind it."""
    return {(): {"a": 1.0, "b": 1.0}, ("a",): {"c$": 1.0}, ("b",): {"d$": 1.0}}[written]


def test_lookahead_sees_the_trap(step_policy):
    scorer = TableScorer(TRAP)
    engine = step_policy(trap)
    params = {"n": 8, "width": 8, "sampling": SamplingParams(temperature=1.0)}
    blind, _ = run(beam_search, engine, scorer, BeamParams(**params))
    seeing, budget = run(beam_search, engine, scorer, BeamParams(lookahead=1, **params))
    assert {lines_of(trace) for trace in blind.traces} == {"ac"}
    assert {lines_of(trace) for trace in seeing.traces} == {"bd"}
    ahead = [node for node in seeing.nodes if node.action == "lookahead"]
    assert {(node.text, node.score) for node in ahead} == {("c", 0.1), ("d", 0.8)}
    assert [request.params.temperature for request in engine.requests[2:5]] == [1.0, 0.0, 0.0]
    assert sum(node.tokens for node in seeing.nodes) == budget.spent.generated_tokens, "lookahead is paid for"


@pytest.mark.parametrize(("how", "best"), [("last", "bd"), ("min", "bd"), ("mean", "ac"), ("product", "ac")])
def test_aggregation_ranks(step_policy, how, best):
    """a = .9, then c = .45; b = .5, then d = .6: by last .45 < .6, by min .45 < .5, by mean .675 > .55, by product
    .405 > .3."""
    lines = {(): {"a": 1.0, "b": 1.0}, ("a",): {"c": 1.0}, ("b",): {"d": 1.0}, ("a", "c"): {}, ("b", "d"): {}}
    engine = step_policy(lambda question, written: lines[written])
    scorer = TableScorer({"a": 0.9, "b": 0.5, "c": 0.45, "d": 0.6})
    result, _ = run(beam_search, engine, scorer, BeamParams(n=8, width=4, aggregation=how, merge_equal=True))
    ends = {node.text: node.value for node in result.nodes if node.text in ("c", "d")}
    assert max(ends, key=ends.get) == best[-1]
    expected = {"last": (0.45, 0.6), "min": (0.45, 0.5), "mean": (0.675, 0.55), "product": (0.405, 0.3)}[how]
    assert (ends["c"], ends["d"]) == pytest.approx(expected)


def test_dvts_trees_are_independent(digit_policy, digit_scorer):
    """Trees of one candidate a round have nothing to choose: each goes on from what it drew, however bad."""
    result, budget = run(dvts, digit_policy, digit_scorer, BeamParams(n=40, width=1))
    assert budget.spent.samples == 5 * 40
    assert len(result.traces) == 40
    for place, node in enumerate(result.nodes[1:], start=1):
        if node.finish is None:
            assert sum(child.count for child in children(result, place)) == node.count
    assert {trace.steps[0].text for trace in result.traces} == {"1", "2", "3"}


def test_dvts_goes_on_from_the_best_of_each_tree(digit_policy, digit_scorer):
    """A beam goes on from the best of all, so from 3 alone; some tree draws no 3 and goes on from less."""
    params = BeamParams(n=24, width=2)
    trees, _ = run(dvts, digit_policy, digit_scorer, params)
    gone_on = {node.text: sum(c.count for c in children(trees, trees.nodes.index(node))) for node in children(trees, 0)}
    assert sum(gone_on.values()) == 24
    assert gone_on["3"] > gone_on["2"] > 0, "3 is the best of two draws five times in nine, 2 three times"
    assert len(trees.traces) == 24


def test_dvts_of_one_tree_is_a_beam_of_one(digit_policy, digit_scorer):
    """Both go on from the best of 4."""
    for how in ("last", "min"):
        params = BeamParams(n=4, width=4, aggregation=how)
        assert (
            run(dvts, digit_policy, digit_scorer, params)[0].traces
            == run(beam_search, digit_policy, digit_scorer, params)[0].traces
        )


def test_a_budget_cuts_open_beams(digit_policy, digit_scorer):
    """Twenty samples: two rounds and a half of eight, less the one that completes a solution."""
    for method in (beam_search, dvts):
        budget = Budget(BudgetLimits(samples=20))
        result, _ = run(method, digit_policy, digit_scorer, BeamParams(n=8, width=4), budget)
        assert [trace.finish for trace in result.traces] == ["stop"] + ["length"] * (len(result.traces) - 1)
        assert all(trace.scores is not None and len(trace.steps) >= 2 for trace in result.traces[1:])
        assert budget.spent.samples == 20
        (spare,) = [node for node in result.nodes if node.action == "rollout" and node.finish]
        assert spare.kept


@pytest.mark.parametrize(
    ("total", "counts", "values", "balance", "shares"),
    [
        (8, [1, 1], [0.5, 0.5], 0.1, [4, 4]),
        (7, [1, 1], [0.5, 0.5], 0.1, [4, 3]),
        # exp(0), exp(-1): 10 / (1 + 1/e) = 7.31
        (10, [1, 1], [0.9, 0.8], 0.1, [7, 3]),
        # twice as often counts twice: 2 / (2 + 1/e) * 10 = 8.45
        (10, [2, 1], [0.9, 0.8], 0.1, [8, 2]),
        # exp(-10) of 16: nothing
        (16, [1, 3, 1], [1.0, 0.0, 1.0], 0.1, [8, 0, 8]),
        (3, [1, 1, 1, 1], [0.5] * 4, 1.0, [1, 1, 1, 0]),
        (0, [1], [0.5], 1.0, [0]),
        (5, [], [], 1.0, []),
    ],
)
def test_shares_by_hand(total, counts, values, balance, shares):
    assert share_out(total, counts, values, balance) == shares


@given(
    st.integers(0, 300),
    st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=20),
    st.floats(0.01, 10),
)
def test_shares_add_up(total, nodes, balance):
    counts, values = map(list, zip(*nodes, strict=True))
    shares = share_out(total, counts, values, balance)
    assert sum(shares) == total
    assert min(shares) >= 0


def test_rebase_shares_by_value_and_takes_finished_ones_away(step_policy):
    """Of 12 first steps some end at once. The rest go on: x has .9, y .8, one e-th of the weight at balance .1."""
    lines = {(): {"x": 1.0, "y": 1.0, "z$": 1.0}, ("x",): {"f$": 1.0}, ("y",): {"f$": 1.0}}
    engine = step_policy(lambda question, written: lines[written])
    scorer = TableScorer({"x": 0.9, "y": 0.8, "z": 0.5, "f": 0.7})
    result, budget = run(rebase, engine, scorer, RebaseParams(n=12, balance=0.1))
    counts = {node.text: node.count for node in children(result, 0)}
    done = counts["z"]
    assert done > 0
    expected = share_out(12 - done, [counts["x"], counts["y"]], [0.9, 0.8], 0.1)
    behind = {
        node.text: sum(child.count for child in children(result, place))
        for place, node in enumerate(result.nodes)
        if node.text in ("x", "y")
    }
    assert [behind["x"], behind["y"]] == expected
    assert Counter(map(lines_of, result.traces)) == {"z": done, "xf": expected[0], "yf": expected[1]}
    assert len(result.traces) == 12
    assert budget.spent.samples == 24 - done
