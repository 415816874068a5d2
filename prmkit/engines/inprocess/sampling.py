"""Sampling from logits with randomness that depends on (seed, sample, position) only.

Random numbers come from a counter-based generator, not from a stream: the number used for the token at absolute
position p of sample i is a pure function of (seed, i, p). So a sample does not depend on what else is in the batch, nor
on whether its prefix was written in this request or in an earlier one with the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RowSampling", "sample_keys", "sample_tokens", "uniforms"]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer: splitmix64's increment
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_BITS = 52  # one less than a double's 53, so that u * total stays below total after rounding


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How to sample each of N rows.

    Attributes:
        temperature: [N] float; 1 for greedy rows, whose log-probabilities are untempered.
        greedy: [N] bool.
        top_k: [N] long, 0 keeps all.
        top_p: [N] double in (0, 1].
        any_greedy, any_truncated: False lets the whole batch skip that work. Results do not depend on them.
    """

    temperature: Tensor
    greedy: Tensor
    top_k: Tensor
    top_p: Tensor
    any_greedy: bool
    any_truncated: bool


def _mix(state: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele, Lea, Flood 2014) on int64, which wraps around."""
    state = (state ^ _shift(state, 30)) * _MIX_1
    state = (state ^ _shift(state, 27)) * _MIX_2
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def sample_keys(seeds: Tensor, indices: Tensor) -> Tensor:
    """Generator keys of samples.

    Args:
        seeds: [N] long seeds of the samples' requests.
        indices: [N] long numbers of the samples in their requests.

    Returns:
        [N] long keys.
    """
    return _mix(_mix(seeds + _GOLDEN) + indices * _GOLDEN + 1)


def uniforms(keys: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1).

    Args:
        keys: [N] long from `sample_keys`.
        positions: [T] long absolute positions.

    Returns:
        [N, T] double.
    """
    bits = _mix(keys[:, None] + (positions[None, :] + 1) * _GOLDEN)
    return _shift(bits, 64 - _BITS).double() * 2.0**-_BITS


def sample_tokens(logits: Tensor, uniform: Tensor, rows: RowSampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        logits: [N, V] float.
        uniform: [N] double in [0, 1).
        rows: how to sample each row.

    Returns:
        [N] long tokens and [N] float log-probabilities under the distribution sampled from (temperature and truncation
        applied; untempered and whole for greedy rows).
    """
    scaled = logits.float() / rows.temperature[:, None]
    if rows.any_truncated:
        scaled = _truncate(scaled, rows.top_k, rows.top_p)
    logprobs = torch.log_softmax(scaled, dim=-1)
    cumulative = logprobs.double().exp_().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # The first token whose cumulative probability exceeds the target; its own probability is then above zero.
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)  # only with non-finite logits, which the caller refuses
    if rows.any_greedy:
        tokens = torch.where(rows.greedy, logprobs.argmax(-1), tokens)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def _truncate(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Minus infinity outside the top_k likeliest tokens and outside the smallest likeliest set of mass top_p.

    Rows that keep everything come back bit for bit. Equal logits are kept in order of token id.
    """
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    limit = torch.where(top_k > 0, top_k, logits.shape[-1])
    outside = rank[None, :] >= limit[:, None]
    mass = torch.softmax(ordered.masked_fill(outside, -torch.inf).double(), dim=-1).cumsum(-1)
    before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    outside |= (before >= top_p[:, None]) & (top_p < 1.0)[:, None]
    outside[:, 0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), -torch.inf)
