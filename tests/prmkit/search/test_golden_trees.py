"""Whole searches of a small problem against trees kept as JSON.

A tree changes when a method or the way its randomness is derived does. `PRMKIT_WRITE_GOLDEN=1 pytest` writes the trees
anew; read the difference before keeping it.
"""

import asyncio
import os
from pathlib import Path

import pytest

from prmkit.io import read_json, write_json
from prmkit.records import Problem
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.methods import make_method, make_params

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "beam": ("beam_search", {"n": 4, "width": 2}, None),
    "beam_merged": ("beam_search", {"n": 4, "width": 2, "merge_equal": True}, None),
    "beam_lookahead": ("beam_search", {"n": 4, "width": 4, "lookahead": 1}, None),
    "beam_cut": ("beam_search", {"n": 4, "width": 2}, 15),
    "dvts": ("dvts", {"n": 4, "width": 2}, None),
    "rebase": ("rebase", {"n": 5, "balance": 0.5}, None),
    "mcts_prm": ("mcts", {"simulations": 6, "width": 3, "leaf": "prm"}, None),
    "mcts_rollout": ("mcts", {"simulations": 4, "width": 2, "leaf": "rollout", "noise": 0.25}, None),
    "rstar": ("rstar", {"simulations": 3}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_tree(name, digit_policy, digit_scorer, last_step_grader):
    method, values, tokens = CASES[name]
    values = values | {"sampling": {"max_tokens": 12}, "step_tokens": 4}
    search = make_method(method, make_params(method, values), grader=last_step_grader)
    budget = Budget(BudgetLimits(generated_tokens=tokens))
    result = asyncio.run(search(Problem("golden", "q", "6"), digit_policy, digit_scorer, budget=budget))
    got = {
        "method": method,
        "params": values,
        "token_limit": tokens,
        "generated_tokens": budget.spent.generated_tokens,
        "traces": [[*(step.text for step in trace.steps), trace.finish] for trace in result.traces],
        "nodes": [node.to_json() for node in result.nodes],
    }
    path = GOLDEN / f"{name}.json"
    if os.environ.get("PRMKIT_WRITE_GOLDEN"):
        write_json(path, got)
    kept = read_json(path)
    numbers = ("score", "value", "prior")
    for ours, theirs in zip(got["nodes"], kept["nodes"], strict=True):
        for number in numbers:
            assert ours.pop(number, None) == pytest.approx(theirs.pop(number, None), abs=1e-12)
    assert got == kept
