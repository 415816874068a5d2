"""The loss of an implicit process reward model: a language model whose log-ratio says how good a solution is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prmkit.errors import ConfigError
from prmkit.losses.output import LossOutput, MetricSum
from prmkit.losses.policy import LOG_RATIO_LIMIT

__all__ = ["ImplicitLossOutput", "implicit_prm_loss"]


@dataclass(frozen=True, slots=True)
class ImplicitLossOutput:
    """The loss before normalisation.

    Attributes:
        loss: sum over rows with a label, and how many there are.
        metrics: over the same rows: "accuracy" (share whose side of 1/2 is the label's); over right rows "right", over
            wrong rows "wrong" (their total reward).
    """

    loss: LossOutput
    metrics: Mapping[str, MetricSum]


def implicit_prm_loss(
    logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, right: Tensor, beta: float
) -> ImplicitLossOutput:
    """Cross-entropy of outcomes (PRIME, arXiv 2502.01456, equation 4), one term a solution:

        -y log sigma(R) - (1 - y) log sigma(-R),    R = sum_t beta (log pi_phi(t) - log pi_ref(t)).

    No label of a step is needed: trained so, the terms of R are rewards of tokens (arXiv 2412.01981, proposition 3.1).

    Args:
        logprobs: [B, T] under the implicit PRM; carries the gradient. Log-ratios are clamped to +-20.
        reference_logprobs: [B, T] under its reference.
        mask: [B, T] bool, True on the tokens that the policy wrote.
        right: [B] 1 for a right answer, 0 for a wrong one, NaN where nobody knows: such a row does not count.
        beta: above 0.
    """
    if not beta > 0.0:
        raise ConfigError("implicit_prm_loss.beta", beta, "a number above 0")
    ratio = (logprobs.float() - reference_logprobs.detach().float()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    total = beta * torch.where(mask, ratio, 0.0).sum(1)
    known = ~right.isnan() & mask.any(1)
    label = torch.where(known, right, 0.0).to(total.dtype)
    terms = torch.nn.functional.binary_cross_entropy_with_logits(total, label, reduction="none")
    metrics = {
        "accuracy": MetricSum.over((total > 0) == (label > 0.5), known),
        "right": MetricSum.over(total, known & (label > 0.5)),
        "wrong": MetricSum.over(total, known & (label <= 0.5)),
    }
    return ImplicitLossOutput(LossOutput(torch.where(known, terms, 0.0).sum(), known.sum()), metrics)
