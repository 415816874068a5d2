"""Mean and spread over what a mask marks, in a form that adds up over ranks; and whitening by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "whiten"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares of some numbers. Those of a global batch are the sum of those of its parts.

    Attributes:
        sums: [3] float64: count, sum, sum of squares. All-reduce this tensor to have the moments of all ranks.
    """

    sums: Tensor

    @classmethod
    def of(cls, values: Tensor, mask: Tensor) -> Moments:
        """Moments of the values where mask is True; what stands elsewhere, NaN included, does not matter."""
        kept = values.detach()[mask].double()
        return cls(torch.stack([torch.tensor(kept.numel(), device=kept.device), kept.sum(), kept.square().sum()]))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.sums + other.sums)

    @property
    def mean(self) -> Tensor:
        """Scalar; 0 for no values."""
        return self.sums[1] / self.sums[0].clamp(min=1)

    @property
    def std(self) -> Tensor:
        """Standard deviation with Bessel's correction (divided by count - 1), a scalar; 0 for fewer than two values."""
        count, squares = self.sums[0], self.sums[2]
        variance = (squares - count * self.mean.square()) / (count - 1).clamp(min=1)
        return torch.where(count > 1, variance.clamp(min=0).sqrt(), 0.0)


def whiten(
    values: Tensor, mask: Tensor, moments: Moments | None = None, shift_mean: bool = True, epsilon: float = 1e-8
) -> Tensor:
    """(x - mean) / (std + epsilon) where mask is True, 0 elsewhere. REINFORCE++ normalises advantages so, over the
    global batch (arXiv 2501.03262).

    Args:
        values: any shape.
        mask: same shape, bool, True where a value counts.
        moments: over all ranks; None takes those of `values` alone.
        shift_mean: subtract the mean; False only scales.
        epsilon: added to the standard deviation, above 0.
    """
    moments = Moments.of(values, mask) if moments is None else moments
    centre = moments.mean if shift_mean else torch.zeros_like(moments.mean)
    scaled = (values.detach().double() - centre) / (moments.std + epsilon)
    return torch.where(mask, scaled, 0.0).to(values.dtype)
