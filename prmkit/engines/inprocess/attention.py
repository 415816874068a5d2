"""Attention of new tokens over a key/value buffer, in two ways.

Both are made for one forward, whose positions all layers share, and called once a layer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from prmkit.engines.inprocess.kv import round_up

__all__ = ["Attention", "BlockAttention", "ColumnAttention"]


class Attention(Protocol):
    """Attention of one forward. G is the number of query heads to a key/value head."""

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """Outputs [B*Q, K*G*D] of a layer for its queries [B*Q, G, K, D], whose keys and values are in the buffer."""
        ...


class ColumnAttention:
    """One query a row at a time: products whose bits depend on nothing but that query and what it sees.

    Scores are not scaled: the queries bring the scale.

    Args:
        positions: [B*Q] long.
        kv: [L, 2, B, K, T, D].
        longest: no row starts at or beyond this position.
        step: key columns are read in multiples of this.
        bias: [P, P] added to scores: row p holds 0 up to column p and minus infinity behind it. P is at least T.
    """

    def __init__(self, positions: Tensor, kv: Tensor, longest: int, step: int, bias: Tensor) -> None:
        _, _, batch, heads, columns, _ = kv.shape
        self._shape = (batch, heads)
        width = len(positions) // batch
        self._sizes = [min(columns, round_up(longest + number, step)) for number in range(width)]
        rows = kv.flatten(2, 3)
        self._keys = {size: rows[:, 0, :, :size].transpose(2, 3).unbind() for size in set(self._sizes)}
        self._values = {size: rows[:, 1, :, :size].unbind() for size in self._keys}
        own = bias[:, : self._sizes[-1]].index_select(0, positions).view(batch, width, 1, -1).expand(-1, -1, heads, -1)
        self._bias = [
            own[:, number, :, :size].reshape(batch * heads, 1, size) for number, size in enumerate(self._sizes)
        ]

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """See `Attention`."""
        batch, heads = self._shape
        _, groups, _, width = queries.shape
        if groups == 1:
            by_column = queries.view(batch, -1, heads, 1, width)
        else:
            by_column = queries.transpose(1, 2).reshape(batch, -1, heads, groups, width)
        outputs = []
        for number, size in enumerate(self._sizes):
            query = by_column[:, number].reshape(batch * heads, groups, width)
            scores = torch.baddbmm(self._bias[number], query, self._keys[size][layer])
            outputs.append(torch.bmm(torch.softmax(scores, dim=-1), self._values[size][layer]).view(batch, -1))
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs, dim=1).flatten(0, 1)


class BlockAttention:
    """All queries at once, by torch's fused kernel. The groups of a key/value head are laid along the queries.

    Args:
        positions: [B*Q] long.
        kv: [L, 2, B, K, T, D].
    """

    def __init__(self, positions: Tensor, kv: Tensor) -> None:
        self._kv = kv
        self._positions = positions
        self._mask: Tensor | None = None

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """See `Attention`."""
        batch = self._kv.shape[2]
        total, groups, heads, width = queries.shape
        if self._mask is None:
            seen = torch.arange(self._kv.shape[4], device=queries.device) <= self._positions[:, None]
            self._mask = seen.view(batch, 1, -1, 1, seen.shape[1]).expand(-1, -1, -1, groups, -1).flatten(2, 3)
        laid = queries.view(batch, -1, groups, heads, width).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [B, K, Q*G, D]
        keys, values = self._kv[layer]
        out: Tensor = functional.scaled_dot_product_attention(laid, keys, values, attn_mask=self._mask)
        return out.view(batch, heads, -1, groups, width).transpose(1, 2).reshape(total, -1)
