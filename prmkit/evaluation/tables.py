"""Figures as tables: for the terminal (rich) and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["accuracy_rows", "comparison_rows", "level_rows", "markdown", "rich_table"]


def accuracy_rows(figures: Mapping[str, Any], methods: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a method a row, a number of samples a column, `mean±se` in percent in the cells.

    Args:
        figures: from `prmkit.evaluation.summary.figures`.
        methods: which, in this order; none gives all. A greedy row is added when there is one.
    """
    accuracy = figures["accuracy"]
    names = [name for name in methods if name in accuracy] if methods else list(accuracy)
    counts = list(accuracy[names[0]])
    rows = [[name, *(_cell(accuracy[name][n]) for n in counts)] for name in names]
    if "greedy" in figures:
        greedy = {"mean": figures["greedy"], "se": figures["greedy_se"]}
        rows.append(["greedy", _cell(greedy), *([""] * (len(counts) - 1))])
    return ["% right at N =", *counts], rows


def comparison_rows(
    figures: Mapping[str, Any], selections: Sequence[str], unit: str
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a search a row, with accuracies in percent and what they cost a problem.

    Args:
        figures: from `prmkit.evaluation.comparison.comparison_figures`.
        selections: columns of accuracy; those that no search has are left out.
        unit: of budgets.
    """
    searches = figures["searches"]
    shown = [name for name in selections if any(name in search["accuracy"] for search in searches)]
    header = ["method", unit, *shown, "one trace", "generated", "scored", "traces", "unfinished", "failed"]
    rows = []
    for search in searches:
        accuracy, tokens = search["accuracy"], search["tokens"]
        rows.append(
            [
                search["method"],
                "" if search["budget"] is None else str(search["budget"]),
                *(_cell(accuracy[name]) if name in accuracy else "" for name in shown),
                _cell(search["pass_at_1"]),
                f"{tokens['generated']:,.0f}",
                f"{tokens['scored']:,.0f}",
                f"{search['traces']:.1f}",
                f"{100 * search['unfinished']:.1f}%",
                str(search["failed"]),
            ]
        )
    return header, rows


def level_rows(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a search a row, a level of difficulty a column, with the number of its problems.

    Args:
        figures: from `prmkit.evaluation.comparison.comparison_figures`; searches without levels give no rows.
    """
    searches = [search for search in figures["searches"] if search["levels"]]
    levels = {name: cell["problems"] for search in searches for name, cell in search["levels"].items()}
    header = ["% right", *(f"{name} ({problems})" for name, problems in levels.items())]
    rows = [
        [
            search["method"] + ("" if search["budget"] is None else f", {search['budget']}"),
            *(_cell(search["levels"][name]) if name in search["levels"] else "" for name in levels),
        ]
        for search in searches
    ]
    return header, rows


def rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table for the terminal; numbers are set to the right."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown; a `|` inside a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(header) - 1)
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def _cell(estimate: Mapping[str, Any]) -> str:
    mean, se = estimate["mean"], estimate["se"]
    return f"{100 * mean:.1f}" if se is None else f"{100 * mean:.1f}±{100 * se:.1f}"
