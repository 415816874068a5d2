"""Metrics of a process reward model on labelled steps, as torchmetrics with states that sum over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryCalibrationError, BinaryF1Score

from prmkit.errors import ConfigError

__all__ = ["FIRST_ERROR_NONE", "FIRST_ERROR_UNKNOWN", "FirstErrorF1", "StepMetrics", "predicted_first_error"]

FIRST_ERROR_NONE = -1
FIRST_ERROR_UNKNOWN = -2
_IGNORED = -1


class StepMetrics(MetricCollection):
    """Metrics of single steps, "right" being the positive class: accuracy, AUROC, F1, and calibration error.

    AUROC is exact; calibration error is the expected one (L1) over 15 equal bins.

    Args:
        threshold: a score above it means "right"; in [0, 1].
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__(
            {
                "step_accuracy": BinaryAccuracy(threshold, ignore_index=_IGNORED),
                "auroc": BinaryAUROC(ignore_index=_IGNORED),
                "f1": BinaryF1Score(threshold, ignore_index=_IGNORED),
                "calibration_error": BinaryCalibrationError(n_bins=15, norm="l1", ignore_index=_IGNORED),
            },
            # Groups share the states of metrics that happen to agree on the first batch.
            compute_groups=False,
        )

    def update(self, scores: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Count steps; none at all is allowed.

        Args:
            scores: [N] in [0, 1].
            labels: [N] long, 1 for right, 0 for wrong.
        """
        # torchmetrics refuses empty input, yet a rank that never updates would hang the others when states are
        # gathered: one ignored item makes both cases ordinary.
        super().update(pad(scores, (0, 1), value=0.5), pad(labels, (0, 1), value=_IGNORED))


def predicted_first_error(scores: Tensor, position_mask: Tensor, threshold: float) -> Tensor:
    """First step of each trace with a score below a threshold, [B] long; -1 where there is none.

    Args:
        scores: [N] in [0, 1], of the steps that position_mask marks, row by row.
        position_mask: [B, S] True where step s of row b has a score.
        threshold: scores below it mean "wrong".
    """
    grid = torch.full(position_mask.shape, float("inf"), dtype=scores.dtype, device=scores.device)
    grid[position_mask] = scores
    wrong = grid < threshold
    return torch.where(wrong.any(dim=1), wrong.int().argmax(dim=1), FIRST_ERROR_NONE)


class FirstErrorF1(Metric):
    """F1 of finding the first wrong step, as ProcessBench defines it (arXiv 2412.06559).

    It is the harmonic mean of two accuracies: over traces with an error, how often the predicted first error is the
    true one; over traces without, how often none is predicted. A subset of the benchmark has one such figure. A step is
    predicted wrong when its score lies below the threshold.

    Args:
        threshold: in [0, 1].
    """

    full_state_update = False
    higher_is_better = True
    erroneous_hits: Tensor
    erroneous: Tensor
    correct_hits: Tensor
    correct: Tensor

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError("threshold", threshold, "a number in [0, 1]")
        self.threshold = threshold
        for name in ("erroneous_hits", "erroneous", "correct_hits", "correct"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, position_mask: Tensor, first_error: Tensor) -> None:
        """Count a batch of traces.

        Args:
            scores: [N] in [0, 1], of the steps that position_mask marks, row by row.
            position_mask: [B, S] True where step s of row b has a score.
            first_error: [B] index of the first wrong step, -1 for none, -2 for unknown (not counted).
        """
        hit = predicted_first_error(scores, position_mask, self.threshold) == first_error
        erroneous, correct = first_error >= 0, first_error == FIRST_ERROR_NONE
        self.erroneous_hits += (hit & erroneous).sum()
        self.erroneous += erroneous.sum()
        self.correct_hits += (hit & correct).sum()
        self.correct += correct.sum()

    def compute(self) -> Tensor:
        """The F1 in [0, 1]; NaN as long as one of the two kinds of traces has not been seen."""
        on_erroneous = self.erroneous_hits.float() / self.erroneous
        on_correct = self.correct_hits.float() / self.correct
        f1 = 2 * on_erroneous * on_correct / (on_erroneous + on_correct)
        return torch.where(on_erroneous + on_correct == 0, torch.zeros_like(f1), f1)
