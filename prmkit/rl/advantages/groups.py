"""Advantages relative to the other outputs for the same prompt: no critic.

Groups are given by integer ids, [B], in any order, and may be ragged: rows without a reward (`row_mask` False) and,
where steps are compared, rows without steps are no members. They leave the baseline and get the advantage 0. So does a
group with fewer than two members, or one whose rewards are all the same: it has no signal. All of a group must be in
the batch at hand.

Arithmetic is in float64, so that equal rewards give exactly 0 and not rounding noise divided by its own spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prmkit.errors import ConfigError
from prmkit.rl.advantages.moments import Moments, whiten
from prmkit.rl.advantages.steps import rewards_to_go

__all__ = [
    "OUTCOME_METHODS",
    "PROCESS_METHODS",
    "GroupAdvantages",
    "GroupConfig",
    "OutcomeMethod",
    "ProcessMethod",
    "batch_relative",
    "dr_grpo",
    "group_relative",
    "grpo",
    "outcome_advantages",
    "process_advantages",
    "process_group_relative",
    "rloo",
    "token_baseline",
]

OutcomeMethod = Literal["grpo", "dr_grpo", "rloo", "batch"]
ProcessMethod = Literal["grpo", "dr_grpo", "step_baseline", "token_baseline"]
OUTCOME_METHODS: tuple[OutcomeMethod, ...] = get_args(OutcomeMethod)
PROCESS_METHODS: tuple[ProcessMethod, ...] = get_args(ProcessMethod)

_EPSILON = 1e-6
_SAME = 1e-6  # rewards of a group that differ by less than this, relative to their size, are the same


@dataclass(frozen=True)
class GroupConfig:
    """Advantages without a critic.

    Attributes:
        size: outputs a prompt, at least 2; the method "batch" alone can do with 1.
        outcome: from the reward of a whole trace: "grpo", "dr_grpo", "rloo" or "batch" (see the functions of these
            names; "batch" is `batch_relative`).
        process: from rewards of steps: "grpo" and "dr_grpo" (`process_group_relative` with and without the standard
            deviation), "step_baseline" (as "grpo", each step compared with the steps of the same number in the other
            solutions: for a PRM whose scores drift along a solution), or "token_baseline".
        gamma: discount of the rewards of later steps, in [0, 1]: 1 credits a step with everything that follows, 0 with
            its own reward alone.
    """

    size: int = 8
    outcome: OutcomeMethod = "grpo"
    process: ProcessMethod = "grpo"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ConfigError("advantage.gamma", self.gamma, "a number in [0, 1]")
        if self.outcome not in OUTCOME_METHODS:
            raise ConfigError("advantage.outcome", self.outcome, " | ".join(OUTCOME_METHODS))
        if self.process not in PROCESS_METHODS:
            raise ConfigError("advantage.process", self.process, " | ".join(PROCESS_METHODS))
        least = 1 if self.outcome == "batch" else 2
        if self.size < least:
            remedy = (
                "A group of one has nothing to be compared with; advantage.outcome = batch compares with the batch."
            )
            raise ConfigError("advantage.size", self.size, f"an integer of at least {least}", remedy)


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """Advantages and what became of the groups. All counts are int64 scalars; they add up over ranks.

    Attributes:
        advantages: [B] or [B, S]; 0 for rows without signal.
        signal: [B] bool, True for members of a group with signal.
        groups: groups in the batch, those without any member included.
        alone: groups with fewer than two members.
        same: groups of two or more whose rewards are all the same.
        excluded: rows that are no members.
    """

    advantages: Tensor
    signal: Tensor
    groups: Tensor
    alone: Tensor
    same: Tensor
    excluded: Tensor


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows by group: sums over members, spread back to rows."""

    row_mask: Tensor
    inverse: Tensor
    number: int

    @classmethod
    def of(cls, groups: Tensor, row_mask: Tensor) -> _Groups:
        ids, inverse = groups.unique(return_inverse=True)
        return cls(row_mask, inverse, len(ids))

    def total(self, values: Tensor) -> Tensor:
        """[number, ...] sum of the members' values, [B, ...] float64."""
        kept = torch.where(self.row_mask.view(-1, *(1,) * (values.dim() - 1)), values, 0.0)
        zeros = torch.zeros(self.number, *kept.shape[1:], dtype=kept.dtype, device=kept.device)
        return zeros.index_add_(0, self.inverse, kept)

    def rows(self, values: Tensor) -> Tensor:
        """[B, ...] each row's own group's value, [number, ...]."""
        return values[self.inverse]

    def differ(self, low: Tensor, high: Tensor) -> Tensor:
        """[number] bool, do the members' values, between low and high, [B], differ? False without members."""
        empty = torch.full((self.number,), torch.inf, dtype=low.dtype, device=low.device)
        least = empty.scatter_reduce(0, self.inverse, torch.where(self.row_mask, low, torch.inf), "amin")
        most = (-empty).scatter_reduce(0, self.inverse, torch.where(self.row_mask, high, -torch.inf), "amax")
        size = torch.maximum(least.abs(), most.abs()).clamp(min=1.0)
        return torch.isfinite(least) & (most - least > _SAME * size)

    def result(self, advantages: Tensor, differ: Tensor, dtype: torch.dtype) -> GroupAdvantages:
        members = self.total(torch.ones_like(self.inverse, dtype=torch.float64))
        many = members >= 2
        signal = self.row_mask & self.rows(many & differ)
        shape = (-1,) + (1,) * (advantages.dim() - 1)
        return GroupAdvantages(
            torch.where(signal.view(shape), advantages, 0.0).to(dtype),
            signal,
            torch.tensor(self.number, device=members.device),
            (~many).sum(),
            (many & ~differ).sum(),
            (~self.row_mask).sum(),
        )


def group_relative(
    rewards: Tensor, groups: Tensor, row_mask: Tensor, *, leave_one_out: bool = False, scale: bool = True
) -> GroupAdvantages:
    """A_i = (r_i - b_i) / c over the members of i's group; `grpo`, `dr_grpo` and `rloo` name its variants.

    Args:
        rewards: [B] total reward of each trace; what stands where row_mask is False is ignored.
        groups: [B] integer ids.
        row_mask: [B] bool, True where the trace has a reward.
        leave_one_out: b_i is the mean of the other members; False: of all members.
        scale: c is the members' standard deviation (Bessel's correction) + 1e-6; False: 1.
    """
    members = _Groups.of(groups, row_mask)
    values = torch.where(row_mask, rewards.detach().double(), 0.0)
    count = members.rows(members.total(torch.ones_like(values)))
    centred = values - members.rows(members.total(values)) / count.clamp(min=1)
    if scale:
        variance = members.rows(members.total(centred.square())) / (count - 1).clamp(min=1)
        advantages = centred / (variance.sqrt() + _EPSILON)
    elif leave_one_out:
        advantages = centred * count / (count - 1).clamp(min=1)
    else:
        advantages = centred
    return members.result(advantages, members.differ(values, values), rewards.dtype)


def grpo(rewards: Tensor, groups: Tensor, row_mask: Tensor) -> GroupAdvantages:
    """A_i = (r_i - mean) / (std + 1e-6) (DeepSeekMath, arXiv 2402.03300, section 4.1.2). See `group_relative`."""
    return group_relative(rewards, groups, row_mask)


def dr_grpo(rewards: Tensor, groups: Tensor, row_mask: Tensor) -> GroupAdvantages:
    """A_i = r_i - mean: no division by the standard deviation, which favours prompts that are nearly always or nearly
    never solved (Dr. GRPO, arXiv 2503.20783, section 3). See `group_relative`."""
    return group_relative(rewards, groups, row_mask, scale=False)


def rloo(rewards: Tensor, groups: Tensor, row_mask: Tensor) -> GroupAdvantages:
    """A_i = r_i - mean of the others (RLOO, arXiv 2402.14740). The baseline does not depend on r_i, so the policy
    gradient is unbiased. See `group_relative`."""
    return group_relative(rewards, groups, row_mask, leave_one_out=True, scale=False)


def batch_relative(rewards: Tensor, row_mask: Tensor, moments: Moments | None = None) -> Tensor:
    """A_i = (r_i - mean) / (std + 1e-8) over the whole batch, [B] (REINFORCE++, arXiv 2501.03262).

    Args:
        rewards: [B].
        row_mask: [B] bool, True where the trace has a reward.
        moments: of all ranks' rewards; None takes this batch's.
    """
    return whiten(rewards, row_mask, moments)


def process_group_relative(
    step_rewards: Tensor,
    step_mask: Tensor,
    groups: Tensor,
    row_mask: Tensor,
    *,
    scale: bool = True,
    gamma: float = 1.0,
    by_step: bool = False,
) -> GroupAdvantages:
    """Group-relative advantages from rewards of steps, [B, S] (DeepSeekMath, arXiv 2402.03300, section 4.1.3).

    All step rewards of all members are normalised together, r~ = (r - mean) / (std + 1e-6); the advantage of a token
    is the sum of r~ over the steps that end at or after it, which is the same for all tokens of a step:

        A_s = r~_s + gamma r~_(s+1) + ... + gamma^(S-s) r~_S,    there with gamma = 1.

    Args:
        step_rewards: [B, S], S at least 1.
        step_mask: [B, S] bool, True where there is a step.
        groups: [B] integer ids.
        row_mask: [B] bool, True where the trace has rewards.
        scale: divide by the standard deviation (Bessel's correction); False only subtracts the mean.
        gamma: discount in [0, 1]; with 0 a step is judged by its own reward alone.
        by_step: the mean is over the members' steps of the same number, so that a level of the rewards that depends on
            nothing but the number of the step cancels; the standard deviation is still one a group.
    """
    mask = step_mask & row_mask[:, None]
    members = _Groups.of(groups, mask.any(1))
    values = torch.where(mask, step_rewards.detach().double(), 0.0)
    count = members.rows(members.total(mask.sum(1).double()))
    if by_step:
        number = members.rows(members.total(mask.double()))  # [B, S]
        mean = members.rows(members.total(values)) / number.clamp(min=1)
    else:
        mean = (members.rows(members.total(values.sum(1))) / count.clamp(min=1))[:, None]
    centred = torch.where(mask, values - mean, 0.0)
    normal = centred
    if scale:
        variance = members.rows(members.total(centred.square().sum(1))) / (count - 1).clamp(min=1)
        normal = centred / (variance.sqrt() + _EPSILON)[:, None]
    compared = centred if by_step else values
    low = torch.where(mask, compared, torch.inf).amin(1)
    high = torch.where(mask, compared, -torch.inf).amax(1)
    return members.result(rewards_to_go(normal, mask, gamma), members.differ(low, high), step_rewards.dtype)


def token_baseline(
    step_rewards: Tensor, step_tokens: Tensor, groups: Tensor, row_mask: Tensor, *, gamma: float = 1.0
) -> GroupAdvantages:
    """Advantages of steps against a baseline per token, [B, S].

    A baseline per step rewards writing few long steps, or many short ones, whichever beats the mean. Here the baseline
    b_i is a rate, reward per token of the other members, and a step of n tokens must earn n b_i:

        b_i = sum_(k != i) R_k / sum_(k != i) N_k,    A_s = sum_(s' >= s) gamma^(s' - s) (r_s' - n_s' b_i),

    R_k the trace's total of step rewards, N_k its tokens. The idea is PURE's (arXiv 2504.15275, advantage estimation,
    on the hacking by few long steps); our form pools the others' rewards and tokens before it divides.

    Args:
        step_rewards: [B, S], S at least 1.
        step_tokens: [B, S] long, tokens of each step; 0 where there is none.
        groups: [B] integer ids.
        row_mask: [B] bool, True where the trace has rewards.
        gamma: discount in [0, 1], as in `process_group_relative`.
    """
    tokens = torch.where(row_mask[:, None], step_tokens, 0).double()
    mask = tokens > 0
    members = _Groups.of(groups, mask.any(1))
    values = torch.where(mask, step_rewards.detach().double(), 0.0)
    reward, length = values.sum(1), tokens.sum(1)
    others_reward = members.rows(members.total(reward)) - reward
    others_length = members.rows(members.total(length)) - length
    rate = torch.where(others_length > 0, others_reward / others_length.clamp(min=1), 0.0)
    surplus = values - tokens * rate[:, None]
    advantages = rewards_to_go(surplus, mask, gamma)
    differ = members.differ(advantages.amin(1).clamp(max=0), advantages.amax(1).clamp(min=0))
    return members.result(advantages, differ, step_rewards.dtype)


def outcome_advantages(
    method: OutcomeMethod, rewards: Tensor, groups: Tensor, row_mask: Tensor, moments: Moments | None = None
) -> GroupAdvantages:
    """Advantages of whole traces, [B], by a method of OUTCOME_METHODS; see the functions of these names.

    With "batch" the whole batch is one group: `moments` brings in the other ranks, and the counts are of this rank.

    Raises:
        ConfigError: unknown method.
    """
    match method:
        case "grpo":
            return grpo(rewards, groups, row_mask)
        case "dr_grpo":
            return dr_grpo(rewards, groups, row_mask)
        case "rloo":
            return rloo(rewards, groups, row_mask)
        case "batch":
            one = dr_grpo(rewards, torch.zeros_like(groups), row_mask)
            advantages = batch_relative(rewards, row_mask, moments)
            return GroupAdvantages(advantages, row_mask, one.groups, one.alone, one.same, one.excluded)
    raise ConfigError("advantage.outcome", method, " | ".join(OUTCOME_METHODS))


def process_advantages(
    method: ProcessMethod,
    step_rewards: Tensor,
    step_tokens: Tensor,
    groups: Tensor,
    row_mask: Tensor,
    gamma: float = 1.0,
) -> GroupAdvantages:
    """Advantages of steps, [B, S], by a method of PROCESS_METHODS, later rewards discounted by gamma. A step is where
    step_tokens, [B, S], is not 0.

    Raises:
        ConfigError: unknown method.
    """
    match method:
        case "grpo":
            return process_group_relative(step_rewards, step_tokens > 0, groups, row_mask, gamma=gamma)
        case "dr_grpo":
            mask = step_tokens > 0
            return process_group_relative(step_rewards, mask, groups, row_mask, scale=False, gamma=gamma)
        case "step_baseline":
            return process_group_relative(step_rewards, step_tokens > 0, groups, row_mask, gamma=gamma, by_step=True)
        case "token_baseline":
            return token_baseline(step_rewards, step_tokens, groups, row_mask, gamma=gamma)
    raise ConfigError("advantage.process", method, " | ".join(PROCESS_METHODS))
