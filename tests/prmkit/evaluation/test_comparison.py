"""Figures of methods at equal budgets, by hand."""

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.evaluation.comparison import comparison_figures, curves, independent_rows, levels_of, search_truth
from prmkit.evaluation.comparison_plots import comparison_figure, level_figure, save_figure
from prmkit.evaluation.tables import comparison_rows, level_rows
from prmkit.records import Problem, Usage
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.tasks.accumulator import AccumulatorTask


def trace(group, correct, *scores, finish="stop"):
    answer = None if group < 0 else str(group)
    return TraceRecord(("s",) * max(len(scores), 1), finish, answer, group, correct, 5, scores or None)


def row(number, method, budget, *traces, error=None, tokens=0, level="1"):
    usage = Usage(tokens, 2 * tokens, 1, 2)
    return SearchRow(
        f"p{number}", "q", "0", tuple(traces), error=error, method=method, budget=budget, usage=usage, level=level
    )


ROWS = [
    # two wrong against one right that scores higher: the vote of the scores is right, the majority is wrong
    row(0, "best_of_n", 3, trace(0, False, 0.1), trace(0, False, 0.1), trace(1, True, 0.9), tokens=30),
    row(0, "beam_search", 3, trace(1, True, 0.9), trace(1, True, 0.8), tokens=20),
    # an answer that did not finish may not vote, right as it is
    row(
        1, "best_of_n", 3, trace(0, True, 0.9, finish="length"), trace(1, False, 0.2), trace(-1, False, 0.9), tokens=10
    ),
    row(1, "beam_search", 3, error="OSError: gone", level="2"),
]


def test_figures_by_hand():
    figures = comparison_figures(ROWS, "last_vote")
    assert figures["problems"] == 2
    one, other = figures["searches"]
    assert (one["method"], one["budget"], one["selection"]) == ("best_of_n", 3, "last_vote")
    means = {name: value["mean"] for name, value in one["accuracy"].items()}
    assert (means["majority"], means["last_vote"], means["last_max"], means["oracle"]) == (0.0, 0.5, 0.5, 0.5)
    assert one["pass_at_1"]["mean"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert one["tokens"] == {"generated": 20.0, "scored": 40.0}
    assert (one["calls"], one["traces"], one["failed"]) == ({"engine": 1.0, "scorer": 2.0}, 3.0, 0)
    assert (one["unfinished"], one["no_answer"]) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    assert (other["failed"], other["accuracy"]["last_vote"]["mean"], other["pass_at_1"]["mean"]) == (1, 0.5, 0.5)
    assert other["gain"] == {"mean": 0.0, "se": 0.0}
    assert "gain" not in one
    assert {level: cell["mean"] for level, cell in other["levels"].items()} == {"1": 1.0, "2": 0.0}
    assert list(curves(figures)) == ["best_of_n", "beam_search"]
    with pytest.raises(ConfigError, match="headline: got 'best'"):
        comparison_figures(ROWS, "best")


def test_a_search_whose_every_problem_failed_has_figures():
    (search,) = comparison_figures([row(0, "mcts", 4, error="ValueError: no")], "min_vote")["searches"]
    assert (search["failed"], search["accuracy"]["majority"]["mean"], search["selection"]) == (1, 0.0, "majority")
    _, search = comparison_figures([*ROWS[:1], row(0, "mcts", 4, trace(-1, False, 0.5))], "min_vote")["searches"]
    assert (search["selection"], search["accuracy"]["min_vote"]["mean"]) == ("min_vote", 0.0), "nothing may vote"


def test_majority_of_two_is_that_of_one_in_expectation():
    """Over all ways to fill two samples from three answers, one of them right."""
    pairs = [(a, b) for a in range(3) for b in range(3)]
    both = [row(i, "best_of_n", 2, *(trace(g, g == 1) for g in pair)) for i, pair in enumerate(pairs)]
    ones = [row(i, "best_of_n", 1, trace(pair[0], pair[0] == 1)) for i, pair in enumerate(pairs)]
    two, one = (comparison_figures(rows, "min_vote")["searches"][0]["accuracy"] for rows in (both, ones))
    assert two["majority"]["mean"] == pytest.approx(one["majority"]["mean"]) == pytest.approx(1 / 3)


def test_levels():
    assert levels_of(ROWS) == {"p0": "1", "p1": "2"}
    plain = [row(0, "best_of_n", 1, trace(0, True), level=None)]
    problems = [Problem("p0", "q", "0", solution="a\n\nb\n"), Problem("p1", "q", "0", level="hard", solution="a")]
    assert levels_of(plain, problems) == {"p0": "2 lines"}
    many = [row(i, "best_of_n", 1, trace(0, True), level=f"Level {i}") for i in (10, 2, 1)]
    (search,) = comparison_figures(many, "min_vote")["searches"]
    assert list(search["levels"]) == ["Level 1", "Level 2", "Level 10"]


def test_truth_is_of_independent_samples():
    sampled = [row(0, "best_of_n", n, *[trace(0, True, 0.5)] * n) for n in (1, 4, 2)]
    guided = row(0, "beam_search", 4, trace(0, True, 0.9))
    assert independent_rows([guided, *sampled]) == [sampled[1]]
    both = independent_rows([guided, row(0, "mcts", 4, trace(1, False, 0.1))])
    assert [len(found.traces) for found in both] == [2]
    task = AccumulatorTask()
    problem = task.problems("test", 1)[0]
    steps = tuple(problem.solution.split("\n"))
    record = TraceRecord(steps, "stop", problem.answer, 0, True, 9, (0.9,) * len(steps))
    real = SearchRow(problem.id, problem.question, problem.answer, (record,), method="mcts", budget=1)
    assert search_truth([real], [problem], task)["step_accuracy"] == 1.0
    with pytest.raises(DataError, match="no such problem"):
        search_truth([real], [], task)


def test_tables():
    header, lines = comparison_rows(
        comparison_figures(ROWS, "last_vote"), ("majority", "last_vote", "absent"), "samples"
    )
    assert header[:4] == ["method", "samples", "majority", "last_vote"]
    assert lines[0][:4] == ["best_of_n", "3", "0.0±0.0", "50.0±50.0"]
    assert lines[1][-5:] == ["10", "20", "1.0", "0.0%", "1"]
    header, lines = level_rows(comparison_figures(ROWS, "last_vote"))
    assert header == ["% right", "1 (1)", "2 (1)"]
    assert lines[1] == ["beam_search, 3", "100.0", "0.0"]


def test_pictures(tmp_path):
    figures = comparison_figures(ROWS, "last_vote")
    save_figure(comparison_figure(figures, "tokens", "a title"), tmp_path / "new" / "a.png")
    save_figure(comparison_figure(figures, "tokens", "a title"), tmp_path / "b.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = level_figure(figures)
    assert picture is not None
    assert len(picture.axes[0].patches) == 4
    assert level_figure(comparison_figures(ROWS[:2], "last_vote")) is None, "one level is no comparison"
    spent = comparison_figure(figures, "samples").axes[0]
    line = next(line for line in spent.get_lines() if list(line.get_xdata()) == [10.0])
    assert list(line.get_ydata()) == [0.5], "beam search: 10 tokens a problem, half of the problems right"
