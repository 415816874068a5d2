"""Figures, tables and the picture of a small run."""

import struct

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.evaluation.plots import companion, plot_accuracy
from prmkit.evaluation.summary import check_headline, figures, tokens_spent, truth_figures
from prmkit.evaluation.tables import accuracy_rows, markdown, rich_table
from prmkit.records import Usage
from prmkit.search.rows import SearchRow, TraceRecord
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
PROBLEMS = TASK.problems("test", 4)


def trace(steps, right, score):
    steps = tuple(steps)
    return TraceRecord(steps, "stop", steps[-1][-1], int(not right), right, 10, (score,) * len(steps))


def row(problem, share):
    """Of 16 samples a share is the exact solution, scored .9; the others change its last line, scored .2."""
    exact = problem.solution.split("\n")
    wrong = [*exact[:-1], exact[-1][:-1] + ("0" if exact[-1][-1] != "0" else "1")]
    traces = [trace(exact, True, 0.9) if i < 16 * share else trace(wrong, False, 0.2) for i in range(16)]
    greedy = trace(exact, share > 0.5, 0.9)
    return SearchRow(problem.id, problem.question, problem.answer, tuple(traces), greedy, Usage(160, 30, 1, 2, 16))


ROWS = [row(problem, share) for problem, share in zip(PROBLEMS, (0.25, 0.25, 0.75, 0.0), strict=True)]


def test_figures_by_hand():
    got = figures(ROWS, "min_vote")
    assert (got["problems"], got["failed"], got["cut_off"]) == (4, 0, 0.0)
    assert got["pass_at_1"] == pytest.approx((0.25 + 0.25 + 0.75 + 0) / 4)
    assert got["greedy"] == 0.25
    assert got["accuracy"]["majority"]["16"]["mean"] == 0.25
    assert got["accuracy"]["oracle"]["16"]["mean"] == 0.75
    # 4 * .9 beats 12 * .2; for the product over the lines it does so too
    assert got["accuracy"]["min_vote"]["16"]["mean"] == got["accuracy"]["product_vote"]["16"]["mean"] == 0.75
    # differences of the four problems: 1, 1, 0, 0
    assert got["gain_at_16"] == pytest.approx({"mean": 0.5, "se": (1 / 3) ** 0.5 / 2})
    assert tokens_spent(ROWS) == {"generated": 640, "scored": 120, "greedy": 40}
    failed = SearchRow("x", "q", "1", (), error="ValueError: no")
    assert figures([*ROWS, failed], "min_vote")["accuracy"]["oracle"]["16"]["mean"] == 0.6
    assert figures([*ROWS, failed], "min_vote")["greedy"] == 0.2


def test_against_exact_truth():
    got = truth_figures(ROWS, PROBLEMS, TASK)
    assert got["traces"] == 7, "distinct traces: two of each problem but the last"
    lines = sum(len(problem.solution.split("\n")) for problem in PROBLEMS)
    last = len(PROBLEMS[3].solution.split("\n"))
    assert got["steps"] == 2 * lines - last
    # every wrong trace is scored .2 from its first line on: the first error is never found, right traces always pass
    assert (got["first_error_accuracy_wrong"], got["first_error_accuracy_right"]) == (0.0, 1.0)
    with pytest.raises(DataError, match="no such problem in this run"):
        truth_figures(ROWS, PROBLEMS[:2], TASK)


def test_headlines():
    assert check_headline("last_max") == "last_max"
    assert companion("product_vote") == "product_max"
    assert companion("min_max") == "min_vote"
    for name in ("majority", "product", "product_voting"):
        with pytest.raises(ConfigError, match=rf"headline: got '{name}'; accepted: min_max"):
            check_headline(name)


def test_tables():
    header, rows = accuracy_rows(figures(ROWS, "min_vote"), ("oracle", "min_vote", "absent"))
    assert header == ["% right at N =", "1", "2", "4", "8", "16"]
    assert [line[0] for line in rows] == ["oracle", "min_vote", "greedy"]
    assert rows[0][-1] == "75.0±25.0"
    assert rows[2][2:] == [""] * 4
    text = markdown(["a|b", "c"], [["x", "1"]])
    assert text == "| a\\|b | c |\n| --- | ---: |\n| x | 1 |\n"
    assert rich_table(header, rows).row_count == 3


@pytest.mark.parametrize("scored", [True, False])
def test_picture(tmp_path, scored):
    rows = ROWS if scored else [SearchRow("p", "q", "1", (TraceRecord(("s",), "stop", "1", 0, True, 2),))]
    path = tmp_path / "new" / "picture.png"
    plot_accuracy(figures(rows, "product_vote"), "product_vote", path, "a title")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 600
    plot_accuracy(figures(rows, "product_vote"), "product_vote", tmp_path / "again.png", "a title")
    assert (tmp_path / "again.png").read_bytes() == data
