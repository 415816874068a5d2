"""Losses: pure functions on tensors that return sums and counts, and the one place that divides."""

from prmkit.losses.implicit import ImplicitLossOutput, implicit_prm_loss
from prmkit.losses.kl import KL_ESTIMATORS, KLEstimator, categorical_kl, entropy_loss, kl_loss, kl_terms
from prmkit.losses.normalising import normalise, window_total
from prmkit.losses.output import LossOutput, MetricSum
from prmkit.losses.policy import (
    LOG_RATIO_LIMIT,
    REDUCTIONS,
    PolicyLossConfig,
    PolicyLossOutput,
    Reduction,
    RowWeights,
    cispo_terms,
    clipped_terms,
    group_totals,
    importance_ratio,
    policy_loss,
    row_weights,
    weighted_sum,
)
from prmkit.losses.policy_correction import Correction, CorrectionConfig, importance_correction
from prmkit.losses.policy_logprobs import TokenLogprobs, on_grid, token_logprobs
from prmkit.losses.preference import (
    PREFERENCE_LOSSES,
    PreferenceConfig,
    PreferenceLossKind,
    PreferenceOutput,
    advantage_weighted_regression,
    logprob_sums,
    preference_loss,
)
from prmkit.losses.prm import (
    hard_cross_entropy,
    log_odds,
    mean_squared_error,
    pairwise,
    soft_cross_entropy,
    step_loss,
)
from prmkit.losses.tokens import CHUNK_LOGITS, predicted_positions, token_cross_entropy
from prmkit.losses.value import TwoLevelValueLoss, ValueLossOutput, explained_variance, two_level_value_loss, value_loss

__all__ = [
    "CHUNK_LOGITS",
    "KL_ESTIMATORS",
    "LOG_RATIO_LIMIT",
    "PREFERENCE_LOSSES",
    "REDUCTIONS",
    "Correction",
    "CorrectionConfig",
    "ImplicitLossOutput",
    "KLEstimator",
    "LossOutput",
    "MetricSum",
    "PolicyLossConfig",
    "PolicyLossOutput",
    "PreferenceConfig",
    "PreferenceLossKind",
    "PreferenceOutput",
    "Reduction",
    "RowWeights",
    "TokenLogprobs",
    "TwoLevelValueLoss",
    "ValueLossOutput",
    "advantage_weighted_regression",
    "categorical_kl",
    "cispo_terms",
    "clipped_terms",
    "entropy_loss",
    "explained_variance",
    "group_totals",
    "hard_cross_entropy",
    "implicit_prm_loss",
    "importance_correction",
    "importance_ratio",
    "kl_loss",
    "kl_terms",
    "log_odds",
    "logprob_sums",
    "mean_squared_error",
    "normalise",
    "on_grid",
    "pairwise",
    "policy_loss",
    "predicted_positions",
    "preference_loss",
    "row_weights",
    "soft_cross_entropy",
    "step_loss",
    "token_cross_entropy",
    "token_logprobs",
    "two_level_value_loss",
    "value_loss",
    "weighted_sum",
    "window_total",
]
