"""What the second iteration adds, as a picture; by itself it draws results/loop.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["PICTURE", "draw_loop"]

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "loop.png"
PANELS = {"pass_at_1": "pass@1", "accuracy": "PRM vote", "prm_auroc": "AUROC of the PRM"}


def draw_loop(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a PNG: a panel a figure, a line a seed from the first pair to the second.

    Args:
        runs: by seed, as in results/loop.json.
        path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for number, (seed, run) in enumerate(runs.items()):
            color = f"C{number}"
            axes.plot([0, 1], [run["first"][name], run["second"][name]], "o-", color=color, label=f"seed {seed}")
            axes.plot([1.08], [run["control"][name]], "o", color=color, fillstyle="none")
            if name == "prm_auroc":
                axes.plot([1.16], [run["new_samples"]["first"]["auroc"]], "x", color=color)
        axes.plot([], [], "o", color="grey", fillstyle="none", label="labels of the first policy")
        axes.plot([], [], "x", color="grey", label="the first PRM")
        axes.set(xlim=(-0.15, 1.3))
        axes.set_xticks([0, 1], ["first pair", "second"])
        axes.set_title(title, fontsize="medium")
        axes.grid(axis="y", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw_loop(json.loads((HERE / "results" / "loop.json").read_text())["figures"]["runs"], PICTURE)
    print(PICTURE)
