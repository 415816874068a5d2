"""Token cross-entropy of a language model at chosen positions only, with bounded memory.

The full logits of a batch, [B, T, V], are the largest tensor of training by far. Here hidden states are gathered at the
positions that count, and their logits are made a chunk at a time, thrown away, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from prmkit.errors import ConfigError, DataError
from prmkit.losses.output import LossOutput

__all__ = ["CHUNK_LOGITS", "predicted_positions", "token_cross_entropy"]

CHUNK_LOGITS = 2**25
"""Logits held at once by default: 128 MiB in float32, 220 tokens at a vocabulary of 151,936."""


def predicted_positions(hidden: Tensor, input_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states that predict the tokens that count, and those tokens.

    Token t is predicted from the hidden state at t - 1.

    Args:
        hidden: [B, T, H] last hidden states.
        input_ids: [B, T] token ids.
        loss_mask: [B, T], True on tokens whose prediction counts; False everywhere in column 0.

    Returns:
        ([N, H] hidden states, [N] token ids), N the number of True entries, row by row.

    Raises:
        DataError: a row's first token is to be predicted, which nothing precedes.
    """
    if bool(loss_mask[:, 0].any()):
        raise DataError("loss_mask: the first token of a row is marked as predicted; no token precedes it")
    wanted = loss_mask[:, 1:]
    return hidden[:, :-1][wanted], input_ids[:, 1:][wanted]


def token_cross_entropy(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int, chunk_logits: int = CHUNK_LOGITS
) -> LossOutput:
    """Sum of -log p(label) over N tokens, p = softmax(head(hidden)), in float32.

    The result does not depend on `chunk_logits` but for rounding.

    Args:
        hidden: [N, H] states that predict the labels.
        labels: [N] token ids.
        head: maps [n, H] to logits [n, V]; called once more for each chunk in the backward pass.
        vocabulary: V.
        chunk_logits: logits to hold at once, at least V in effect: a chunk has max(1, chunk_logits // V) tokens.

    Returns:
        Sum over the N tokens, and N.
    """
    if chunk_logits < 1:
        raise ConfigError("chunk_logits", chunk_logits, "an integer of at least 1")
    size = max(1, chunk_logits // vocabulary)

    def chunk_sum(states: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(head(states).float(), wanted, reduction="sum")

    if len(labels) <= size:  # one chunk: to keep its logits costs no more than to make them again
        return LossOutput.of(chunk_sum(hidden, labels), len(labels))
    total = torch.zeros((), device=hidden.device)
    for states, wanted in zip(hidden.split(size), labels.split(size), strict=True):
        part = checkpoint(chunk_sum, states, wanted, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return LossOutput.of(total, len(labels))
