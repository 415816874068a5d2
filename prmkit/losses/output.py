"""What a loss returns: a sum and a count. Nothing here divides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LossOutput"]


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
