"""What engine and scorer ask of a model, and which implementation an architecture gets.

A decoder runs tokens over a key/value buffer that its caller owns. Rows of the buffer are sequences, aligned at the
left: column p holds the token at position p. Columns beyond a row's length hold anything finite and are never seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from prmkit.engines.inprocess.fused import FusedDecoder, can_fuse
from prmkit.engines.inprocess.generic import GenericDecoder
from prmkit.engines.inprocess.kv import KVSpec
from prmkit.models.lora import merged_state_dict

__all__ = ["Decoder", "Weights", "build_decoder", "read_weights"]

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Runs tokens through a model's decoder.

    Attributes:
        spec: sizes and type of the key/value buffer.
        context: positions the model can represent.
        columnwise: attention is computed query by query, so that the result for a token is, on the CPU, the same to the
            last bit however the tokens before it were cut into pieces.
    """

    spec: KVSpec
    context: int
    columnwise: bool

    def forward(self, ids: Tensor, start: Tensor, kv: Tensor, longest: int, want_hidden: bool = True) -> Tensor | None:
        """Run Q new tokens of each row, and write their keys and values into the buffer.

        Args:
            ids: [B, Q] long.
            start: [B] long, position of each row's first new token.
            kv: [L, 2, B, K, T, D] buffer (K key/value heads); T must reach beyond every position, padding included.
            longest: no row starts at or beyond this position.
            want_hidden: False for calls that only fill the buffer.

        Returns:
            [B, Q, H] final hidden states, None when not wanted.
        """
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take new weights, named as in the decoder's own state dict (without adapters)."""
        ...


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights by name, adapters folded in.

    Attributes:
        backbone: of the decoder, under its own names.
        head: [V, H] output matrix, a copy.
        head_bias: [V]; None when there is none.
    """

    backbone: Mapping[str, Tensor]
    head: Tensor
    head_bias: Tensor | None = None


def read_weights(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Weights:
    """Weights of a causal language model, from itself or from a state dict of it.

    Raises:
        ValueError: the state dict lacks weights of the decoder.
    """
    plain = dict(merged_state_dict(model)) if state is None else dict(state)
    prefix = f"{getattr(model, 'base_model_prefix', 'model')}."
    backbone = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    if not backbone:
        raise ValueError(f"no tensor's name begins with {prefix!r}; got {sorted(plain)[:3]} ...")
    head = plain.get("lm_head.weight")
    if head is None:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        name = next(name for name, module in model.named_modules() if module is embedding)
        head = plain[f"{name}.weight"]
    return Weights(backbone, head.detach().clone(), plain.get("lm_head.bias"))


def build_decoder(backbone: nn.Module, *, columnwise: bool, device: torch.device | None = None) -> Decoder:
    """The fastest decoder that computes what this module computes.

    Args:
        backbone: transformers decoder without its output head.
        columnwise: see `Decoder`; the generic decoder has no such mode.
        device: where to compute; None is where the module is.
    """
    if can_fuse(backbone):
        return FusedDecoder(backbone, merged_state_dict(backbone), columnwise=columnwise, device=device)
    logger.info("%s has no fused decoder; using transformers' forward", type(backbone).__name__)
    return GenericDecoder(backbone, device=device)
