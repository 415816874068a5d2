"""The implicit PRM of PRIME: a language model that rewards tokens, and learns from outcomes along with the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prmkit.errors import ConfigError
from prmkit.losses import CHUNK_LOGITS, ImplicitLossOutput, implicit_prm_loss
from prmkit.models import ModelSource, build_policy, checked_lm_head
from prmkit.rl.batches import PolicyBatch, filled_in
from prmkit.rl.policy_step import score_policy

__all__ = ["ImplicitPRM", "ImplicitPRMConfig"]


@dataclass(frozen=True)
class ImplicitPRMConfig:
    """An implicit PRM that is trained along with the policy (PRIME, arXiv 2502.01456, algorithm 1).

    Its rewards are those at the beginning of an iteration. The solutions it rewards then train it on whether they are
    right, in the same optimiser steps as the policy. Needs `data.rewards.implicit` and `data.rewards.outcome`, whose
    weights may be 0; beta is that of the reward.

    Attributes:
        source: where it comes from; None is the policy's source.
        lr: highest learning rate, positive; None is the policy's. 0 is not accepted: use a PRM that stands still.
        weight: factor of its loss, above 0: its share of the gradient where gradients are clipped by their norm.
    """

    source: ModelSource | None = None
    lr: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0.0:
            raise ConfigError("model.implicit.lr", self.lr, "a positive number, or None")
        if not self.weight > 0.0:
            raise ConfigError("model.implicit.weight", self.weight, "a number above 0")


class ImplicitPRM(nn.Module):
    """The model, with the scale of its rewards.

    Args:
        config: see ImplicitPRMConfig.
        source: of the policy.
        policy: the policy, whose vocabulary it must have.
        tokenizer: the policy's.
        beta: scale of the log-ratio, above 0.
        share_prefixes: see `score_policy`.

    Raises:
        ConfigError: another vocabulary than the policy's.
    """

    def __init__(
        self,
        config: ImplicitPRMConfig,
        source: ModelSource,
        policy: PreTrainedModel,
        tokenizer: Any,
        beta: float,
        share_prefixes: bool = False,
    ) -> None:
        super().__init__()
        self._share = share_prefixes
        self.model = build_policy(config.source or source, tokenizer)
        self.beta = beta
        ours, theirs = checked_lm_head(policy).out_features, checked_lm_head(self.model).out_features
        if ours != theirs:
            raise ConfigError("model.implicit.source", f"{theirs} tokens", f"a model of the policy's {ours} tokens")

    def forward(self, input_ids: Tensor, mask: Tensor, temperature: float, chunk_logits: int = CHUNK_LOGITS) -> Tensor:
        """[B, T] log-probabilities of the tokens that a mask marks; see `score_policy`."""
        model = cast(PreTrainedModel, self.model)
        return score_policy(model, input_ids, mask, temperature, chunk_logits, self._share).logprobs

    def loss(self, batch: PolicyBatch, temperature: float, chunk_logits: int) -> ImplicitLossOutput:
        """Of a PolicyBatch, from its outcomes; see `implicit_prm_loss`."""
        logprobs = self(batch.input_ids, batch.action_mask, temperature, chunk_logits)
        return implicit_prm_loss(
            logprobs, filled_in(batch.reference_logprobs), batch.action_mask, batch.right, self.beta
        )

    def rewards_input(self, input_ids: Tensor, written: Tensor, temperature: float) -> Tensor:
        """[B, T] log-probabilities without gradient or dropout, for the rewards."""
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                return cast(Tensor, self(input_ids, written, temperature))
        finally:
            self.train(was)
