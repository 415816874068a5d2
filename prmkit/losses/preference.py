"""Offline losses on the policy: preferences (DPO, step-DPO, IPO) and advantage-weighted regression.

Rejection-sampling fine-tuning needs none of these: it is `token_cross_entropy` on solutions that were graded right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prmkit.errors import ConfigError
from prmkit.losses.output import LossOutput, MetricSum
from prmkit.losses.policy import PolicyLossOutput, RowWeights, weighted_sum

__all__ = [
    "PREFERENCE_LOSSES",
    "PreferenceConfig",
    "PreferenceLossKind",
    "PreferenceOutput",
    "advantage_weighted_regression",
    "logprob_sums",
    "preference_loss",
]

PreferenceLossKind = Literal["dpo", "ipo"]
PREFERENCE_LOSSES: tuple[PreferenceLossKind, ...] = get_args(PreferenceLossKind)


@dataclass(frozen=True)
class PreferenceConfig:
    """Which preference loss.

    Attributes:
        kind: "dpo" or "ipo".
        beta: strength of the pull towards the reference, above 0 (tau in IPO's paper).
        label_smoothing: share of pairs whose preference is taken to be the wrong way round, in [0, .5); only "dpo".
    """

    kind: PreferenceLossKind = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in PREFERENCE_LOSSES:
            raise ConfigError("preference.kind", self.kind, " | ".join(PREFERENCE_LOSSES))
        if not self.beta > 0.0:
            raise ConfigError("preference.beta", self.beta, "a number above 0")
        if not 0.0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.kind != "dpo"):
            raise ConfigError("preference.label_smoothing", self.label_smoothing, "a number in [0, .5); 0 with ipo")


@dataclass(frozen=True, slots=True)
class PreferenceOutput:
    """A preference loss before normalisation.

    Attributes:
        loss: sum over pairs, and their number.
        metrics: over pairs: "accuracy" (chosen above rejected, ties half), "margin", "chosen_reward" and
            "rejected_reward" (beta times the log-ratio to the reference).
    """

    loss: LossOutput
    metrics: Mapping[str, MetricSum]


def logprob_sums(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of what a mask marks, [B] in float32.

    For DPO the mask marks the whole solution. For step-DPO (arXiv 2406.18629) it marks one step: both members of a pair
    share problem and prefix, and only the step that differs counts.

    Args:
        logprobs: [B, T].
        mask: [B, T] bool, True where a token counts.
    """
    return torch.where(mask, logprobs.float(), 0.0).sum(1)


def preference_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, config: PreferenceConfig
) -> PreferenceOutput:
    """Preference loss of P pairs. With h = (chosen - reference_chosen) - (rejected - reference_rejected):

    - "dpo": -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e the label smoothing (arXiv 2305.18290, equation 7;
      smoothing as in its authors' note on conservative DPO).
    - "ipo": (h - 1 / (2 beta))^2 (arXiv 2310.12036, equation 17), on sums of log-probabilities.

    Args:
        chosen, rejected: [P] log-probabilities (`logprob_sums`) under the policy that is trained; carry the gradient.
        reference_chosen, reference_rejected: [P] under the reference.
        config: see PreferenceConfig.

    Returns:
        Sum over the pairs, and P.
    """
    chosen_ratio = chosen.float() - reference_chosen.detach().float()
    rejected_ratio = rejected.float() - reference_rejected.detach().float()
    h = chosen_ratio - rejected_ratio
    if config.kind == "ipo":
        terms = (h - 1.0 / (2.0 * config.beta)).square()
    else:
        smoothing = config.label_smoothing
        terms = -(1.0 - smoothing) * logsigmoid(config.beta * h) - smoothing * logsigmoid(-config.beta * h)
    every = torch.ones_like(h, dtype=torch.bool)
    metrics = {
        "accuracy": (h.detach().sign() + 1.0) / 2.0,
        "margin": config.beta * h,
        "chosen_reward": config.beta * chosen_ratio,
        "rejected_reward": config.beta * rejected_ratio,
    }
    return PreferenceOutput(
        LossOutput.of(terms.sum(), len(h)), {name: MetricSum.over(figure, every) for name, figure in metrics.items()}
    )


def advantage_weighted_regression(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    rows: RowWeights,
    temperature: float = 1.0,
    max_weight: float = 20.0,
) -> PolicyLossOutput:
    """-min(exp(A / temperature), max_weight) log pi, summed over tokens (AWR, arXiv 1910.00177, algorithm 1 and
    section 5 for the bound on the weight).

    Metrics, over tokens: "weight", and "bounded" (share at the bound).

    Args:
        logprobs: [B, T] under the policy that is trained; carries the gradient.
        advantages: [B, T], or [B, 1] for one a row.
        mask: [B, T] bool, True where a token counts.
        rows: from `row_weights`.
        temperature: above 0; smaller trusts advantages more.
        max_weight: above 0.
    """
    if not temperature > 0.0:
        raise ConfigError("awr.temperature", temperature, "a number above 0")
    if not max_weight > 0.0:
        raise ConfigError("awr.max_weight", max_weight, "a number above 0")
    scaled = torch.where(mask, advantages.detach().float() / temperature, 0.0)
    # The bound is put on the exponent: exp of a large advantage would be infinite before it is cut.
    limit = torch.tensor(max_weight, device=scaled.device).log()
    weights = torch.minimum(scaled, limit).exp()
    loss = weighted_sum(-weights * torch.where(mask, logprobs.float(), 0.0), mask, rows)
    metrics = {"weight": MetricSum.over(weights, mask), "bounded": MetricSum.over(scaled > limit, mask)}
    return PolicyLossOutput(loss, metrics)
