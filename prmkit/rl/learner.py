"""What the collection of rollouts asks of whoever is trained on them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from prmkit.formats.bound import BoundStepFormat
from prmkit.rl.batches import Experience, PolicyBatch, Sums
from prmkit.rl.rewards import GroupCounts, RewardsConfig

__all__ = ["Learner"]


class Learner(Protocol):
    """What the data module asks of a LightningModule that optimises a policy.

    Attributes:
        model: causal language model that is trained.
        bound_format: its step format in its tokenizer's ids.
        group_size: solutions a prompt, at least 1.
        temperature: the policy is softmax(logits / temperature); solutions are sampled from it.
        skips_silent: its gradient comes from advantages alone: rows without any need not be computed. Asked once the
            models are built.
        corrects: its loss weighs tokens by how far the policy has moved since they were sampled.
    """

    model: nn.Module
    bound_format: BoundStepFormat
    group_size: int
    temperature: float

    @property
    def device(self) -> torch.device: ...

    @property
    def skips_silent(self) -> bool: ...

    @property
    def corrects(self) -> bool: ...

    def require_reference(self) -> None:
        """Something needs log-probabilities of the reference policy; called before the models are built."""
        ...

    def require_implicit(self, beta: float) -> None:
        """The rewards hold those of an implicit PRM, of scale beta; called before the models are built."""
        ...

    def reference_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        """[B, T] log-probabilities under the reference where `written` is True, 0 elsewhere; no gradient."""
        ...

    def implicit_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        """The same under the implicit PRM as it is now."""
        ...

    def check_rewards(self, rewards: RewardsConfig) -> None:
        """Refuse rewards that do not fit the learner's settings (ConfigError); called before the models are built."""
        ...

    def begin_iteration(self, update: int, groups: GroupCounts) -> Sums:
        """An iteration begins, after so many optimiser steps, with these groups on this rank; figures for the logs.
        Collective."""
        ...

    def score_tokens(self, input_ids: Tensor, mask: Tensor, single_update: bool) -> dict[str, Tensor]:
        """Fields of Experience, [B, T] each, that the loss needs from before the first optimiser step of an iteration.

        `single_update`: the iteration has one optimiser step, so that log-probabilities at its beginning are those of
        the forward pass itself.
        """
        ...

    def advantages(self, experience: Experience) -> tuple[dict[str, Tensor], Sums]:
        """Fields `advantages` (and `returns`) of an Experience, and figures for the logs. Collective."""
        ...

    def loss_count(self, batch: PolicyBatch) -> int:
        """Items that a PolicyBatch's policy loss is divided by."""
        ...
