"""First errors of solutions that a search wrote; every probability of the policy is known."""

import asyncio
from dataclasses import replace

import pytest

from prmkit.annotation.runner import AnnotationRun
from prmkit.annotation.traces import TracesParams, annotate_problem, problems_of
from prmkit.errors import ConfigError, DataError
from prmkit.records import SamplingParams
from prmkit.search.budget import Budget
from prmkit.search.rows import SearchRow, TraceRecord

# `a`, `c` are right; `b` and `d` are the first errors, nothing right can follow them.
TREE = {
    (): {"a": 0.5, "b": 0.5},
    ("a",): {"c": 0.5, "d": 0.5},
    ("a", "c"): {"=1": 0.5, "=2": 0.5},
    ("a", "d"): {"=3": 1.0},
    ("b",): {"c": 1.0},
    ("b", "c"): {"e": 1.0},
    ("b", "c", "e"): {"=4": 1.0},
}


def trace(*steps, scores=None, finish="stop"):
    return TraceRecord(steps, finish, steps[-1][1:], 0, steps[-1] == "=1" and finish == "stop", 2 * len(steps), scores)


RIGHT = trace("a", "c", "=1", scores=(0.9, 0.9, 0.9))
LATE = trace("a", "c", "=2", scores=(0.9, 0.9, 0.8))  # wrong in its last step
MIDDLE = trace("a", "d", "=3", scores=(0.9, 0.5, 0.9))
EARLY = trace("b", "c", "e", "=4", scores=(0.9, 0.9, 0.9, 0.9))
TWIN = trace("b", "c", "e", "=5", scores=(0.1, 0.9, 0.9, 0.9))  # errs first where EARLY does
CUT = trace("a", "c", finish="length")


@pytest.fixture
def annotate(tree_policy, last_step_grader, coin_problem):
    def run(*traces, **params):
        engine, budget = tree_policy(lambda steps: TREE.get(steps, {})), Budget()
        settings = TracesParams(**{"rollouts": 32, "sampling": SamplingParams(max_tokens=512), **params})
        labels = annotate_problem(
            coin_problem, engine, last_step_grader, settings, "tree", budget, candidates={"p0": traces}
        )
        return asyncio.run(labels), engine, budget

    return run


def test_first_errors_by_binary_search(annotate):
    result, engine, budget = annotate(EARLY, MIDDLE, LATE, TWIN, RIGHT, RIGHT, CUT)
    found = {record.steps: record for record in result.records}
    assert list(found) == [EARLY.steps, LATE.steps, MIDDLE.steps, RIGHT.steps], "TWIN says nothing that EARLY does not"
    assert found[RIGHT.steps].values == (1.0, 1.0, 1.0)
    assert found[RIGHT.steps].correct is True
    assert found[EARLY.steps].values == (0.0, None, None, None)
    assert found[EARLY.steps].rollouts == (32, 0, 0, 0)
    assert found[MIDDLE.steps].values[1:] == (0.0, None)
    assert found[MIDDLE.steps].values[0] == pytest.approx(0.25, abs=0.15)
    assert found[LATE.steps].values[1] == pytest.approx(0.5, abs=0.2)
    assert found[LATE.steps].values[2] == 0.0
    assert found[LATE.steps].rollouts[1:] == (32, 1)
    assert (found[LATE.steps].source, found[LATE.steps].separator, found[LATE.steps].policy) == (
        *("search-traces", "\n", "tree"),
    )
    counts = result.counts
    assert (counts.solutions, counts.right, counts.cut_off, counts.searches, counts.records) == (7, 2, 1, 4, 4)
    assert counts.rollouts == budget.spent.samples == sum(request.n for request in engine.requests)
    assert counts.rollouts + counts.inherited == 32 * counts.prefixes


def test_the_believed_ones_come_first(annotate):
    result, _, _ = annotate(TWIN, MIDDLE, LATE, EARLY, RIGHT, wrong_per_problem=2)
    assert [record.steps for record in result.records] == [EARLY.steps, LATE.steps, RIGHT.steps]
    result, _, _ = annotate(TWIN, MIDDLE, EARLY, RIGHT, wrong_per_problem=1, aggregation="last", right_per_problem=0)
    assert [record.steps for record in result.records] == [TWIN.steps]
    unscored = [replace(t, scores=None) for t in (MIDDLE, EARLY, RIGHT)]
    result, _, _ = annotate(*unscored, wrong_per_problem=1, right_per_problem=0)
    assert [record.steps for record in result.records] == [MIDDLE.steps]


def test_a_threshold_moves_the_first_error(annotate):
    """A quarter of the rollouts behind `a` end right: too few when more than half are asked for."""
    result, _, _ = annotate(LATE, RIGHT, threshold=0.75)
    assert result.records[0].values[0] is not None
    assert result.records[0].values[1:] == (None, None)


def test_a_problem_that_nobody_solved_costs_nothing(annotate):
    result, engine, _ = annotate(EARLY, LATE)
    assert result.records == ()
    assert engine.requests == []


def test_rows_of_all_searches_are_gathered(coin_problem):
    rows = [SearchRow("p0", "q", "1", (LATE,), method="mcts"), SearchRow("p0", "q", "1", (RIGHT,), method="dvts")]
    problems, traces = problems_of(rows)
    assert problems == [coin_problem]
    assert traces == {"p0": (LATE, RIGHT)}
    with pytest.raises(DataError, match="rows of problem 'p0' differ"):
        problems_of([*rows, replace(rows[0], answer="2")])


@pytest.mark.parametrize(
    ("values", "field"), [({"rollouts": 0}, "rollouts"), ({"threshold": 1.0}, "threshold"), ({"aggregation": "x"}, "a")]
)
def test_parameters_out_of_range(values, field):
    with pytest.raises(ConfigError, match=rf"annotate\.{field}"):
        TracesParams(**values)


def test_a_run_needs_candidates_where_the_method_does():
    with pytest.raises(ConfigError, match="candidates"):
        AnnotationRun("traces", TracesParams())
