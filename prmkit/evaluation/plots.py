"""The picture of a run: accuracy against the number of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["companion", "plot_accuracy"]

# Okabe and Ito's palette, told apart with every kind of colour vision; markers and dashes differ too.
_BLACK, _BLUE, _ORANGE, _GREEN, _GREY = "#222222", "#0072B2", "#D55E00", "#009E73", "#888888"
_MIN_GAP = 0.045  # least distance of two labels, as a share of the axis


@dataclass(frozen=True, slots=True)
class _Curve:
    method: str
    label: str
    color: str
    marker: str
    dashes: str = "-"


def plot_accuracy(figures: Mapping[str, Any], headline: str, path: str | Path, title: str | None = None) -> None:
    """Draw accuracy over N on a logarithmic axis, bands of one standard error, and labels at the curves' ends.

    Curves: oracle, the headline method, its aggregation's other selection, majority; and greedy as a level line.

    Args:
        figures: from `prmkit.evaluation.summary.figures`.
        headline: the PRM's method to bring out, e.g. `product_vote`.
        path: the PNG to write.
        title: set above the picture; None for none.
    """
    accuracy = figures["accuracy"]
    curves = [curve for curve in _curves(headline) if curve.method in accuracy]
    figure = Figure(figsize=(7.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = [_draw(axes, accuracy[curve.method], curve) for curve in curves]
    labels = [(end, curve.label, curve.color) for end, curve in zip(ends, curves, strict=True)]
    counts = [int(n) for n in accuracy["majority"]]
    if "greedy" in figures:
        level = figures["greedy"]
        axes.axhline(level, color=_GREY, linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=1)
        labels.append((level, "greedy", _GREY))
    _style(axes, counts)
    _label_ends(axes, labels, counts[-1])
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def companion(headline: str) -> str:
    """The method with the same aggregation and the other selection: `product_max` beside `product_vote`."""
    how, _, selection = headline.rpartition("_")
    return f"{how}_{'max' if selection == 'vote' else 'vote'}"


def _curves(headline: str) -> list[_Curve]:
    how, _, selection = headline.rpartition("_")
    other = companion(headline).rpartition("_")[2]
    names = {"vote": "PRM vote", "max": "PRM best"}
    return [
        _Curve("oracle", "oracle (any right)", _BLACK, "", "--"),
        _Curve(headline, f"{names[selection]} ({how})", _ORANGE, "o"),
        _Curve(companion(headline), f"{names[other]} ({how})", _GREEN, "s"),
        _Curve("majority", "majority vote", _BLUE, "^"),
    ]


def _draw(axes: Axes, by_n: Mapping[str, Mapping[str, float | None]], curve: _Curve) -> float:
    """Draw one curve; returns its last value."""
    counts = [int(n) for n in by_n]
    means = [float(estimate["mean"] or 0.0) for estimate in by_n.values()]
    errors = [float(estimate["se"] or 0.0) for estimate in by_n.values()]
    axes.plot(
        counts,
        means,
        color=curve.color,
        marker=curve.marker,
        linestyle=curve.dashes,
        linewidth=1.8,
        markersize=5,
        zorder=4 if curve.method == "oracle" else 3,
    )
    low, high = zip(*((m - e, m + e) for m, e in zip(means, errors, strict=True)), strict=True)
    axes.fill_between(counts, low, high, color=curve.color, alpha=0.15, linewidth=0)
    return means[-1]


def _style(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlim(counts[0] * 0.93, counts[-1] * 1.04)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.01), min(high, 1.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("samples per problem, N")
    axes.set_ylabel("problems answered right")
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], last: int) -> None:
    """Write each label beside the end of its curve, moved apart where curves end close together."""
    low, high = axes.get_ylim()
    gap = _MIN_GAP * (high - low)
    heights: list[float] = []
    ordered = sorted(labels)
    for value, _, _ in ordered:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    overshoot = max(0.0, heights[-1] - high)
    ceiling = high + gap
    for index in reversed(range(len(heights))) if overshoot else ():
        ceiling = heights[index] = min(heights[index], ceiling - gap)
    for height, (_, text, color) in zip(heights, ordered, strict=True):
        axes.annotate(
            text,
            (last, height),
            xytext=(8, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
