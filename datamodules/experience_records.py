"""The experience of one iteration as tensors, and the micro-batches cut from it. Masks are True where it counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from datamodules.batches import _TensorRecord
from prmkit.advantages import spread_steps, step_index
from prmkit.losses import group_totals
from prmkit.rewards import Reward, step_ends, token_rewards
from prmkit.rollouts import Rollout

__all__ = ["EvalBatch", "Experience", "PolicyBatch", "empty_batch", "make_experience"]

Sums = dict[str, tuple[float, int]]

_OF_CRITICS = ("old_values", "returns", "old_step_values", "step_returns", "step_starts")


@dataclass(eq=False, kw_only=True)
class PolicyBatch(_TensorRecord):
    """Solutions for one micro-batch of policy optimisation. B rows, T tokens.

    Attributes:
        input_ids: [B, T] long, prompt and solution, padded on the right.
        attention_mask: [B, T] bool.
        action_mask: [B, T] bool, True on tokens of the policy that are trained on: those of solutions with a reward.
        advantages: [B, T] float32.
        generator_logprobs: [B, T] float32, by the engine that sampled.
        old_logprobs: [B, T], by the trainer at the beginning of the iteration; None where the iteration is one
            optimiser step, in which they are those of the forward pass itself.
        reference_logprobs: [B, T], by the reference policy; None where nothing needs them.
        old_values, returns: [B, T], of the critic; None without one.
        old_step_values, step_returns: [B, T], of the critic of steps, at each step's first token; None without one.
        step_starts: [B, T] bool, True at a trained step's first token; None without a critic of steps.
        right: [B] float32, 1 where the verifier found the answer right, 0 wrong, NaN where it did not say.
        group_tokens, group_rows: [B] long, tokens that count and rows that have any in a row's whole group.
        window_tokens, window_steps, window_judged: on this rank over the whole accumulation window: tokens that count,
            steps that do (`step_starts`), solutions that do and that the verifier judged.
        report: figures of the iteration, on its first micro-batch; None on the others.
    """

    input_ids: Tensor
    attention_mask: Tensor
    action_mask: Tensor
    advantages: Tensor
    generator_logprobs: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    old_step_values: Tensor | None = None
    step_returns: Tensor | None = None
    step_starts: Tensor | None = None
    right: Tensor
    group_tokens: Tensor
    group_rows: Tensor
    window_tokens: int = 0
    window_steps: int = 0
    window_judged: int = 0
    report: dict[str, float] | None = None


@dataclass(eq=False, kw_only=True)
class EvalBatch(_TensorRecord):
    """Solutions sampled for validation, judged. B rows.

    Attributes:
        right: [B] float32, 1 for a right answer.
        length, steps: [B] float32, tokens and steps written.
        truncated: [B] float32, 1 where a limit cut the solution off.
    """

    right: Tensor
    length: Tensor
    steps: Tensor
    truncated: Tensor


@dataclass(eq=False, kw_only=True)
class Experience:
    """Rollouts of this rank in an iteration. N rows, group by group in the order of prompts; T tokens, S steps.

    Attributes:
        input_ids, attention_mask, action_mask, generator_logprobs: [N, T], see PolicyBatch.
        index: [N, T] long, step that a token belongs to, -1 for none.
        step_rewards: [N, S] float32; step_mask: [N, S] bool, True where there is a step with a reward of its own.
        token_rewards: [N, T] float32, every reward at the token that earns it.
        own_rewards: [N, T] float32, those of tokens alone; outcome_rewards: [N] float32, those of whole solutions.
        trace_rewards: [N] float32, what is not earned by steps: outcome and the sum over tokens.
        total_rewards: [N] float32, everything.
        groups: [N] long, number of the prompt.
        row_mask: [N] bool, True where there is a reward.
        right: [N], see PolicyBatch.
        old_logprobs, reference_logprobs, old_values, advantages, returns, old_step_values, step_returns, step_starts:
            [N, T] or None, filled in later.
    """

    input_ids: Tensor
    attention_mask: Tensor
    action_mask: Tensor
    generator_logprobs: Tensor
    index: Tensor
    step_rewards: Tensor
    step_mask: Tensor
    token_rewards: Tensor
    own_rewards: Tensor
    outcome_rewards: Tensor
    trace_rewards: Tensor
    total_rewards: Tensor
    groups: Tensor
    row_mask: Tensor
    right: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    old_step_values: Tensor | None = None
    step_returns: Tensor | None = None
    step_starts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def dense_rewards(self) -> Tensor:
        """[N, T] rewards of tokens, and of steps at each step's last token; what whole solutions earn is not there."""
        return self.own_rewards + self.step_end_rewards

    @property
    def step_end_rewards(self) -> Tensor:
        """[N, T] rewards of steps at each step's last token."""
        ends = self.index != torch.nn.functional.pad(self.index[:, 1:], (0, 1), value=-1)
        return torch.where(ends, spread_steps(self.step_rewards, self.index), 0.0)

    def filled(self, values: dict[str, Tensor]) -> Experience:
        """A copy with further fields."""
        return replace(self, **values)

    def state(self) -> dict[str, Tensor | None]:
        """Everything, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def batch(self, rows: Sequence[int]) -> PolicyBatch:
        """The rows as a micro-batch, cut to the longest of them."""
        chosen = torch.tensor(rows, dtype=torch.long)
        width = max(1, int(self.attention_mask[chosen].sum(1).max()))
        tokens, members = group_totals(self.action_mask, self.groups)
        names = ("input_ids", "attention_mask", "action_mask", "advantages", "generator_logprobs", "old_logprobs")
        values: dict[str, Any] = {}
        for name in (*names, "reference_logprobs", *_OF_CRITICS):
            tensor = getattr(self, name)
            values[name] = None if tensor is None else tensor[chosen, :width]
        ids = tuple(f"{int(self.groups[row])}/{row}" for row in rows)
        right = self.right[chosen]
        return PolicyBatch(ids=ids, right=right, group_tokens=tokens[chosen], group_rows=members[chosen], **values)


def empty_batch(like: Experience, pad_id: int) -> PolicyBatch:
    """A micro-batch that counts nowhere, for a rank that has fewer rows than the others."""
    shape = (1, 2)
    zero = torch.zeros(shape)
    off = torch.zeros(shape, dtype=torch.bool)

    def optional(value: Tensor | None) -> Tensor | None:
        return None if value is None else zero

    one = torch.ones(1, dtype=torch.long)
    return PolicyBatch(
        ids=("",),
        input_ids=torch.full(shape, pad_id),
        attention_mask=~off,
        action_mask=off,
        advantages=zero,
        generator_logprobs=zero,
        right=torch.full((1,), torch.nan),
        group_tokens=one,
        group_rows=one,
        old_logprobs=optional(like.old_logprobs),
        reference_logprobs=optional(like.reference_logprobs),
        old_values=optional(like.old_values),
        returns=optional(like.returns),
        old_step_values=optional(like.old_step_values),
        step_returns=optional(like.step_returns),
        step_starts=None if like.step_starts is None else off,
    )


def make_experience(rollouts: Sequence[Rollout], pad_id: int, right_reward: float | None = None) -> Experience:
    """Tensors of rollouts, [N, T] and [N, S] with N at least 0, T and S at least 1.

    Args:
        rollouts: group by group.
        pad_id: fills rows up.
        right_reward: what the part `outcome` gives a right answer; None says of none whether it is right.
    """
    width = max((len(r.prompt_ids) + len(r.token_ids) for r in rollouts), default=1)
    steps = max((len(r.trace.steps) for r in rollouts), default=0) or 1
    offsets = [len(rollout.prompt_ids) for rollout in rollouts]
    lengths = [offset + len(r.token_ids) for offset, r in zip(offsets, rollouts, strict=True)]
    place = torch.arange(width)[None]
    attention = place < torch.tensor(lengths, dtype=torch.long)[:, None]
    row_mask = torch.tensor([r.reward is not None for r in rollouts], dtype=torch.bool)
    written = attention & (place >= torch.tensor(offsets, dtype=torch.long)[:, None])
    rewards = [r.reward if r.reward is not None else Reward() for r in rollouts]
    return Experience(
        input_ids=_grid([(0, (*r.prompt_ids, *r.token_ids)) for r in rollouts], width, torch.long, pad_id),
        attention_mask=attention,
        action_mask=written & row_mask[:, None],
        generator_logprobs=_grid([(o, r.logprobs) for o, r in zip(offsets, rollouts, strict=True)], width),
        index=step_index([step_ends(r.trace) for r in rollouts], width, offsets),
        step_rewards=_grid([(0, reward.steps) for reward in rewards], steps),
        step_mask=_grid([(0, (1.0,) * len(reward.steps)) for reward in rewards], steps).bool(),
        token_rewards=_grid(
            [(o, _placed(r, reward)) for o, r, reward in zip(offsets, rollouts, rewards, strict=True)], width
        ),
        own_rewards=_grid([(o, reward.tokens) for o, reward in zip(offsets, rewards, strict=True)], width),
        outcome_rewards=torch.tensor([reward.outcome for reward in rewards]),
        trace_rewards=torch.tensor([reward.outcome + sum(reward.tokens) for reward in rewards]),
        total_rewards=torch.tensor([reward.total for reward in rewards]),
        groups=torch.tensor([rollout.group for rollout in rollouts], dtype=torch.long),
        row_mask=row_mask,
        right=torch.tensor([_right(rollout, right_reward) for rollout in rollouts]),
    )


def _right(rollout: Rollout, right_reward: float | None) -> float:
    judged = rollout.parts.get("outcome")
    return math.nan if right_reward is None or judged is None else float(judged == right_reward)


def _placed(rollout: Rollout, reward: Reward) -> tuple[float, ...]:
    """Rewards at the tokens that earn them; a solution without steps earns its outcome at its last token."""
    if rollout.trace.steps:
        return token_rewards(reward, rollout.trace)
    return (*(0.0,) * (len(rollout.token_ids) - 1), reward.outcome)


def _grid(
    rows: Sequence[tuple[int, Sequence[float]]], width: int, dtype: torch.dtype = torch.float32, fill: float = 0
) -> Tensor:
    """[N, width], each row's values from its own column on."""
    grid = torch.full((len(rows), width), fill, dtype=dtype)
    for row, (start, values) in enumerate(rows):
        grid[row, start : start + len(values)] = torch.tensor(values, dtype=dtype)
    return grid
