"""Between steps and tokens, and from rewards to returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prmkit.errors import DataError

__all__ = ["StepTable", "rewards_to_go", "spread_steps", "step_index", "step_table", "step_token_counts"]


def step_index(ends: Sequence[Sequence[int]], width: int, offsets: Sequence[int] | None = None) -> Tensor:
    """Which step a token belongs to, [B, T] long; -1 for tokens of no step (prompt, padding).

    Args:
        ends: for each row, the index of the last token of each step among the row's own tokens, strictly increasing:
            `prmkit.rl.rewards.step_ends`.
        width: T.
        offsets: [B] where each row's own tokens begin (the length of its prompt); None is 0 everywhere.

    Raises:
        DataError: ends that do not increase, or lie beyond the width.
    """
    index = torch.full((len(ends), width), -1, dtype=torch.long)
    for row, row_ends in enumerate(ends):
        start = first = 0 if offsets is None else offsets[row]
        for step, end in enumerate(row_ends):
            stop = first + end + 1
            if not start < stop <= width:
                raise DataError(f"row {row}, step {step}: ends at token {stop - 1}; accepted: {start} .. {width - 1}")
            index[row, start:stop] = step
            start = stop
    return index


def spread_steps(values: Tensor, index: Tensor) -> Tensor:
    """A step's value at each of its tokens, [B, T]; 0 for tokens of no step.

    Args:
        values: [B, S].
        index: [B, T] long, from `step_index`.
    """
    if values.shape[1] == 0:
        return values.new_zeros(index.shape)
    spread = values.gather(1, index.clamp(min=0))
    return torch.where(index >= 0, spread, 0.0).to(values.dtype)


def step_token_counts(index: Tensor, steps: int) -> Tensor:
    """Tokens of each step, [B, S] long.

    Args:
        index: [B, T] long, from `step_index`.
        steps: S, more than any entry of index.
    """
    counts = torch.zeros(index.shape[0], steps + 1, dtype=torch.long, device=index.device)
    counts.scatter_add_(1, index + 1, torch.ones_like(index))
    return counts[:, 1:]


@dataclass(frozen=True, slots=True)
class StepTable:
    """Where steps are.

    Attributes:
        mask: [B, S] bool, True where there is a step.
        starts: [B, S] long, index of each step's first token; 0 where there is no step.
        last: [B, S] bool, True at each row's last step.
    """

    mask: Tensor
    starts: Tensor
    last: Tensor


def step_table(index: Tensor, steps: int) -> StepTable:
    """Where the steps of an `index`, [B, T], are.

    Args:
        index: [B, T] long, from `step_index`: a row's steps are numbered from 0 without gaps.
        steps: S, more than any entry of index.
    """
    counts = step_token_counts(index, steps)
    mask = counts > 0
    first = (index < 0).long().cumprod(1).sum(1, keepdim=True)  # a row's own tokens stand together
    starts = first + counts.cumsum(1) - counts
    number = torch.arange(steps, device=index.device)
    return StepTable(mask, torch.where(mask, starts, 0), mask & (number == mask.sum(1, keepdim=True) - 1))


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """G_s = r_s + gamma G_(s+1) over the entries that count, [B, S]; 0 elsewhere.

    Entries that do not count are skipped: they neither add reward nor discount.

    Args:
        rewards: [B, S].
        mask: [B, S] bool, True where an entry counts.
        gamma: discount in [0, 1].
    """
    kept = torch.where(mask, rewards.detach(), 0.0)
    if gamma == 1.0:
        return torch.where(mask, kept.flip(1).cumsum(1).flip(1), 0.0)
    returns = torch.zeros_like(kept)
    later = torch.zeros_like(kept[:, 0])
    for s in reversed(range(kept.shape[1])):
        later = torch.where(mask[:, s], kept[:, s] + gamma * later, later)
        returns[:, s] = later
    return torch.where(mask, returns, 0.0)
