"""Kullback-Leibler divergence from a reference policy, estimated from sampled tokens, as a loss.

With d = log pi - log pi_ref of a token drawn from pi (Schulman, "Approximating KL divergence", 2020):

    k1 = d,    k2 = d^2 / 2,    k3 = exp(-d) - 1 + d.

As values, k1 and k3 are unbiased for KL(pi || pi_ref), k2 is biased; k3 is never negative and varies less than k1. As
losses they are something else, since the gradient does not pass through the drawing of tokens (arXiv 2506.09477):
the expected gradient of k1 is 0; that of k3 is the gradient of the *other* divergence KL(pi_ref || pi); that of k2 is
the gradient of KL(pi || pi_ref). "k3_k2" has the value of k3 and the gradient of k2.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from prmkit.errors import ConfigError
from prmkit.losses.output import LossOutput
from prmkit.losses.policy import LOG_RATIO_LIMIT, RowWeights, weighted_sum

__all__ = ["KL_ESTIMATORS", "KLEstimator", "categorical_kl", "entropy_loss", "kl_loss", "kl_terms"]

KLEstimator = Literal["k1", "k2", "k3", "k3_k2"]
KL_ESTIMATORS: tuple[KLEstimator, ...] = get_args(KLEstimator)


def kl_terms(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """The estimate for every token, [B, T] in float32. See the module for values and gradients.

    d is clamped to +-20; beyond it no gradient flows.

    Args:
        logprobs: [B, T] under the policy that is trained; carries the gradient.
        reference_logprobs: [B, T] under the reference.
        estimator: one of KL_ESTIMATORS; "k3" is GRPO's (arXiv 2402.03300, equation 4).

    Raises:
        ConfigError: unknown estimator.
    """
    d = (logprobs.float() - reference_logprobs.detach().float()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    match estimator:
        case "k1":
            return d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.expm1(-d) + d
        case "k3_k2":
            k2 = d.square() / 2
            return k2 + (torch.expm1(-d) + d - k2).detach()
    raise ConfigError("kl.estimator", estimator, " | ".join(KL_ESTIMATORS))


def kl_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    rows: RowWeights,
    estimator: KLEstimator = "k3",
    ratio: Tensor | None = None,
) -> LossOutput:
    """Sum of the estimates over tokens, weighed as the policy loss is; multiply by the coefficient beta.

    Args:
        logprobs, reference_logprobs: [B, T], see `kl_terms`.
        mask: [B, T] bool, True where a token counts.
        rows: from `row_weights`.
        estimator: one of KL_ESTIMATORS.
        ratio: [B, T] pi / pi_old, for tokens drawn from pi_old: with it the value is unbiased, and where it carries a
            gradient, the gradient of k1 and k3 is that of KL(pi || pi_ref) too. None takes the tokens as pi's own.
    """
    new, reference = torch.where(mask, logprobs, 0.0), torch.where(mask, reference_logprobs, 0.0)
    terms = kl_terms(new, reference, estimator)
    return weighted_sum(terms if ratio is None else terms * ratio, mask, rows)


def entropy_loss(entropy: Tensor, mask: Tensor, rows: RowWeights) -> LossOutput:
    """Minus the sum of entropies over tokens, weighed as the policy loss is; multiply by a coefficient of at least 0.

    Args:
        entropy: [B, T] of the whole distribution at each token (`token_logprobs`), not of the token drawn.
        mask: [B, T] bool, True where a token counts.
        rows: from `row_weights`.
    """
    return weighted_sum(-entropy, mask, rows)


def categorical_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Exact KL(pi || pi_ref) over the vocabulary, [...] in nats and float32, from logits [..., V]."""
    log_p, log_q = logits.float().log_softmax(-1), reference_logits.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
