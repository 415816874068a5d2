"""Generator against trainer: importance weights for the small disagreement of two implementations of one policy.

The engine that samples and the model that is trained compute the same log-probabilities by different kernels, in
different precision, or at different weight versions. Treating the samples as the trainer's own biases the gradient; the
weights w = pi_trainer / pi_generator undo it, truncated or masked to bound their variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prmkit.errors import ConfigError
from prmkit.losses.output import MetricSum
from prmkit.losses.policy import LOG_RATIO_LIMIT

__all__ = ["Correction", "CorrectionConfig", "importance_correction"]


@dataclass(frozen=True)
class CorrectionConfig:
    """How samples of the generator are weighed.

    Attributes:
        level: one weight a "token", or one for the whole "sequence": the product over its tokens.
        mode: "truncate": min(w, high) (TIS). "mask": w within [low, high], else 0 (MIS).
        low: lower bound of "mask", in [0, 1].
        high: upper bound, at least 1.
    """

    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        for name, accepted in (("level", ("token", "sequence")), ("mode", ("truncate", "mask"))):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"correction.{name}", getattr(self, name), " | ".join(accepted))
        if not 0.0 <= self.low <= 1.0:
            raise ConfigError("correction.low", self.low, "a number in [0, 1]")
        if not self.high >= 1.0:
            raise ConfigError("correction.high", self.high, "a number of at least 1")


@dataclass(frozen=True, slots=True)
class Correction:
    """Weights, and how far generator and trainer are apart.

    Attributes:
        weights: [B, T] float32, without gradient; 0 where the mask is False.
        metrics: over tokens: "weight"; "cut" (share truncated or masked); "gap" (|log w| of the token);
            "generator_kl" (k3 estimate of KL(generator || trainer)).
    """

    weights: Tensor
    metrics: Mapping[str, MetricSum]


def importance_correction(
    trainer_logprobs: Tensor, generator_logprobs: Tensor, mask: Tensor, config: CorrectionConfig
) -> Correction:
    """Importance weights of generator against trainer, for `policy_loss(correction=...)`.

    Masked tokens keep their place in the count: a weight of 0 is part of the estimate, and the divisor is known before
    the weights are.

    Args:
        trainer_logprobs: [B, T] of the sampled tokens by the trainer, with the weights at the beginning of the
            iteration (the `old_logprobs` of the loss).
        generator_logprobs: [B, T] by the engine, under the distribution it sampled from.
        mask: [B, T] bool, True where a token counts.
        config: see CorrectionConfig.
    """
    difference = trainer_logprobs.detach().float() - generator_logprobs.detach().float()
    difference = torch.where(mask, difference, 0.0)
    log_weight = difference.sum(1, keepdim=True).expand_as(mask) if config.level == "sequence" else difference
    weight = log_weight.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if config.mode == "truncate":
        cut = weight > config.high
        kept = weight.clamp(max=config.high)
    else:
        cut = (weight < config.low) | (weight > config.high)
        kept = torch.where(cut, 0.0, weight)
    clamped = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    metrics = {
        "weight": MetricSum.over(kept, mask),
        "cut": MetricSum.over(cut, mask),
        "gap": MetricSum.over(difference.abs(), mask),
        "generator_kl": MetricSum.over(clamped.exp() - 1.0 - clamped, mask),
    }
    return Correction(torch.where(mask, kept, 0.0), metrics)
