"""A forward of the Llama and Qwen families with few, large operations.

It computes what transformers computes (equal to 1e-5 in float32), from copies of the weights in a more convenient
shape: query, key and value in one matrix, gate and up in one, the norms' weights multiplied into the matrices behind
them, the two halves that a rotary embedding turns laid side by side so that the turn is one complex multiplication.
Because they are copies, training the module it was made from changes nothing here until `load`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prmkit.engines.inprocess.attention import Attention, BlockAttention, ColumnAttention
from prmkit.engines.inprocess.kv import KVSpec, round_up

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


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights, transposed for addmm. A = (query heads + 2 key/value heads) * D, Z = query heads * D."""

    qkv: Tensor  # [H, A]
    qkv_bias: Tensor  # [A]
    head_norm: tuple[Tensor, Tensor] | None  # [D] for queries, [D] for keys
    out: Tensor  # [Z, H]
    out_bias: Tensor | None  # [H]
    gate_up: Tensor  # [H, 2F]
    gate_up_bias: Tensor | None  # [2F]
    down: Tensor  # [F, H]
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
        self._groups: int = config.num_attention_heads // self.spec.heads
        self._rotary: Any = copy.deepcopy(backbone.rotary_emb).to(self.spec.device)
        on_cpu = self.spec.device.type == "cpu" and self.spec.dtype == torch.float32
        width: int = config.hidden_size
        self._least_length = torch.tensor((self._eps * width) ** 0.5) if on_cpu else None
        self._norm_gain = width**0.5 if on_cpu else 1.0
        self._turns = torch.zeros(0)
        self._bias = torch.zeros(0)
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
        self._norm = need("norm.weight") * self._norm_gain

    def _read_layer(self, at: str, get: Any, need: Any) -> _Layer:
        attention_norm = need(f"{at}input_layernorm.weight") * self._norm_gain
        mlp_norm = need(f"{at}post_attention_layernorm.weight") * self._norm_gain
        qkv = torch.cat([self._reordered(need(f"{at}self_attn.{name}_proj.weight"), name) for name in "qkv"])
        biases = [get(f"{at}self_attn.{name}_proj.bias") for name in "qkv"]
        has_bias = biases[0] is not None
        norms = [get(f"{at}self_attn.{name}_norm.weight") for name in "qk"]
        gate_up = torch.cat([need(f"{at}mlp.gate_proj.weight"), need(f"{at}mlp.up_proj.weight")])
        gate_bias, up_bias = get(f"{at}mlp.gate_proj.bias"), get(f"{at}mlp.up_proj.bias")
        return _Layer(
            qkv=_scaled(qkv, attention_norm).t(),
            qkv_bias=torch.cat([self._reordered(bias, name) for bias, name in zip(biases, "qkv", strict=True)])
            if has_bias
            else torch.zeros_like(qkv[:, 0]),
            head_norm=None if norms[0] is None else (self._reordered(norms[0], "k"), self._reordered(norms[1], "k")),
            out=need(f"{at}self_attn.o_proj.weight").t(),
            out_bias=get(f"{at}self_attn.o_proj.bias"),
            gate_up=_scaled(gate_up, mlp_norm).t(),
            gate_up_bias=None if gate_bias is None else torch.cat([gate_bias, up_bias]),
            down=need(f"{at}mlp.down_proj.weight").t(),
            down_bias=get(f"{at}mlp.down_proj.bias"),
        )

    def _reordered(self, weight: Tensor, kind: str) -> Tensor:
        """Rows of a projection in our order.

        Each head's numbers go from (first half, second half) to pairs, for queries and keys; scores are products of
        both, so they stay the same. Query heads go from (key head, group) to (group, key head), so that they lie in
        blocks of as many heads as keys and values have.
        """
        if kind == "v":
            return weight
        pairs: Tensor = (
            weight.unflatten(0, (-1, 2, self.spec.head_dim // 2)).transpose(1, 2).flatten(1, 2)
        )  # [heads, D, ...]
        if kind == "q":
            pairs = pairs.unflatten(0, (self.spec.heads, self._groups)).transpose(0, 1).flatten(0, 1)
        return pairs.flatten(0, 1)

    def _turns_at(self, positions: Tensor, longest: int) -> Tensor:
        """Factors [N, A/2] complex: the rotary ones for queries and keys, 1 for values, so that one product turns all;
        those of the queries hold the scale of the scores as well, where attention leaves it to them."""
        if len(self._turns) < longest:
            size = min(round_up(2 * longest, 256), max(self.context, longest))
            places = torch.arange(size, device=self.spec.device)[None]
            cos, sin = self._rotary(torch.zeros(1, device=self.spec.device), places)
            half = self.spec.head_dim // 2
            turns = torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())
            scale = self.spec.head_dim**-0.5 if self.columnwise else 1.0
            keys = turns.expand(-1, self.spec.heads, -1)
            queries = turns.expand(-1, self.spec.heads * self._groups, -1) * scale
            self._turns = torch.cat([queries, keys, torch.ones_like(keys)], dim=1).flatten(1)
        return self._turns.index_select(0, positions)

    def forward(self, ids: Tensor, start: Tensor, kv: Tensor, longest: int, want_hidden: bool = True) -> Tensor | None:
        """See `Decoder.forward`."""
        batch, width = ids.shape
        spec, groups = self.spec, self._groups
        kv = kv[..., : round_up(longest + width, spec.column_step), :]
        positions, rows = start, torch.arange(batch, device=ids.device)
        if width > 1:
            positions = (start[:, None] + torch.arange(width, device=ids.device)).flatten()
            rows = rows.repeat_interleave(width)
        turns = self._turns_at(positions, longest + width)
        attention: Attention = BlockAttention(positions, kv)
        if self.columnwise:
            attention = ColumnAttention(positions, kv, longest, spec.column_step, self._bias_for(kv.shape[4]))
        x = functional.embedding(ids.flatten(), self._embedding)
        for number, (layer, cache) in enumerate(zip(self._layers, kv.unbind(), strict=True)):
            qkv = torch.addmm(layer.qkv_bias, self._normalised(x), layer.qkv)
            if layer.head_norm is not None:
                qkv = self._normalise_heads(qkv, layer.head_norm)
            turned = (qkv.float().view(torch.complex64) * turns).view(torch.float)
            heads = turned.to(spec.dtype).view(-1, groups + 2, spec.heads, spec.head_dim)
            cache[:, rows, :, positions] = heads[:, groups:]
            if number == spec.layers - 1 and not want_hidden:
                return None
            x = torch.addmm(x, attention(number, heads[:, :groups]), layer.out)
            if layer.out_bias is not None:
                x += layer.out_bias
            gate_up = torch.mm(self._normalised(x), layer.gate_up)
            if layer.gate_up_bias is not None:
                gate_up += layer.gate_up_bias
            gate, up = gate_up.chunk(2, dim=-1)
            x = torch.addmm(x, functional.silu(gate).mul_(up), layer.down)
            if layer.down_bias is not None:
                x += layer.down_bias
        return self._normalised(x).mul_(self._norm).view(batch, width, -1)

    def _bias_for(self, columns: int) -> Tensor:
        """See `ColumnAttention`."""
        if len(self._bias) < columns:
            size = round_up(columns + columns // 2)
            full = torch.full((size, size), -torch.inf, dtype=self.spec.dtype, device=self.spec.device)
            self._bias = full.triu_(1)
        return self._bias

    def _normalised(self, x: Tensor) -> Tensor:
        """Rows divided by their root mean square, or on the CPU by their length: fewer operations than torch has there
        for the former. The weights hold what is missing."""
        if self._least_length is None:
            return functional.rms_norm(x, x.shape[-1:], None, self._eps)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._least_length)

    def _normalise_heads(self, qkv: Tensor, norms: tuple[Tensor, Tensor]) -> Tensor:
        """Queries and keys [N, A], each head divided by its root mean square and weighted."""
        count, size = self.spec.heads, (self.spec.head_dim,)
        queries, keys, values = qkv.unflatten(1, (-1, *size)).split([count * self._groups, count, count], dim=1)
        queries = functional.rms_norm(queries, size, norms[0], self._eps)
        keys = functional.rms_norm(keys, size, norms[1], self._eps)
        return torch.cat([queries, keys, values], dim=1).flatten(1)


def _scaled(matrix: Tensor, norm: Tensor) -> Tensor:
    """A matrix [A, H] that does the work of a norm's weights [H] before it."""
    return (matrix.float() * norm.float()).to(matrix.dtype)
