"""Losses of a process reward model, as pure functions on the logits of labelled steps.

All work on the log-odds z of a step being right, with p = sigmoid(z): a two-way head gives z = z_right - z_wrong (its
softmax is then p), a scalar head gives z itself. So one formula serves every head. All return sums in float32 and
counts; `prmkit.losses.normalising` divides. Targets are floats in [0, 1] and stay floats.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from prmkit.errors import DataError
from prmkit.losses.output import LossOutput
from prmkit.plugins import PRM_LOSSES

__all__ = [
    "hard_cross_entropy",
    "log_odds",
    "mean_squared_error",
    "pairwise",
    "soft_cross_entropy",
    "step_loss",
]


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of "right", [N] in float32.

    Args:
        logits: [N, 2] as (wrong, right), or [N, 1] of a scalar head.
    """
    logits = logits.float()
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return logits[..., 1] - logits[..., 0]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> LossOutput:
    """Cross-entropy with soft targets: sum over steps of -q log p - (1 - q) log(1 - p).

    The best of the three objectives tried in OmegaPRM (arXiv 2406.06592, section 3.4, pointwise soft label), with q
    the Monte-Carlo value of the step; Math-Shepherd's soft estimation (arXiv 2312.08935, equations 2 and 4).

    Args:
        logits: [N, 2] or [N, 1], see `log_odds`.
        targets: [N] q in [0, 1].

    Returns:
        Sum over the N steps, and N.
    """
    loss = binary_cross_entropy_with_logits(log_odds(logits), targets.float(), reduction="sum")
    return LossOutput.of(loss, len(targets))


def hard_cross_entropy(logits: Tensor, targets: Tensor) -> LossOutput:
    """Cross-entropy with targets 0 and 1 (arXiv 2406.06592, pointwise hard label: 1[MC > 0]).

    The formula is `soft_cross_entropy`'s. Whoever makes the targets decides what counts as right; a target in between
    means that they were not made for this loss, and is refused.

    Args:
        logits: [N, 2] or [N, 1], see `log_odds`.
        targets: [N], each 0 or 1.

    Raises:
        DataError: a target is neither 0 nor 1.
    """
    between = (targets > 0) & (targets < 1)
    if bool(between.any()):
        value = float(targets[between][0])
        raise DataError(f'loss "hard" got the target {value:g}; make targets of 0 and 1, or train with loss "soft"')
    return soft_cross_entropy(logits, targets)


def mean_squared_error(logits: Tensor, targets: Tensor) -> LossOutput:
    """Squared error of the probability: sum over steps of (p - q)^2.

    Args:
        logits: [N, 2] or [N, 1], see `log_odds`.
        targets: [N] q in [0, 1].
    """
    loss = (torch.sigmoid(log_odds(logits)) - targets.float()).square().sum()
    return LossOutput.of(loss, len(targets))


def pairwise(logits: Tensor, targets: Tensor, pairs: Tensor) -> LossOutput:
    """Bradley-Terry cross-entropy of pairs of steps with soft preference (arXiv 2406.06592, section 3.4 and appendix).

    With values p and q of the two steps, the first is preferred with probability P = (1 + p - q) / 2: right against
    wrong counts for it, a tie counts half. The loss is -P log sigmoid(z1 - z2) - (1 - P) log sigmoid(z2 - z1), summed
    over pairs, with z the log-odds of `log_odds`.

    Args:
        logits: [N, 2] or [N, 1] of all steps in the batch.
        targets: [N] values in [0, 1].
        pairs: [P, 2] long, indices of the two steps of each pair among the N.

    Returns:
        Sum over the P pairs, and P.
    """
    z, values = log_odds(logits), targets.float()
    first, second = pairs[:, 0], pairs[:, 1]
    preference = (1 + values[first] - values[second]) / 2
    loss = binary_cross_entropy_with_logits(z[first] - z[second], preference, reduction="sum")
    return LossOutput.of(loss, len(pairs))


def step_loss(kind: str, logits: Tensor, targets: Tensor, pairs: Tensor | None = None) -> LossOutput:
    """The loss of a kind in `prmkit.plugins.PRM_LOSSES`; see there for arguments. `pairs` goes to losses that take it.

    Raises:
        ConfigError: unknown kind.
        DataError: "pairwise" without pairs.
    """
    loss: Callable[..., LossOutput] = PRM_LOSSES.find(kind, "loss")
    if "pairs" not in inspect.signature(loss).parameters:
        return loss(logits, targets)
    if pairs is None:
        raise DataError(f'loss "{kind}" needs batches with pairs of steps; the data module gives none')
    return loss(logits, targets, pairs)
