"""The exhibit of over-optimisation as a picture: what the PRM says of the rollouts, and what the verifier says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_exhibit"]


def draw_exhibit(run: dict[str, Any], path: Path, other: dict[str, Any] | None = None) -> None:
    """Write a PNG.

    Args:
        run: of the PRM as only reward, watched by guards that warn.
        path: the file.
        other: of the outcome as reward, for comparison.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = run["iterations"]
    updates = range(len(lines))
    axes.plot(updates, [line["score"] for line in lines], color="tab:orange", label="lowest step score by the PRM")
    axes.plot(updates, [line["outcome"] for line in lines], color="tab:blue", label="right by the verifier (pass@1)")
    if other is not None:
        outcome = [line["outcome"] for line in other["iterations"]]
        label = "pass@1 with the outcome as reward"
        axes.plot(range(len(outcome)), outcome, color="tab:grey", linestyle=":", label=label)
    if run["guards"]["warnings"]:
        step, said = run["guards"]["warnings"][0]
        axes.axvline(step, color="tab:red", linestyle="--", label=f"guards warn at update {step}: {said}")
        axes.axvline(run["guards"]["good_step"], color="tab:green", linestyle="--", label="weights a rollback restores")
    axes.set(xlabel="update", ylabel="mean over the rollouts", ylim=(-0.02, 1.02))
    axes.set_title("GRPO with the PRM as only reward", fontsize="medium")
    axes.legend(fontsize="x-small", loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
