"""rStar: moves, rewards by self-consistency, and the discriminator; and the choice of methods by difficulty."""

import asyncio
import math
from collections import Counter

import pytest

from prmkit.records import Problem
from prmkit.scoring.table import TableScorer
from prmkit.search.actions import RSTAR_ACTIONS, Action, render
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.consistency import Answers, disagreeing
from prmkit.search.explorer import StepwiseParams
from prmkit.search.methods import make_method, make_params
from prmkit.search.rstar import RStarParams, rstar
from prmkit.search.tree import Node

PROBLEM = Problem("p", "q", "1")


def lines_of(trace):
    return [step.text for step in trace.steps]


def run(engine, grader, budget=None, scorer=None, discriminator=None, problem=PROBLEM, **params):
    return asyncio.run(
        rstar(
            problem,
            engine,
            scorer,
            RStarParams(**params),
            budget or Budget(),
            grader=grader,
            discriminator=discriminator,
        )
    )


def test_rewards_are_shares_of_equal_answers(digit_policy, last_step_grader):
    """Every simulation's reward, recomputed from the tree: nodes come in order of creation, and the reward of a
    simulation is backed up when all that was drawn in it is in the tree."""
    budget = Budget()
    result = run(digit_policy, last_step_grader, budget, simulations=1)
    root = result.nodes[0]
    answers = Counter()
    for node in result.nodes:
        if node.finish == "stop":
            place = node if node.text else result.nodes[node.parent]
            answers[place.text.partition("=")[2]] += node.count
    (end,) = [node for node in result.nodes if node.visits and node.finish == "stop"]
    text = end.text or result.nodes[end.parent].text
    assert root.visits == 1
    assert root.value == pytest.approx(answers[text.partition("=")[2]] / sum(answers.values()))
    assert budget.spent.generated_tokens == sum(node.tokens for node in result.nodes)
    assert {node.action for node in result.nodes[1:]} <= {"A1", "A2", "rollout"}


def test_simulations_and_uct(digit_policy, last_step_grader):
    """Every branch of a node is tried once before any is tried twice; then the better ones more often."""
    result = run(digit_policy, last_step_grader, simulations=40)
    assert result.nodes[0].visits == 40
    visits = Counter()
    for node in result.nodes:
        if node.parent == 0 and node.action == "A1":
            visits[node.text] = node.visits
    assert min(visits.values()) >= 1
    assert sum(visits.values()) <= 40
    assert all(0.0 <= node.value <= 1.0 for node in result.nodes if node.value is not None)
    shares = Counter(lines_of(trace)[-1] for trace in result.traces)
    assert len(shares) > 1


@pytest.mark.parametrize("exploration", [0.0, 0.3, 1.4])
def test_visits_are_those_of_ucb_on_arms_with_constant_rewards(step_policy, last_step_grader, exploration):
    """All ends are drawn by the first simulation, so an arm's reward is its share of them from then on."""
    engine = step_policy(lambda question, written: {"=1$": 0.5, "=2$": 0.3, "=3$": 0.2})
    action = Action("A1", "step", samples=40)
    for simulations in (1, 3, 4, 7, 50):
        result = run(engine, last_step_grader, simulations=simulations, exploration=exploration, actions=(action,))
        arms = result.nodes[1:]
        assert len(arms) == 3
        first = run(engine, last_step_grader, simulations=1, actions=(action,)).nodes[1:]
        visits = [arm.visits for arm in first]
        for n in range(1, simulations):
            ranks = [
                arm.count / 40 + exploration * math.sqrt(math.log(n) / v) if v else math.inf
                for arm, v in zip(arms, visits, strict=True)
            ]
            visits[ranks.index(max(ranks))] += 1
        assert [arm.visits for arm in arms] == visits
        assert result.nodes[0].visits == simulations


def test_without_a_scorer_and_with(digit_policy, digit_scorer, last_step_grader):
    plain = run(digit_policy, last_step_grader)
    scored = run(digit_policy, last_step_grader, scorer=digit_scorer)
    assert [trace.steps for trace in plain.traces] == [trace.steps for trace in scored.traces]
    assert all(trace.scores is None for trace in plain.traces)
    assert all(len(trace.scores.values) == len(trace.steps) for trace in scored.traces)


def instructed(question, written):
    """Follows the prompts of RSTAR_ACTIONS; the words of a rephrased question show what was asked."""
    if question.startswith("problem. "):
        return {"again q$": 1.0}
    if question.startswith("sub. "):
        return {"what is it? one": 1.0}
    if question.startswith("answer. "):
        return {"two$": 1.0}
    if (written and written[-1].startswith("=")) or len(written) > 3:
        return {}
    return {"=2": 1.0} if any("two" in line for line in written) else {"go": 0.5, "=1": 0.5}


ACTIONS = (
    Action("A1", "step"),
    Action("A2", "rest"),
    Action("A3", "subquestion", prompt="sub. {question}. {steps}."),
    Action("A4", "answer_again", prompt="answer. {question}. {steps}. {subquestion}"),
    Action("A5", "rephrase", prompt="problem. {question}"),
)


def test_prompted_moves(step_policy, last_step_grader):
    engine, budget = step_policy(instructed), Budget()
    scorer = TableScorer({}, default=0.5)
    result = run(engine, last_step_grader, budget, scorer=scorer, simulations=60, actions=ACTIONS)
    by_action = {}
    for node in result.nodes[1:]:
        by_action.setdefault(node.action, []).append(node)
    assert by_action.keys() == {"A1", "A2", "A3", "A4", "A5", "rollout"}
    assert {node.text for node in by_action["A3"]} == {"what is it? one"}
    assert {node.text for node in by_action["A4"]} == {"what is it? two"}
    assert {(node.text, node.parent) for node in by_action["A5"]} == {("again q", 0)}, "at the root only"
    assert {result.nodes[node.parent].action for node in by_action["A4"]} <= {"A3", "A4"}
    assert sum(node.tokens for node in result.nodes) == budget.spent.generated_tokens
    prompts = {engine.format.decode(request.prompt_ids) for request in engine.requests}
    assert "answer. q. (nothing yet). what is it?\n" in prompts
    assert "sub. again q. (nothing yet).\n" in prompts, "moves behind a rephrased question are shown it"
    again = [lines_of(trace) for trace in result.traces if "what is it? two" in lines_of(trace)]
    assert again
    for trace in result.traces:
        assert "again q" not in lines_of(trace), "another wording is no step"
        assert len(trace.scores.values) == len(trace.steps)
    assert any("what is it? one" not in lines for lines in again), "the new answer stands in place of the old one"
    prefixes = [prompt for prompt in prompts if prompt.startswith("q\nwhat is it? two\n")]
    assert prefixes, "what follows is written behind the step's text"


def test_blank_and_cut_off_replies_to_prompts_are_dead_ends(step_policy, last_step_grader):
    for reply in ("$", "x" * 40):
        engine = step_policy(
            lambda question, written, reply=reply: {reply: 1.0} if question.startswith("sub") else {"=1$": 1.0}
        )
        result = run(engine, last_step_grader, step_tokens=20, actions=ACTIONS[:3], simulations=5)
        asked = [node for node in result.nodes if node.action == "A3"]
        assert [(node.text, node.finish) for node in asked] == [("", "length")]
        assert {trace.finish for trace in result.traces} == {"stop"}


def test_placeholders_in_questions_are_left_alone():
    prompt = "{question} / {steps} / {subquestion}"
    assert render(prompt, "{steps}?", ("{question}", "b"), "s?") == "{steps}? / {question}\nb / s?"
    assert render("{question}. {steps}", "q", ()) == "q. (nothing yet)"
    assert len({action.name for action in RSTAR_ACTIONS}) == len({action.kind for action in RSTAR_ACTIONS}) == 5


def test_the_discriminator_refutes(step_policy, last_step_grader):
    """The second model always ends with 1: solutions that end with 2 are discarded, unless there are no others."""
    engine = step_policy(
        lambda question, written: [{"a": 1.0, "b": 1.0}, {"c": 1.0}, {"=1$": 0.5, "=2$": 0.5}][len(written)]
    )
    budget, second = Budget(), step_policy(lambda question, written: {"=1$": 1.0})
    free = run(engine, last_step_grader, simulations=8)
    result = run(engine, last_step_grader, budget, discriminator=second, simulations=8)
    assert {lines_of(trace)[-1] for trace in free.traces} == {"=1", "=2"}
    assert {lines_of(trace)[-1] for trace in result.traces} == {"=1"}
    kept = [trace for trace in free.traces if lines_of(trace)[-1] == "=1"]
    assert list(result.traces) == kept
    assert all(not node.kept for node in result.nodes if node.text == "=2")
    checked = sum(request.n for request in second.requests)
    assert checked == len({node.text + str(place) for place, node in enumerate(result.nodes) if node.finish == "stop"})
    spent = sum(node.tokens for node in result.nodes) + checked * 3
    assert budget.spent.generated_tokens == spent, "its tokens are paid for"
    contrary = step_policy(lambda question, written: {"=3$": 1.0})
    assert run(engine, last_step_grader, discriminator=contrary, simulations=8).traces == free.traces


def test_what_the_discriminator_is_shown(step_policy, last_step_grader):
    """Of ten steps, 2 to 8; the last is left out whatever the share."""
    second = step_policy(lambda question, written: {f"={len(written)}$": 1.0})
    answers = Answers(last_step_grader, second.format)
    ends = []
    for number in range(40):
        node = None
        for depth in range(10):
            node = Node(node, f"{'abcdefghij'[depth]}{number}", finish="stop" if depth == 9 else None)
        ends.append(Node(Node(), "only", finish="stop"))
        ends.append(node)
    for end in ends:
        first = end.path()[0]
        if first.text:
            first.parent = Node()
    budget = Budget()
    refuted = asyncio.run(disagreeing(PROBLEM, ends, second, answers, StepwiseParams(), (0.2, 0.8), budget))
    assert refuted == set(ends), "none of them has an answer"
    shown = [second.format.decode(request.prompt_ids).count("\n") - 1 for request in second.requests]
    assert set(shown[::2]) == {0}
    assert set(shown[1::2]) == {2, 3, 4, 5, 6, 7}
    few = Budget(BudgetLimits(samples=3))
    unsure = asyncio.run(disagreeing(PROBLEM, ends, second, answers, StepwiseParams(), (0.2, 0.8), few))
    assert len(unsure) == 3, "what is not paid for is not refuted"


@pytest.mark.parametrize(("value", "method"), [(0.1, "dvts"), (0.29, "dvts"), (0.31, "beam_search"), (0.9, "cot")])
def test_difficulty_chooses(step_policy, value, method):
    engine = step_policy(lambda question, written: {"a": 1.0} if not written else {"=1$": 1.0})
    choices = [
        {"method": "dvts", "params": {"n": 2, "width": 1}},
        {"method": "beam_search", "params": {"n": 4, "width": 2}},
        {"method": "cot"},
    ]
    values = {"probes": 3, "thresholds": [0.3, 0.6], "methods": choices}
    scorer, budget = TableScorer({}, default=value), Budget()
    search = make_method("compute_optimal", make_params("compute_optimal", values))
    result = asyncio.run(search(PROBLEM, engine, scorer, budget=budget))
    alone_budget = Budget()
    chosen = next(choice for choice in choices if choice["method"] == method)
    alone = make_method(method, make_params(method, chosen.get("params", {})))
    expected = asyncio.run(alone(PROBLEM, engine, TableScorer({}, default=value), budget=alone_budget))
    assert result.nodes == expected.nodes
    assert [lines_of(trace) for trace in result.traces[3:]] == [lines_of(trace) for trace in expected.traces]
    assert budget.spent.samples == 3 + alone_budget.spent.samples, "probes are paid for"
    assert len(result.traces) == 3 + len(expected.traces), "and are candidates"


def test_probes_that_do_not_finish_count_nothing(step_policy):
    """Two of four probes end in time, with .8: a mean of about .4 and not .8."""
    engine = step_policy(lambda question, written: {"x" * 9: 0.5, "=1$": 0.5})
    values = {
        "probes": 20,
        "sampling": {"max_tokens": 5},
        "thresholds": [0.7],
        "methods": [{"method": "cot"}, {"method": "dvts"}],
    }
    search = make_method("compute_optimal", make_params("compute_optimal", values))
    result = asyncio.run(search(PROBLEM, engine, TableScorer({}, default=0.8), budget=Budget()))
    assert len(result.traces) == 21, "twenty probes and the method for hard problems"
    assert result.nodes == ()
