"""Key/value buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["KVSpec", "Scratch", "round_up"]


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
            ahead = max(size, self._flat.numel() * 3 // 2)  # zeroing what grows bit by bit costs more than its use
            self._flat = torch.zeros(ahead, dtype=spec.dtype, device=spec.device)
        return self._flat[:size].view(shape)
