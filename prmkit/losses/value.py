"""Losses of a critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prmkit.errors import ConfigError
from prmkit.losses.output import LossOutput, MetricSum

__all__ = ["TwoLevelValueLoss", "ValueLossOutput", "explained_variance", "two_level_value_loss", "value_loss"]


@dataclass(frozen=True, slots=True)
class ValueLossOutput:
    """A critic's loss before normalisation.

    Attributes:
        loss: sum and count over entries that count.
        metrics: over the same entries: "clipped" (share whose gradient the clip removed), "value", "return",
            "return_squared", "error_squared" (of the values as they are); see `explained_variance`.
    """

    loss: LossOutput
    metrics: Mapping[str, MetricSum]


@dataclass(frozen=True, slots=True)
class TwoLevelValueLoss:
    """Losses of a critic with two heads. They have different counts: normalise each by its own, then add.

    Attributes:
        token: of the head on tokens.
        step: of the head on steps.
    """

    token: ValueLossOutput
    step: ValueLossOutput


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2
) -> ValueLossOutput:
    """Half the squared error, clipped around the old values, summed over entries that count:

        max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2.

    The larger of the two: a value that has moved more than c towards its target gets no further gradient. It comes
    with the code of PPO (arXiv 1707.06347), not with its text; arXiv 2005.12729, section 3, describes it.

    Args:
        values: [B, T] (or [B, S]) by the critic that is trained; carries the gradient.
        old_values: same shape, by the critic at the beginning of the iteration; ignored without clip.
        returns: same shape, targets (`Estimates.returns`).
        mask: same shape, bool, True where an entry counts.
        clip: c, above 0, in units of the reward; None does not clip.
    """
    if clip is not None and not clip > 0.0:
        raise ConfigError("value_loss.clip", clip, "a number above 0, or None")
    values = torch.where(mask, values.float(), 0.0)
    target = torch.where(mask, returns.detach().float(), 0.0)
    errors = (values - target).square()
    terms, clipped = errors, torch.zeros_like(mask)
    if clip is not None:
        old = torch.where(mask, old_values.detach().float(), 0.0)
        near = (old + (values - old).clamp(-clip, clip) - target).square()
        terms, clipped = torch.maximum(errors, near), near > errors
    metrics = {
        "clipped": clipped,
        "value": values,
        "return": target,
        "return_squared": target.square(),
        "error_squared": errors,
    }
    return ValueLossOutput(
        LossOutput(terms.sum() / 2, mask.sum()),
        {name: MetricSum.over(figure, mask) for name, figure in metrics.items()},
    )


def two_level_value_loss(
    token: tuple[Tensor, Tensor, Tensor, Tensor],
    step: tuple[Tensor, Tensor, Tensor, Tensor],
    clip: float | None = 0.2,
) -> TwoLevelValueLoss:
    """`value_loss` of both heads, for `two_level_gae`.

    Args:
        token: (values, old values, returns, mask), each [B, T].
        step: the same, each [B, S].
        clip: as in `value_loss`, for both.
    """
    return TwoLevelValueLoss(value_loss(*token, clip=clip), value_loss(*step, clip=clip))


def explained_variance(metrics: Mapping[str, MetricSum]) -> Tensor:
    """1 - mean squared error / variance of the returns, from summed metrics, a scalar: 1 is a perfect critic, 0 one
    that says the mean. NaN where all returns are the same."""
    variance = metrics["return_squared"].mean - metrics["return"].mean.square()
    return torch.where(variance > 0, 1 - metrics["error_squared"].mean / variance, torch.nan)
