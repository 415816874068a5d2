"""Over-optimisation and its cure as a picture: what the PRM says of the rollouts, and what the verifier says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_exhibit"]


def draw_exhibit(loose: dict[str, Any], held: dict[str, Any], outcome: dict[str, Any], path: Path) -> None:
    """Write a PNG.

    Args:
        loose: run of the PRM as only reward, watched by guards that warn.
        held: the same with a pull to the reference.
        outcome: run with the outcome as reward, for comparison.
        path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    titles = ("nothing holds the policy", "pull to the reference, steps judged one by one")
    for axes, run, title in zip(figure.subplots(1, 2, sharey=True), (loose, held), titles, strict=True):
        axes.plot(run["iterations"]["score"], color="tab:orange", label="lowest step score by the PRM")
        axes.plot(run["iterations"]["outcome"], color="tab:blue", label="pass@1 by the verifier")
        verified = outcome["iterations"]["outcome"]
        label = "pass@1 with the outcome as reward"
        axes.plot(verified, color="tab:grey", linestyle=":", label=label)
        if run["guards"]["warnings"]:
            step, good = run["guards"]["warnings"][0][0], run["guards"]["good_step"]
            axes.axvline(step, color="tab:red", linestyle="--", label=f"guards warn (update {step})")
            axes.axvline(good, color="tab:green", linestyle="--", label=f"weights a rollback restores (update {good})")
        axes.set(xlabel="update", ylim=(-0.02, 1.02))
        axes.set_title(title, fontsize="medium")
        axes.legend(fontsize="x-small", loc="center right" if run is loose else "lower right")
    figure.axes[0].set_ylabel("mean over the rollouts")
    figure.suptitle("GRPO with the PRM as only reward", fontsize="large")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
