"""Key/value buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["KVSpec", "Scratch", "Slots", "round_up"]


def round_up(size: int, step: int = 32) -> int:
    """The smallest multiple of step that is at least size."""
    return -(-size // step) * step


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Sizes and type of a model's keys and values.

    Attributes:
        layers, heads, head_dim: layers, key/value heads a layer, numbers a head.
        dtype, device: of the buffer.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def column_step(self) -> int:
        """Columns are read in multiples of this.

        Attention sums over columns that are masked, too. In such multiples the extra zeros leave every bit of the
        result as it is; in others vectorised kernels group the terms differently.
        """
        return 16 if self.head_dim >= 32 else 32

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device) -> KVSpec:
        """Read from a transformers configuration."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, heads, head_dim, dtype, device)

    def allocate(self, rows: int, columns: int) -> Tensor:
        """A buffer [L, 2, rows, K, columns, D] of zeros: what was never written must be finite."""
        shape = (self.layers, 2, rows, self.heads, columns, self.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class Slots:
    """Where the new tokens of one forward go in a buffer, the same places in every layer.

    The buffer is seen as rows of D numbers, which are copied whole and in the order in which they lie in memory:
    advanced indexing over several dimensions does the same number by number.

    Args:
        kv: [L, 2, B, K, T, D], contiguous but for columns that are cut off (of a wider T).
        positions: [B*Q] column of every new token, row by row.
    """

    def __init__(self, kv: Tensor, positions: Tensor) -> None:
        _, parts, batch, heads, _, width = kv.shape
        self._layer, part, row, head, column, _ = (stride // width for stride in kv.stride())
        places = torch.arange(batch * heads, device=kv.device).view(batch, 1, heads)
        offsets = places // heads * row + places % heads * head  # [B, 1, K]
        own = offsets + positions.view(batch, -1, 1) * column  # [B, Q, K]
        pairs = torch.arange(parts, device=kv.device).view(parts, 1) * part + own.flatten()
        self._index = pairs.flatten()  # [2*B*Q*K]
        size = (
            1
            + sum((count - 1) * stride for count, stride in zip(kv.shape[1:-1], kv.stride()[1:-1], strict=True))
            // width
        )
        self._rows = [
            kv.as_strided((size, width), (width, 1), kv.storage_offset() + number * kv.stride(0))
            for number in range(len(kv))
        ]

    def write(self, layer: int, values: Tensor) -> None:
        """Keys and values [B*Q, 2, K, D] of one layer."""
        self._rows[layer].index_copy_(0, self._index, values.transpose(0, 1).reshape(-1, values.shape[-1]))


class Scratch:
    """A buffer that is used again and again under changing shapes."""

    def __init__(self, spec: KVSpec) -> None:
        self._spec = spec
        self._flat = torch.zeros(0, dtype=spec.dtype, device=spec.device)

    def take(self, rows: int, columns: int) -> Tensor:
        """[L, 2, rows, K, columns, D], holding anything finite. The one before is no longer valid."""
        spec = self._spec
        shape = (spec.layers, 2, rows, spec.heads, columns, spec.head_dim)
        size = spec.layers * 2 * rows * spec.heads * columns * spec.head_dim
        if self._flat.numel() < size:
            self._flat = torch.zeros(size, dtype=spec.dtype, device=spec.device)
        return self._flat[:size].view(shape)
