"""What a loss returns: sums and counts. Nothing here divides but for the logs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LossOutput", "MetricSum"]


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss before normalisation.

    Attributes:
        loss_sum: scalar, float32, sum over the items; carries the gradient.
        count: scalar, int64, number of items in the sum.
    """

    loss_sum: Tensor
    count: Tensor

    @classmethod
    def of(cls, loss_sum: Tensor, count: int) -> LossOutput:
        """A sum with a count known on the host."""
        return cls(loss_sum, torch.tensor(count, device=loss_sum.device))

    @property
    def mean(self) -> Tensor:
        """Mean over the items of this output alone, without gradient: for logs. 0 for no items."""
        return self.loss_sum.detach() / self.count.clamp(min=1)


@dataclass(frozen=True, slots=True)
class MetricSum:
    """A figure for the logs as sum and count, without gradient. Adds up over micro-batches and ranks.

    Attributes:
        total: scalar, float32.
        count: scalar, int64.
    """

    total: Tensor
    count: Tensor

    @classmethod
    def over(cls, values: Tensor, mask: Tensor) -> MetricSum:
        """Sum of the values where mask is True, and how many there are."""
        return cls(torch.where(mask, values.detach().float(), 0.0).sum(), mask.sum())

    def __add__(self, other: MetricSum) -> MetricSum:
        return MetricSum(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """0 for no items."""
        return self.total / self.count.clamp(min=1)
