"""Pictures of a comparison: accuracy against what was spent and against the budget, and accuracy by difficulty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from prmkit.evaluation.comparison import BASELINE, curves

__all__ = ["comparison_figure", "level_figure", "save_figure"]

# Okabe and Ito's palette, told apart with every kind of colour vision; markers differ too.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#888888")
_MARKERS = "os^Dv<>P"
_UNITS = {"samples": "samples per problem, N", "tokens": "budget: tokens generated per problem, at most"}
_WIDEST = 6  # levels drawn at most; more are told apart in the table


def comparison_figure(figures: Mapping[str, Any], unit: str, title: str | None = None) -> Figure:
    """Accuracy of every method, left over the tokens it generated a problem, right over the budget it was given.

    Curves are of the selection brought out in the figures, with bars of one standard error. The dashed line is a
    majority vote over best-of-N's samples. A search without a budget is a single mark on the left; when all are, there
    is no right one.

    Args:
        figures: from `prmkit.evaluation.comparison.comparison_figures`.
        unit: of budgets, "samples" or "tokens".
        title: set above; None for none.
    """
    budgets = sorted({search["budget"] for search in figures["searches"] if search["budget"] is not None})
    figure = Figure(figsize=(10.6 if budgets else 7.0, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    spent, *given = figure.subplots(1, 2 if budgets else 1, sharey=True, squeeze=False)[0]
    for number, (method, searches) in enumerate(curves(figures).items()):
        selection = searches[0]["selection"]
        style = {"color": _COLORS[number % len(_COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}
        _curve(spent, _spent(searches), searches, selection, {**style, "label": f"{method} ({selection})"})
        dashed = {**style, "marker": "", "linestyle": "--", "linewidth": 1.2}
        also_majority = method == BASELINE and selection != "majority"
        if also_majority:
            _curve(spent, _spent(searches), searches, "majority", {**dashed, "label": f"{method} (majority)"})
        sized = [search for search in searches if search["budget"] is not None]
        for axes in given if sized else ():
            x = [search["budget"] for search in sized]
            _curve(axes, x, sized, selection, style)
            if also_majority:
                _curve(axes, x, sized, "majority", dashed)
    _axis(spent, "tokens generated per problem", ())
    for axes in given:
        _axis(axes, _UNITS[unit], budgets)
    spent.set_ylabel("problems answered right")
    figure.legend(*spent.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def level_figure(figures: Mapping[str, Any], title: str | None = None) -> Figure | None:
    """Accuracy by level of difficulty, a bar for every method at its greatest budget; None with fewer than two levels.

    Args:
        figures: from `prmkit.evaluation.comparison.comparison_figures`.
        title: set above; None for none.
    """
    last = {method: searches[-1] for method, searches in curves(figures).items()}
    levels = list(dict.fromkeys(level for search in last.values() for level in search["levels"]))[:_WIDEST]
    if len(levels) < 2:
        return None
    figure = Figure(figsize=(1.6 + 1.4 * len(levels), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(last)
    for number, (method, search) in enumerate(last.items()):
        cells = [search["levels"].get(level, {"mean": 0.0, "se": None}) for level in levels]
        places = [place + (number - (len(last) - 1) / 2) * width for place in range(len(levels))]
        label = method if search["budget"] is None else f"{method}, {search['budget']}"
        axes.bar(
            places,
            [cell["mean"] for cell in cells],
            width * 0.92,
            yerr=[cell["se"] or 0.0 for cell in cells],
            color=_COLORS[number % len(_COLORS)],
            error_kw={"linewidth": 0.8},
            label=label,
        )
    problems = {level: search["levels"][level]["problems"] for search in last.values() for level in search["levels"]}
    axes.set_xticks(range(len(levels)), [f"{level}\n({problems[level]} problems)" for level in levels], fontsize=8)
    axes.set_ylabel("problems answered right")
    _common(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG without the program's version, so that equal figures are equal files."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _spent(searches: Sequence[Mapping[str, Any]]) -> list[float]:
    return [max(1.0, search["tokens"]["generated"]) for search in searches]


def _curve(
    axes: Axes, x: Sequence[float], searches: Sequence[Mapping[str, Any]], selection: str, style: Mapping[str, Any]
) -> None:
    cells = [search["accuracy"].get(selection, search["accuracy"]["majority"]) for search in searches]
    means, errors = [cell["mean"] for cell in cells], [cell["se"] or 0.0 for cell in cells]
    axes.errorbar(x, means, yerr=errors, markersize=4.5, elinewidth=0.8, **{"linewidth": 1.7, **style})


def _axis(axes: Axes, label: str, ticks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    if ticks:
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    _common(axes)


def _common(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
