"""Batches that data modules hand to LightningModules. B rows, T tokens, S steps; masks are True where it counts.

They are records: nobody assigns their fields. They are not frozen, because the precision plugins of Lightning that
convert inputs (DeepSpeed's, FSDP's, "bf16-true") refuse frozen dataclasses and write converted copies field by field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Batch", "PRMBatch", "PairBatch", "SFTBatch", "TensorBatch"]


class Batch(Protocol):
    """What loaders need of a batch.

    Attributes:
        ids: [B] row ids; "" for a filler row, which counts nowhere.
        window_count: items of this rank over the whole accumulation window; 0 until the loader has stamped it.
    """

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def window_count(self) -> int: ...

    @property
    def count(self) -> int:
        """Items (tokens, steps or pairs) that this micro-batch's loss sums over."""
        ...

    def with_window(self, window_count: int) -> Self: ...

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self: ...

    def pin_memory(self) -> Self: ...


@dataclass(eq=False, kw_only=True)
class TensorBatch:
    """Moves all tensor fields at once.

    Attributes:
        ids: [B] row ids; "" for a filler row, which counts nowhere.
        window_count: items of this rank over all micro-batches of one optimiser step. The gradient of the step is
            the sum over the window divided by this number summed over ranks.
    """

    ids: tuple[str, ...]
    window_count: int = 0

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{**values, **changed})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy with its tensors in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def with_window(self, window_count: int) -> Self:
        """A copy stamped with the items of its accumulation window."""
        return replace(self, window_count=window_count)


@dataclass(eq=False, kw_only=True)
class SFTBatch(TensorBatch):
    """Questions with solutions, for next-token prediction of the solutions.

    Attributes:
        input_ids: [B, T] long.
        attention_mask: [B, T] bool; None for packed sequences, which `position_ids` separates.
        loss_mask: [B, T] bool, True on tokens whose prediction counts: the solution and its end of sequence. Token t
            is predicted at t - 1.
        position_ids: [B, T] long, from 0 again at each packed row; None when not packed.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    loss_mask: Tensor
    position_ids: Tensor | None = None

    @property
    def count(self) -> int:
        """Tokens whose prediction counts."""
        return int(self.loss_mask.sum())


@dataclass(eq=False, kw_only=True)
class PRMBatch(TensorBatch):
    """Solutions with labels at the ends of their steps.

    Attributes:
        input_ids: [B, T] long.
        attention_mask: [B, T] bool.
        positions: [B, S] long, index into T at which each step's score is read; 0 where there is no step.
        position_mask: [B, S] bool, True at labelled steps.
        targets: [B, S] float32 in [0, 1]; 0 where not labelled.
        first_error: [B] long, index into S of the first wrong step, -1 for none, -2 when unknown.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    position_mask: Tensor
    targets: Tensor
    first_error: Tensor

    @property
    def count(self) -> int:
        """Labelled steps."""
        return int(self.position_mask.sum())


@dataclass(eq=False, kw_only=True)
class PairBatch(PRMBatch):
    """A PRMBatch with pairs of labelled steps of the same row, for the pairwise loss.

    Attributes:
        pairs: [P, 2] long, (better, worse) as indices among the labelled steps of the batch, which are numbered in
            row-major order of `position_mask`.
    """

    pairs: Tensor

    @property
    def count(self) -> int:
        """Pairs."""
        return len(self.pairs)
