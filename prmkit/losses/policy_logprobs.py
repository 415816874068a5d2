"""Log-probabilities of tokens, and the entropy of the whole distribution at each, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prmkit.errors import ConfigError
from prmkit.losses.tokens import CHUNK_LOGITS

__all__ = ["TokenLogprobs", "on_grid", "token_logprobs"]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of N tokens, in float32.

    Attributes:
        logprobs: [N] log pi(token).
        entropy: [N] entropy, in nats, of the whole distribution that the token was drawn from.
    """

    logprobs: Tensor
    entropy: Tensor


def token_logprobs(
    hidden: Tensor,
    tokens: Tensor,
    head: Callable[[Tensor], Tensor],
    vocabulary: int,
    temperature: float = 1.0,
    chunk_logits: int = CHUNK_LOGITS,
) -> TokenLogprobs:
    """Log-probabilities under softmax(head(hidden) / temperature), and its entropy.

    With more than one chunk, logits are made a chunk at a time and made again in the backward pass; gradients flow
    through both results. The result does not depend on `chunk_logits` but for rounding.

    Args:
        hidden: [N, H] states that predict the tokens (`predicted_positions`).
        tokens: [N] token ids.
        head: maps [n, H] to logits [n, V].
        vocabulary: V.
        temperature: the one that the tokens were sampled at, above 0; another gives another policy's probabilities.
        chunk_logits: logits to hold at once; a chunk has max(1, chunk_logits // V) tokens.
    """
    if chunk_logits < 1:
        raise ConfigError("chunk_logits", chunk_logits, "an integer of at least 1")
    if not temperature > 0.0:
        raise ConfigError("temperature", temperature, "a number above 0")

    def of_chunk(states: Tensor, ids: Tensor) -> Tensor:
        log_all = (head(states).float() / temperature).log_softmax(-1)
        entropy = -(log_all.exp() * log_all).sum(-1)
        return torch.stack([log_all.gather(-1, ids[:, None])[:, 0], entropy])

    size = max(1, chunk_logits // vocabulary)
    if len(tokens) <= size:
        return TokenLogprobs(*of_chunk(hidden, tokens))
    pieces = [
        checkpoint(of_chunk, states, ids, use_reentrant=False)
        for states, ids in zip(hidden.split(size), tokens.split(size), strict=True)
    ]
    return TokenLogprobs(*torch.cat(pieces, dim=1))


def on_grid(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the tokens that a mask marks, [N] row by row, at their places, [B, T]; 0 elsewhere. Keeps gradients."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
