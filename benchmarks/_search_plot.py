"""Over-optimisation and its cure as a picture: accuracy over the budget before and after, by vote and by maximum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]

_GUIDES = {"own_merged": ":", "own": "--", "cured": "-"}
_COLORS = {
    "best_of_n": "#D55E00",
    "beam_search": "#0072B2",
    "dvts": "#009E73",
    "rebase": "#CC79A7",
    "compute_optimal": "#222222",
}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG.

    Args:
        figures: of `_search_curves.over_optimisation`.
        path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.6, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, selection in zip(panels, ("product_vote", "product_max"), strict=True):
        for guide, line in _GUIDES.items():
            for method, color in _COLORS.items():
                budgets = figures[guide].get(method, {})
                cells = [found[selection] for found in budgets.values()]
                means, errors = [cell["mean"] for cell in cells], [cell["se"] for cell in cells]
                label = {"own": None, "cured": method, "own_merged": f"{method}, equal steps merged"}[guide]
                if cells:
                    axes.errorbar(
                        list(map(int, budgets)), means, errors, color=color, linestyle=line, marker=".", label=label
                    )
        axes.set(title=selection, xlabel="tokens a problem, at most", xscale="log")
        budgets = list(map(int, figures["own"]["best_of_n"]))
        axes.set_xticks(budgets, list(map(str, budgets)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("problems answered right")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title="dashed: the pair's own PRM\nsolid: the cured one",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
