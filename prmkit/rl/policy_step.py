"""The policy's step: log-probabilities of the policy and its reference, and the policy's loss with its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prmkit.errors import ConfigError
from prmkit.losses import (
    CHUNK_LOGITS,
    KL_ESTIMATORS,
    CorrectionConfig,
    KLEstimator,
    LossOutput,
    MetricSum,
    PolicyLossConfig,
    entropy_loss,
    importance_correction,
    kl_loss,
    kl_terms,
    on_grid,
    policy_loss,
    predicted_positions,
    row_weights,
    token_logprobs,
)
from prmkit.models import (
    ModelSource,
    build_policy,
    checked_lm_head,
    forest_states,
    hidden_states,
    plant_forest,
    resolve_folder,
)
from prmkit.rl.batches import PolicyBatch

__all__ = [
    "KLPenalty",
    "PolicyObjective",
    "PolicyScores",
    "PolicyStep",
    "Reference",
    "loss_count",
    "policy_step",
    "score_policy",
]


@dataclass(frozen=True)
class KLPenalty:
    """Pull towards the reference policy, in the loss.

    Attributes:
        weight: beta, at least 0; with 0 there is no reference model in memory. With a target it is the first beta.
        estimator: "k1", "k2", "k3" or "k3_k2" (`prmkit.losses.kl`); "k3" is GRPO's.
        target: mean divergence a token, in nats, that beta is adapted to (`adapted`), above 0; None keeps beta.
        gain: how fast, above 0.
    """

    weight: float = 0.0
    estimator: KLEstimator = "k3"
    target: float | None = None
    gain: float = 0.1

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ConfigError("model.kl.weight", self.weight, "a number of at least 0")
        if self.estimator not in KL_ESTIMATORS:
            raise ConfigError("model.kl.estimator", self.estimator, " | ".join(KL_ESTIMATORS))
        if self.target is not None and not (self.target > 0.0 and self.weight > 0.0):
            raise ConfigError("model.kl.target", self.target, "a number above 0 with model.kl.weight above 0, or None")
        if not self.gain > 0.0:
            raise ConfigError("model.kl.gain", self.gain, "a number above 0")

    @property
    def used(self) -> bool:
        """Is there a reference to be pulled to?"""
        return self.weight > 0.0

    def adapted(self, weight: float, divergence: float) -> float:
        """The next beta after an optimiser step with a mean divergence (arXiv 1909.08593, section 2.2):

        beta (1 + gain clip(divergence / target - 1, -0.2, 0.2)).
        """
        assert self.target is not None
        return weight * (1.0 + self.gain * max(-0.2, min(0.2, divergence / self.target - 1.0)))


@dataclass(frozen=True)
class PolicyObjective:
    """Terms of the policy's loss.

    Attributes:
        loss: the surrogate.
        kl: pull towards the reference.
        entropy_weight: factor of the entropy bonus; 0 only logs the entropy.
        correction: weights of generator against trainer; None gives all tokens the weight 1, and logs what they would
            be.
        temperature: that solutions are sampled, and probabilities taken, at; above 0.
    """

    loss: PolicyLossConfig
    kl: KLPenalty
    entropy_weight: float
    correction: CorrectionConfig | None
    temperature: float

    def __post_init__(self) -> None:
        if not self.entropy_weight >= 0.0:
            raise ConfigError("model.entropy_weight", self.entropy_weight, "a number of at least 0")
        if not self.temperature > 0.0:
            raise ConfigError("model.temperature", self.temperature, "a number above 0: training needs exploration")


@dataclass(frozen=True, slots=True)
class PolicyScores:
    """A forward pass at the tokens that count. B rows, T tokens, N of them count.

    Attributes:
        logprobs, entropy: [B, T] float32; 0 where the mask is False.
        states: [N, H] hidden states that predict the tokens, row by row.
    """

    logprobs: Tensor
    entropy: Tensor
    states: Tensor


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """Loss of a micro-batch before normalisation, and figures for the logs."""

    loss: LossOutput
    metrics: Mapping[str, MetricSum]


def score_policy(
    model: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor,
    temperature: float,
    chunk_logits: int = CHUNK_LOGITS,
    share_prefixes: bool = False,
) -> PolicyScores:
    """Log-probabilities of the tokens that a mask marks, under softmax(logits / temperature).

    Args:
        model: causal language model.
        input_ids: [B, T], padded on the right: causal attention never looks there, so that no mask is needed.
        mask: [B, T] bool, True where a token counts; False in column 0.
        temperature: above 0.
        chunk_logits: logits held at once.
        share_prefixes: compute what rows of the same prompt have in common once (`plant_forest`).
    """
    if share_prefixes and bool(mask.any()):
        return _score_forest(model, input_ids, mask, temperature, chunk_logits)
    hidden = hidden_states(model.base_model, input_ids, None)
    states, tokens = predicted_positions(hidden, input_ids, mask)
    head = checked_lm_head(model)
    found = token_logprobs(states, tokens, head, head.out_features, temperature, chunk_logits)
    return PolicyScores(on_grid(found.logprobs, mask), on_grid(found.entropy, mask), states)


def _score_forest(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, temperature: float, chunk_logits: int
) -> PolicyScores:
    forest, head, device = plant_forest(input_ids, mask), checked_lm_head(model), input_ids.device
    states = forest_states(model.base_model, forest, device)
    tokens, edge_of = forest.edge_token.to(device), forest.edge_of.to(device)
    found = token_logprobs(states, tokens, head, head.out_features, temperature, chunk_logits)
    logprobs, entropy = on_grid(found.logprobs[edge_of], mask), on_grid(found.entropy[edge_of], mask)
    return PolicyScores(logprobs, entropy, states[edge_of])


def policy_step(scores: PolicyScores, batch: PolicyBatch, objective: PolicyObjective, kl_weight: float) -> PolicyStep:
    """Surrogate + beta KL - entropy bonus of a PolicyBatch, all weighed by the surrogate's reduction.

    Args:
        scores: of the batch, with gradient.
        batch: a PolicyBatch.
        objective: terms of the loss.
        kl_weight: beta as it is now.
    """
    mask, config = batch.action_mask, objective.loss
    old = scores.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    correction = importance_correction(old, batch.generator_logprobs, mask, objective.correction or CorrectionConfig())
    surrogate = policy_loss(
        scores.logprobs,
        old,
        batch.advantages,
        mask,
        config,
        correction=None if objective.correction is None else correction.weights,
        group_tokens=batch.group_tokens,
        group_rows=batch.group_rows,
    )
    rows = row_weights(
        config.reduction,
        mask,
        group_tokens=batch.group_tokens,
        group_rows=batch.group_rows,
        max_tokens=config.max_tokens,
    )
    total = surrogate.loss.loss_sum
    metrics = dict(surrogate.metrics)
    metrics["policy_loss"] = MetricSum(surrogate.loss.loss_sum.detach(), surrogate.loss.count)
    metrics["entropy"] = MetricSum.over(scores.entropy, mask)
    names = {"weight": "importance_weight", "cut": "importance_cut", "gap": "generator_gap"}
    metrics.update({names.get(name, name): figure for name, figure in correction.metrics.items()})
    if batch.reference_logprobs is not None:
        metrics["kl"] = MetricSum.over(kl_terms(scores.logprobs.detach(), batch.reference_logprobs), mask)
    if objective.kl.used:
        assert batch.reference_logprobs is not None
        divergence = kl_loss(scores.logprobs, batch.reference_logprobs, mask, rows, objective.kl.estimator)
        total = total + kl_weight * divergence.loss_sum
    if objective.entropy_weight > 0.0:
        total = total + objective.entropy_weight * entropy_loss(scores.entropy, mask, rows).loss_sum
    return PolicyStep(LossOutput(total, surrogate.loss.count), metrics)


def loss_count(batch: PolicyBatch, config: PolicyLossConfig) -> int:
    """Items that the surrogate of a PolicyBatch is divided by."""
    rows = row_weights(
        config.reduction,
        batch.action_mask,
        group_tokens=batch.group_tokens,
        group_rows=batch.group_rows,
        max_tokens=config.max_tokens,
    )
    return int(rows.count)


class Reference:
    """The reference policy: another model, a frozen copy of the start, or the policy without its adapters.

    It is no submodule of the module that is trained: a frozen copy is built again from its source, so that checkpoints
    hold the trained weights only.

    Args:
        source: where the policy comes from.
        other: where the reference comes from; None is the source, or with adapters the policy without them.
        share_prefixes: see `score_policy`.

    Raises:
        DataError: `other` names no model.
    """

    def __init__(self, source: ModelSource, other: ModelSource | None, share_prefixes: bool = False) -> None:
        self._share = share_prefixes
        self._source, self._by_adapters = other or source, other is None and source.lora is not None
        if other is not None and other.path is not None:
            resolve_folder(other.path)
        self.wanted = False
        self._frozen: tuple[PreTrainedModel, ...] = ()  # a tuple, so that nobody takes it for a submodule

    def build(self, policy: PreTrainedModel, tokenizer: Any) -> None:
        """Build it, when it is wanted and another model than the policy. ConfigError for another vocabulary."""
        if not self.wanted or self._by_adapters or self._frozen:
            return
        model = build_policy(self._source, tokenizer).eval().requires_grad_(False)
        ours, theirs = checked_lm_head(policy).out_features, checked_lm_head(model).out_features
        if ours != theirs:
            raise ConfigError("model.reference", f"{theirs} tokens", f"a model of the policy's {ours} tokens")
        self._frozen = (model,)

    def logprobs(self, policy: PreTrainedModel, input_ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """[B, T] log-probabilities under the reference where the mask is True; no gradient, no dropout."""
        with torch.no_grad(), evaluating(policy):
            if self._by_adapters:
                with _without_adapters(policy):
                    return score_policy(policy, input_ids, mask, temperature, share_prefixes=self._share).logprobs
            (model,) = self._frozen
            if model.device != input_ids.device:
                cast(nn.Module, model).to(input_ids.device)
            return score_policy(model, input_ids, mask, temperature, share_prefixes=self._share).logprobs


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
