"""Generalised advantage estimation: over tokens, over steps, and over both at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prmkit.errors import ConfigError

__all__ = ["Estimates", "GAEConfig", "TwoLevelEstimates", "gae", "two_level_gae"]


@dataclass(frozen=True)
class GAEConfig:
    """Discounts of PPO.

    Attributes:
        gamma: discount from one token to the next, in [0, 1].
        lam: lambda between bootstrapping from the critic (0) and Monte-Carlo returns (1), in [0, 1].
        step_gamma, step_lam: the same from one step to the next, for estimates over steps.
    """

    gamma: float = 1.0
    lam: float = 0.95
    step_gamma: float = 1.0
    step_lam: float = 0.95

    def __post_init__(self) -> None:
        for name in ("gamma", "lam", "step_gamma", "step_lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"advantage.{name}", getattr(self, name), "a number in [0, 1]")


@dataclass(frozen=True, slots=True)
class Estimates:
    """What GAE gives. Constants: no gradient flows through them.

    Attributes:
        advantages: 0 where the mask is False.
        returns: advantages + values, the critic's targets; 0 where the mask is False.
    """

    advantages: Tensor
    returns: Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> Estimates:
    """GAE (arXiv 1506.02438, equation 16) over tokens or over steps.

        delta_t = r_t + gamma V_(t+1) - V_t,    A_t = delta_t + gamma lambda A_(t+1),

    t + 1 being the next entry that counts: entries with a False mask (padding, text that the policy did not write) are
    skipped, so that they neither discount nor lend their values. Behind the last entry V is `bootstrap` and A is 0.

    Args:
        rewards: [B, T]; what stands where mask is False is ignored.
        values: [B, T] critic's value of the state before token (or step) t.
        mask: [B, T] bool, True where an entry counts.
        gamma, lam: in [0, 1].
        bootstrap: [B] value of the state behind the last entry, for rows that a limit cut off; None is 0.

    Returns:
        Estimates, [B, T] in the values' type.
    """
    rewards, values = rewards.detach().to(values.dtype), values.detach()
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.detach().to(values.dtype)
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        counts = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
        next_advantage = torch.where(counts, advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        advantages[:, t] = torch.where(counts, advantage, 0.0)
    return Estimates(advantages, torch.where(mask, advantages + values, 0.0))


@dataclass(frozen=True, slots=True)
class TwoLevelEstimates:
    """Estimates over steps, [B, S], and over tokens, [B, T]."""

    step: Estimates
    token: Estimates


def two_level_gae(
    step_rewards: Tensor,
    step_values: Tensor,
    step_mask: Tensor,
    token_rewards: Tensor,
    token_values: Tensor,
    index: Tensor,
    config: GAEConfig,
    bootstrap: Tensor | None = None,
) -> TwoLevelEstimates:
    """GAE over steps, and within each step over its tokens (the bi-level GAE of VAGEN, arXiv 2510.16907).

    Steps: `gae` with step_gamma and step_lam. Tokens: the last token of step s takes over the step's advantage,
    A = A_s + r; the tokens before it go on from there within the step,

        A_t = r_t + gamma V_(t+1) - V_t + gamma lambda A_(t+1).

    Nothing else passes from one step to another, so long steps do not wash out what the step critic says. The token's
    own reward r (a KL penalty, say) is counted at the last token too, where VAGEN leaves it out.

    Args:
        step_rewards: [B, S].
        step_values: [B, S] step critic's value of the state before step s.
        step_mask: [B, S] bool, True where there is a step.
        token_rewards: [B, T] rewards of single tokens; no step's reward is in them.
        token_values: [B, T] token critic's value of the state before token t.
        index: [B, T] long, the step each token belongs to, -1 for none (`step_index`).
        config: discounts.
        bootstrap: [B] step critic's value behind the last step, for rows that a limit cut off; None is 0.
    """
    steps = gae(step_rewards, step_values, step_mask, config.step_gamma, config.step_lam, bootstrap)
    rewards, values = token_rewards.detach().to(token_values.dtype), token_values.detach()
    advantages = torch.zeros_like(values)
    next_advantage = next_value = torch.zeros_like(values[:, 0])
    next_step = torch.full_like(index[:, 0], -1)
    for t in reversed(range(values.shape[1])):
        step = index[:, t]
        counts = step >= 0
        inside = next_value * config.gamma - values[:, t] + config.gamma * config.lam * next_advantage
        at_end = steps.advantages.gather(1, step.clamp(min=0)[:, None])[:, 0]
        advantage = rewards[:, t] + torch.where(step == next_step, inside, at_end)
        advantages[:, t] = torch.where(counts, advantage, 0.0)
        next_advantage = torch.where(counts, advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        next_step = torch.where(counts, step, next_step)
    token = Estimates(advantages, torch.where(index >= 0, advantages + values, 0.0))
    return TwoLevelEstimates(steps, token)
