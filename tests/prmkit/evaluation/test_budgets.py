"""What a budget means to each method, and that none of them spends more."""

import asyncio
from dataclasses import replace

import pytest

from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import ConfigError
from prmkit.evaluation.budgets import BudgetPlan, make_searchers, plan_searches, share_sampling
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS
from prmkit.grading.exact import ExactGrader
from prmkit.records import Problem, SamplingParams
from prmkit.scoring.table import TableScorer
from prmkit.search.budget import BudgetLimits
from prmkit.search.methods import METHODS, make_params, resize
from prmkit.search.runner import RunParams, solve
from prmkit.tasks.vocabulary import character_tokenizer

SAMPLING = SamplingParams(max_tokens=20, temperature=0.7)
GRADER = ExactGrader(lambda text: text.rpartition("=")[2].strip() or None if "=" in text else None)


def params(name, **values):
    return share_sampling(make_params(name, values), SAMPLING, 3)


def sizes(name, n, *, tokens=None, **values):
    got = resize(name, params(name, **values), n, tokens)
    return {field: getattr(got, field) for field in ("n", "width", "simulations", "probes") if hasattr(got, field)}


def test_sizes_by_hand():
    assert sizes("best_of_n", 16) == {"n": 16}
    assert sizes("rebase", 5) == {"n": 5}
    assert sizes("beam_search", 16) == {"n": 16, "width": 4}
    assert sizes("beam_search", 6) == {"n": 4, "width": 4}, "a multiple of the width"
    assert sizes("dvts", 2) == {"n": 2, "width": 2}, "at most n wide"
    assert sizes("mcts", 7) == {"width": 4, "simulations": 7}
    assert sizes("best_of_n", 16, tokens=320) == {"n": 320}, "until they are spent"
    assert sizes("rstar", 7, tokens=140) == {"simulations": 28}
    assert sizes("beam_search", 16, tokens=320) == {"n": 16, "width": 4}
    assert resize("cot", params("cot"), 16) == params("cot")
    assert {name for name, method in METHODS.items() if method.size is None} == set(), "built in, each can be sized"


def test_a_method_without_a_size_rule_is_refused_at_budgets(monkeypatch):
    entry = replace(METHODS["best_of_n"], size=None)
    monkeypatch.setitem(METHODS._entries, "best_of_n", replace(METHODS._entries["best_of_n"], part=entry))
    chosen = {"best_of_n": params("best_of_n")}
    with pytest.raises(ConfigError, match=r"budgets: got 4; accepted: null with best_of_n.* register it with size="):
        plan_searches(chosen, BudgetPlan((4,)))
    among = {"compute_optimal": params("compute_optimal")}
    with pytest.raises(ConfigError, match="null with best_of_n"):
        plan_searches(among, BudgetPlan((4,)))
    assert plan_searches(chosen, BudgetPlan())[0].params == chosen["best_of_n"], "without budgets it has its own size"


def test_compute_optimal_pays_for_its_probes():
    for n, probes, rest in ((1, 1, 1), (4, 1, 3), (16, 4, 12), (64, 4, 60)):
        got = resize("compute_optimal", params("compute_optimal"), n)
        assert got.probes == probes
        beam, independent = (make_params(choice.method, choice.params) for choice in got.methods)
        assert (independent.n, beam.n) == (rest, rest - rest % min(4, rest))
        assert beam.sampling == independent.sampling == SAMPLING
        assert beam.seed == 3
    own = params("compute_optimal", methods=[{"method": "cot", "params": {"sampling": {"temperature": 0.0}}}] * 2)
    assert make_params("cot", own.methods[0].params).sampling.temperature == 0.0, "a setting of its own stays"


def test_plan():
    methods = {"best_of_n": params("best_of_n"), "cot": params("cot"), "mcts": params("mcts")}
    planned = plan_searches(methods, BudgetPlan((16, 4)))
    assert [(p.name, p.budget, p.limits.generated_tokens) for p in planned] == [
        ("best_of_n", 4, 80),
        ("best_of_n", 16, 320),
        ("cot", None, None),
        ("mcts", 4, 80),
        ("mcts", 16, 320),
    ]
    planned = plan_searches(methods, BudgetPlan((90,), "tokens", 9), BudgetLimits(scored_tokens=7))
    assert {p.limits for p in planned if p.budget} == {BudgetLimits(generated_tokens=90, scored_tokens=7)}
    assert planned[2].params.simulations == 40
    assert plan_searches(methods, BudgetPlan((90,), "tokens"))[2].params.simulations == 4 * (90 // 20)
    assert [(p.budget, p.params) for p in plan_searches(methods, BudgetPlan())] == [
        (None, value) for value in methods.values()
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BudgetPlan((4, 0)), r"budgets: got \[4, 0\]"),
        (lambda: BudgetPlan((4, 4)), r"budgets: got \[4, 4\]; accepted: different"),
        (lambda: BudgetPlan((4,), "calls"), "budget_unit: got 'calls'; accepted: samples | tokens"),
        (lambda: BudgetPlan((4,), "tokens", 0), "tokens_per_sample: got 0"),
        (
            lambda: plan_searches({"cot": params("cot")}, BudgetPlan((4,)), BudgetLimits(generated_tokens=9)),
            r"limits\.generated_tokens: got 9; accepted: null together with budgets",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("unit", ["samples", "tokens"])
@pytest.mark.parametrize("name", METHODS)
def test_no_method_spends_more_than_its_budget(name, unit):
    """On a policy that writes 1 to 3 lines of 2 tokens, an answer and the end of sequence."""

    def script(prefix, index, seed):
        steps = prefix.count("\n") - 1
        if "=" in prefix:
            return ""
        more = (index + seed // 1024) % 3
        return "".join(f"{(index + seed // 1024 + i) % 5}\n" for i in range(max(0, 1 + more - steps))) + "=1\n"

    engine = ScriptedEngine(BoundStepFormat(STEP_FORMATS["plain"], character_tokenizer("q0123456789=+-\n")), script)
    scorer = TableScorer(lambda question, steps: (1 + len(steps)) / 20)
    plan = BudgetPlan((1, 2, 6) if unit == "samples" else (7, 50, 120), unit, 9)
    for search in make_searchers(plan_searches({name: params(name)}, plan), engine, scorer, GRADER):
        row = asyncio.run(solve(Problem("p", "q", "1"), search, RunParams()))
        assert row.error is None
        limit = search.limits.generated_tokens
        if name == "cot":
            assert (search.budget, len(row.traces)) == (None, 1)
            continue
        assert 0 < row.usage.generated_tokens <= limit == search.budget * (20 if unit == "samples" else 1)
        assert any(trace.finish == "stop" for trace in row.traces) or limit < 11
        if name == "best_of_n":
            assert row.usage.generated_tokens == limit if unit == "tokens" else len(row.traces) == search.budget
