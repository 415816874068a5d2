"""Losses: pure functions on tensors that return sums and counts, and the one place that divides."""

from prmkit.losses.normalise import normalise, window_total, world_size
from prmkit.losses.output import LossOutput
from prmkit.losses.prm import (
    PRM_LOSSES,
    PRMLossKind,
    hard_cross_entropy,
    log_odds,
    mean_squared_error,
    pairwise,
    soft_cross_entropy,
    step_loss,
)
from prmkit.losses.tokens import CHUNK_LOGITS, predicted_positions, token_cross_entropy

__all__ = [
    "CHUNK_LOGITS",
    "PRM_LOSSES",
    "LossOutput",
    "PRMLossKind",
    "hard_cross_entropy",
    "log_odds",
    "mean_squared_error",
    "normalise",
    "pairwise",
    "predicted_positions",
    "soft_cross_entropy",
    "step_loss",
    "token_cross_entropy",
    "window_total",
    "world_size",
]
