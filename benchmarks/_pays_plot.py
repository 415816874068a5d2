"""Pictures of benchmarks/pays.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LABELS", "draw_headline", "draw_lengths"]

LABELS = {
    "before": "before",
    "outcome": "outcome",
    "outcome_large_groups": "outcome, groups of 32",
    "outcome_dynamic": "outcome, dynamic sampling",
    "curriculum_short": "outcome, 4 to 10 operations first",
    "curriculum_shortest": "outcome, 4 to 7 operations first",
    "curriculum_sequential": "outcome, curriculum, one length after the other",
    "curriculum_mixed": "outcome, curriculum, lengths mixed",
    "prm": "PRM alone",
    "both": "outcome and PRM",
    "both_mixed": "outcome and PRM, lengths mixed",
    "both_strong": "outcome and PRM, process weight 1",
    "both_linear": "outcome and PRM, process weight falls to 0",
    "both_unsolved": "outcome and PRM, process weight follows the unsolved groups",
    "both_short_labels": "outcome and PRM of labels of 4 to 7 operations",
    "both_step_baseline": "outcome and PRM, a baseline a step",
    "both_shuffled": "outcome and PRM of shuffled labels",
    "both_other": "outcome and another policy's PRM",
}


def draw_headline(runs: dict[str, dict[str, Any]], length: str, names: Sequence[str], path: Path) -> Path:
    """pass@1 of validation problems over sampled tokens, a line a reward, mean over seeds and the range of the seeds;
    returns the path of the PNG."""
    figure, axes = _canvas()
    for number, name in enumerate(names):
        curves = [run[length][name]["curve"] for run in runs.values() if name in run.get(length, {})]
        if not curves:
            continue
        points = [
            [(tokens, value) for tokens, value in zip(c["tokens"], c["validation"], strict=True) if value is not None]
            for c in curves
        ]
        starts = [run[length]["before"]["pass_at_1"] for run in runs.values() if name in run.get(length, {})]
        many = min(map(len, points))
        tokens = np.array([[0, *(point[0] for point in line[:many])] for line in points]).mean(0) / 1e6
        values = np.array([[start, *(p[1] for p in line[:many])] for start, line in zip(starts, points, strict=True)])
        axes.plot(tokens, values.mean(0), color=f"C{number}", marker=".", label=LABELS[name])
        axes.fill_between(tokens, values.min(0), values.max(0), color=f"C{number}", alpha=0.15, linewidth=0)
    axes.set(xlabel="tokens sampled for training, millions", ylabel="pass@1", ylim=(-0.02, 1.02))
    axes.set_title(f"Accumulator programs of {length} operations", fontsize="medium")
    axes.legend(fontsize="small", loc="upper left")
    return _save(figure, path)


def draw_lengths(final: dict[str, dict[str, Any]], names: Sequence[str], path: Path) -> Path:
    """Final pass@1 by length of the problems, a line a reward, with standard errors over seeds."""
    figure, axes = _canvas()
    for number, name in enumerate(("before", *names)):
        points = [(int(length), by[name]) for length, by in final.items() if name in by]
        if points:
            where, means = [x for x, _ in points], [value["mean"] for _, value in points]
            errors = [value["se"] or 0.0 for _, value in points]
            color = "black" if name == "before" else f"C{number - 1}"
            axes.errorbar(where, means, errors, color=color, marker=".", capsize=3, label=LABELS[name])
    axes.set(xlabel="operations", ylabel="pass@1 after 30 updates", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")
    return _save(figure, path)


def _canvas() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
