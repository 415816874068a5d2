"""The one place that divides a loss.

An optimiser step sees a window: all micro-batches of all ranks. Its loss is the sum over the window's items divided by
their number. Trainers divide each micro-batch's loss by the number of micro-batches, and data-parallel ranks average
their gradients; both are undone here, so that the gradient does not depend on how a window is split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prmkit.dist import summed, world_size

__all__ = ["normalise", "window_total"]


def window_total(window_count: int | Tensor, device: torch.device | None = None) -> Tensor:
    """Items in a window over all ranks, an int64 scalar. Collective: every rank calls it, once a micro-batch.

    Args:
        window_count: items of this rank over all micro-batches of the window.
        device: where the process group communicates; None is the CPU.
    """
    return summed(torch.as_tensor(window_count, device=device).to(torch.int64, copy=True))


def normalise(loss_sum: Tensor, total: Tensor, accumulation: int = 1, ranks: int | None = None) -> Tensor:
    """loss_sum / total * ranks * accumulation: what to return for one micro-batch.

    The mean over `accumulation` micro-batches and over ranks of the returned values is the window's sum over the
    window's count, exactly. A window without items gives 0.

    Args:
        loss_sum: scalar, sum over this micro-batch's items.
        total: scalar, the window's items over all ranks, from `window_total`.
        accumulation: the number by which the trainer divides each micro-batch's loss.
        ranks: over how many processes gradients are averaged; None asks torch.distributed.
    """
    factor = (world_size() if ranks is None else ranks) * accumulation
    return loss_sum * (factor / total.clamp(min=1)).to(loss_sum.dtype)
