"""A forward of the Llama and Qwen families with few, large operations.

It computes what transformers computes (equal to 1e-5 in float32), from copies of the weights in a more convenient
shape: query, key and value in one matrix, gate and up in one, the norms' weights multiplied into the matrices behind
them, the two halves that a rotary embedding turns laid side by side so that the turn is one complex multiplication.
Because they are copies, training the module it was made from changes nothing here until `load`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prmkit.engines.kv import KVSpec, round_up

__all__ = ["FUSED_ARCHITECTURES", "FusedDecoder", "can_fuse"]

# transformers' `model_type` of the decoders computed here. They differ only in biases and in norms of queries and keys,
# which are taken from the weights.
FUSED_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_STATIC_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})


def can_fuse(backbone: nn.Module) -> bool:
    """Does `FusedDecoder` compute what this module computes?"""
    config: Any = backbone.config
    if config.model_type not in FUSED_ARCHITECTURES or config.hidden_act != "silu":
        return False
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if config.model_type == "mistral":
        sliding = config.sliding_window is not None and config.sliding_window < config.max_position_embeddings
    rotary = (config.rope_parameters or {}).get("rope_type", "default")
    partial = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    return not sliding and rotary in _STATIC_ROTARY and partial == 1.0


# Queries [B, Q, heads, D], keys and values [B, K, T, D] -> [B*Q, heads*D].
_Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights. A = (query heads + 2 key/value heads) * D, Z = query heads * D."""

    qkv: Tensor  # [A, H]
    qkv_bias: Tensor | None  # [A]
    head_norm: tuple[Tensor, Tensor] | None  # [D] for queries, [D] for keys
    out: Tensor  # [Z, H]: transposed, for addmm
    out_bias: Tensor | None  # [H]
    gate_up: Tensor  # [2F, H]
    gate_up_bias: Tensor | None  # [2F]
    down: Tensor  # [F, H]: transposed
    down_bias: Tensor | None  # [H]


class FusedDecoder:
    """See the module's text, and `Decoder` for the interface.

    Args:
        backbone: module for which `can_fuse` holds.
        state: its weights, adapters folded in.
        columnwise: see `Decoder`.
        device: where to compute; None is where the module is.
    """

    def __init__(
        self,
        backbone: nn.Module,
        state: Mapping[str, Tensor],
        *,
        columnwise: bool,
        device: torch.device | None = None,
    ) -> None:
        config: Any = backbone.config
        first = next(backbone.parameters())
        self.spec = KVSpec.of(config, first.dtype, device or first.device)
        self.context = int(config.max_position_embeddings)
        self.columnwise = columnwise
        self._eps: float = config.rms_norm_eps
        self._query_heads: int = config.num_attention_heads
        self._rotary: Any = copy.deepcopy(backbone.rotary_emb).to(self.spec.device)
        on_cpu = self.spec.device.type == "cpu" and self.spec.dtype == torch.float32
        self._spread = torch.tensor(self._eps) if on_cpu else None
        self._turns = torch.zeros(0)
        self.load(state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy and rearrange weights; see `Decoder.load`."""

        def get(name: str) -> Tensor | None:
            tensor = state.get(name)
            return None if tensor is None else tensor.detach().to(self.spec.device, self.spec.dtype, copy=True)

        def need(name: str) -> Tensor:
            tensor = get(name)
            if tensor is None:
                raise ValueError(f"weights lack {name!r}")
            return tensor

        self._layers = [self._read_layer(f"layers.{n}.", get, need) for n in range(self.spec.layers)]
        self._embedding = need("embed_tokens.weight")
        self._norm = need("norm.weight")

    def _read_layer(self, at: str, get: Any, need: Any) -> _Layer:
        attention_norm, mlp_norm = need(f"{at}input_layernorm.weight"), need(f"{at}post_attention_layernorm.weight")
        qkv = torch.cat([self._side_by_side(need(f"{at}self_attn.{n}_proj.weight"), n) for n in "qkv"])
        gate_up = torch.cat([need(f"{at}mlp.gate_proj.weight"), need(f"{at}mlp.up_proj.weight")])
        biases = [get(f"{at}self_attn.{name}_proj.bias") for name in "qkv"]
        has_bias = biases[0] is not None
        norms = [get(f"{at}self_attn.{name}_norm.weight") for name in "qk"]
        gate_bias, up_bias = get(f"{at}mlp.gate_proj.bias"), get(f"{at}mlp.up_proj.bias")
        return _Layer(
            qkv=_scaled(qkv, attention_norm),
            qkv_bias=torch.cat([self._side_by_side(b, n) for b, n in zip(biases, "qkv", strict=True)])
            if has_bias
            else None,
            head_norm=None
            if norms[0] is None
            else (self._side_by_side(norms[0], "q"), self._side_by_side(norms[1], "k")),
            out=need(f"{at}self_attn.o_proj.weight").t(),
            out_bias=get(f"{at}self_attn.o_proj.bias"),
            gate_up=_scaled(gate_up, mlp_norm),
            gate_up_bias=None if gate_bias is None else torch.cat([gate_bias, up_bias]),
            down=need(f"{at}mlp.down_proj.weight").t(),
            down_bias=get(f"{at}mlp.down_proj.bias"),
        )

    def _side_by_side(self, weight: Tensor, kind: str) -> Tensor:
        """Reorder each head's rows from (first half, second half) to pairs, for queries and keys. Scores are products of
        queries and keys in the same order, so they stay the same."""
        if kind == "v":
            return weight
        half = self.spec.head_dim // 2
        pairs: Tensor = weight.unflatten(0, (-1, 2, half)).transpose(1, 2)
        return pairs.flatten(0, 2)

    def _turns_at(self, positions: Tensor, longest: int) -> Tensor:
        """Factors for every head, [N, heads, D/2] complex: the rotary ones for queries and keys, 1 for values, so that
        one product turns all; those of the queries hold the scale of the scores as well."""
        if len(self._turns) < longest:
            size = min(round_up(2 * longest, 256), max(self.context, longest))
            places = torch.arange(size, device=self.spec.device)[None]
            cos, sin = self._rotary(torch.zeros(1, device=self.spec.device), places)
            half = self.spec.head_dim // 2
            turns = torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())
            scale = self.spec.head_dim**-0.5 if self.columnwise else 1.0
            queries, keys = turns.expand(-1, self._query_heads, -1) * scale, turns.expand(-1, self.spec.heads, -1)
            self._turns = torch.cat([queries, keys, torch.ones_like(keys)], dim=1)
        return self._turns.index_select(0, positions)

    def forward(self, ids: Tensor, start: Tensor, kv: Tensor, longest: int, want_hidden: bool = True) -> Tensor | None:
        """See `Decoder.forward`."""
        batch, width = ids.shape
        kv = kv[..., : round_up(longest + width), :]
        positions = (start[:, None] + torch.arange(width, device=ids.device)).flatten()
        turns = self._turns_at(positions, longest + width)
        attend = (self._columnwise if self.columnwise else self._blocked)(positions, kv.shape, longest)
        rows = torch.arange(batch, device=ids.device).repeat_interleave(width)
        x = functional.embedding(ids.flatten(), self._embedding)
        heads = self._query_heads
        for number, layer in enumerate(self._layers):
            h = self._normalised(x)
            qkv = functional.linear(h, layer.qkv, layer.qkv_bias).unflatten(-1, (-1, self.spec.head_dim))
            if layer.head_norm is not None:
                qkv = self._normalise_heads(qkv, layer.head_norm)
            qkv = torch.view_as_real(torch.view_as_complex(qkv.float().unflatten(-1, (-1, 2))) * turns)
            qkv = qkv.flatten(-2).to(x.dtype)
            cache = kv[number]
            cache[:, rows, :, positions] = qkv[:, heads:].unflatten(1, (2, -1))
            if number == self.spec.layers - 1 and not want_hidden:
                return None
            h = attend(qkv[:, :heads].unflatten(0, (batch, width)), cache[0], cache[1])
            x = torch.addmm(x, h, layer.out)
            if layer.out_bias is not None:
                x = x + layer.out_bias
            h = self._normalised(x)
            gate, up = functional.linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            x = torch.addmm(x, functional.silu(gate).mul_(up), layer.down)
            if layer.down_bias is not None:
                x = x + layer.down_bias
        return self._normalised(x).mul_(self._norm).view(batch, width, -1)

    def _normalised(self, x: Tensor) -> Tensor:
        """Rows divided by their root mean square."""
        if self._spread is None:
            return functional.rms_norm(x, x.shape[-1:], None, self._eps)
        # Fewer operations than torch's own has on the CPU.
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._spread, size, size, value=1 / x.shape[-1]).rsqrt_()

    def _normalise_heads(self, qkv: Tensor, norms: tuple[Tensor, Tensor]) -> Tensor:
        queries, keys, values = qkv.split([self._query_heads, self.spec.heads, self.spec.heads], dim=1)
        size = (self.spec.head_dim,)
        return torch.cat(
            [
                functional.rms_norm(queries, size, norms[0], self._eps),
                functional.rms_norm(keys, size, norms[1], self._eps),
                values,
            ],
            dim=1,
        )

    def _columnwise(self, positions: Tensor, shape: torch.Size, longest: int) -> _Attention:
        """Attention one query a row at a time: three batched products, whose bits depend on nothing but that query."""
        batch, columns = shape[2], shape[4]
        width = len(positions) // batch
        steps = [min(columns, round_up(longest + number)) for number in range(width)]
        unseen = torch.arange(steps[-1], device=positions.device) > positions[:, None]
        bias = torch.zeros(unseen.shape, dtype=self.spec.dtype, device=positions.device)
        bias.masked_fill_(unseen, -torch.inf)
        bias = bias.view(batch, width, 1, 1, -1)
        groups = self._query_heads // self.spec.heads
        flat = (batch * self.spec.heads, groups)

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            outputs = []
            for number, size in enumerate(steps):
                query = queries[:, number].reshape(*flat, -1)
                score = torch.bmm(query, keys[:, :, :size].flatten(0, 1).transpose(1, 2))
                score = score.view(batch, -1, groups, size).add_(bias[:, number, :, :, :size])
                weight = torch.softmax(score, dim=-1).view(*flat, size)
                outputs.append(torch.bmm(weight, values[:, :, :size].flatten(0, 1)).view(batch, -1))
            return outputs[0] if width == 1 else torch.stack(outputs, dim=1).flatten(0, 1)

        return attend

    def _blocked(self, positions: Tensor, shape: torch.Size, longest: int) -> _Attention:  # noqa: ARG002 - as above
        """Attention by torch's fused kernel. A key head's group of query heads is laid along the queries."""
        batch, columns = shape[2], shape[4]
        groups = self._query_heads // self.spec.heads
        seen = torch.arange(columns, device=positions.device) <= positions[:, None]
        mask = seen.view(batch, 1, -1, 1, columns).expand(-1, -1, -1, groups, -1).flatten(2, 3)

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            width = queries.shape[1]
            grouped = queries.unflatten(2, (-1, groups)).transpose(1, 2).flatten(2, 3)
            out: Tensor = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
            by_query: Tensor = out.unflatten(2, (width, groups)).transpose(1, 2)
            return by_query.reshape(batch * width, -1)

        return attend


def _scaled(matrix: Tensor, norm: Tensor) -> Tensor:
    """A matrix [A, H] that does the work of a norm's weights [H] before it."""
    return (matrix.float() * norm.float()).to(matrix.dtype)
