"""How well a PRM knows right steps from wrong ones on traces of another length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prmkit.evaluation.prm_metrics import auroc, prm_figures

__all__ = ["transfer"]

BANDS = ((1, 4), (5, 8), (9, 16), (17, 26))


def transfer(traces: Path, scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Metrics of one PRM's scores of traces, all of them against the exact truth of each line given the line before.

    Returns:
        `prm_figures` up to the first wrong step; `auroc_all` over all steps; `auroc_after` over those after the first
        wrong one; `auroc_by_step` over all by number of the step, in BANDS; and two that need
        no truth about steps: `answer_auroc`, the lowest score of a trace against whether its answer is right, and
        `drift`, the mean score of the last quarter of a trace's steps less that of the first.
    """
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    truth = [np.array(row["right"], dtype=bool) for row in rows]
    values = [np.array(found) for found in scores]
    after = [np.cumsum(~right) - (~right) > 0 for right in truth]  # behind the first wrong step
    number = [np.arange(1, len(right) + 1) for right in truth]
    everything = [np.concatenate(items) for items in (values, truth, after, number)]
    score, right, late, step = everything
    found: dict[str, Any] = {
        name: value for name, value in prm_figures(values, truth).items() if name in ("auroc", "step_accuracy", "ece")
    }
    found["auroc_all"] = auroc(score, right)
    found["auroc_after"] = auroc(score[late], right[late])
    found["auroc_by_step"] = {f"{a}-{b}": auroc(*_where((step >= a) & (step <= b), score, right)) for a, b in BANDS}
    lowest = np.array([found.min() if len(found) else 0.0 for found in values])
    found["answer_auroc"] = auroc(lowest, np.array([row["correct"] for row in rows], dtype=bool))
    quarters = [(found[: len(found) // 4], found[-(len(found) // 4) :]) for found in values if len(found) >= 4]
    found["drift"] = float(np.mean([last.mean() - first.mean() for first, last in quarters]))
    return found


def _where(mask: npt.NDArray[np.bool_], *arrays: Any) -> list[Any]:
    return [array[mask] for array in arrays]
