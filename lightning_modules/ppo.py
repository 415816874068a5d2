"""Policy optimisation with a critic: PPO over tokens, with rewards of outcomes and of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_modules.optimizers import OptimizerConfig, build_optimizer
from lightning_modules.policy_actor import (
    KLPenalty,
    PolicyEvaluation,
    PolicyObjective,
    Reference,
    evaluating,
    loss_count,
    policy_step,
    score_policy,
    summed,
)
from lightning_modules.policy_critic import Critic, CriticConfig
from lightning_modules.policy_module import PolicyModule
from prmkit.advantages import GAEConfig, Moments, gae, whiten
from prmkit.errors import ConfigError
from prmkit.losses import (
    CHUNK_LOGITS,
    CorrectionConfig,
    MetricSum,
    PolicyLossConfig,
    explained_variance,
    normalise,
    value_loss,
    window_total,
)
from prmkit.models import ModelSource

__all__ = ["PPO"]


class PPO(PolicyModule):
    """Trains a policy and a critic on the policy's own solutions.

    Batches are `PolicyBatch`es of `datamodules.experience`. Rewards fall on tokens: a step's on its last one, the
    outcome on the last of all. Advantages are GAE's, whitened over all processes. The policy's loss and the critic's
    are divided by counts of their own over all micro-batches and ranks. Logs what GRPO does, and `train/value_loss`,
    `train/explained_variance`, `train/value_clipped`.

    Args:
        source, step_format, optimizer: see GRPO; the schedule is the critic's too.
        samples: solutions a prompt, at least 1.
        advantage: discounts.
        whiten: advantages get mean 0 and deviation 1 over the iteration.
        critic: where values come from.
        loss, kl, reference, entropy_weight, correction, temperature, chunk_logits: see GRPO.

    Attributes:
        model: the policy; there once `configure_model` has run.
        critic: the critic's own parameters; likewise.
        bound_format, tokenizer: the step format in the tokenizer's ids, and the tokenizer.
    """

    critic: Critic

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        samples: int = 1,
        advantage: GAEConfig = GAEConfig(),  # noqa: B008
        whiten: bool = True,
        critic: CriticConfig = CriticConfig(),  # noqa: B008
        loss: PolicyLossConfig = PolicyLossConfig(),  # noqa: B008
        kl: KLPenalty = KLPenalty(),  # noqa: B008
        reference: ModelSource | None = None,
        entropy_weight: float = 0.0,
        correction: CorrectionConfig | None = CorrectionConfig(),  # noqa: B008
        temperature: float = 1.0,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__(source, step_format, optimizer, chunk_logits)
        if samples < 1:
            raise ConfigError("model.samples", samples, "an integer of at least 1")
        self.group_size, self.advantage, self.whiten = samples, advantage, whiten
        self.critic_config = critic
        self.objective = PolicyObjective(loss, kl, entropy_weight, correction, temperature)
        self.temperature = temperature
        self.reference = Reference(source, reference)
        self.reference.wanted = kl.weight > 0.0
        self.evaluation = PolicyEvaluation()

    def build_beside(self) -> None:
        self.critic = Critic(self.critic_config, self.source, self.model, self.tokenizer)
        self.reference.build(self.model, self.tokenizer)

    # -- asked by the data module (`Learner`) -------------------------------------------------------------------------

    def require_reference(self) -> None:
        self.reference.wanted = True

    def reference_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        return self.reference.logprobs(self.model, input_ids, written, self.temperature)

    def score_tokens(self, input_ids: Tensor, mask: Tensor, single_update: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with evaluating(self):
            states = None
            if not single_update:
                scores = score_policy(self.model, input_ids, mask, self.temperature, self.chunk_logits)
                found["old_logprobs"], states = scores.logprobs, scores.states
            found["old_values"] = self.critic(self.model, input_ids, mask, states)
            if self.objective.kl.weight > 0.0:
                found["reference_logprobs"] = self.reference.logprobs(self.model, input_ids, mask, self.temperature)
        return found

    def advantages(self, experience: Any) -> tuple[dict[str, Tensor], dict[str, tuple[float, int]]]:
        """See `Learner`. A solution that was cut off ends there: nothing is expected behind it."""
        mask = experience.action_mask
        found = gae(experience.token_rewards, experience.old_values, mask, self.advantage.gamma, self.advantage.lam)
        advantages = found.advantages
        own = Moments.of(advantages, mask)
        if self.whiten:
            moments = Moments(summed(own.sums.to(self.device)).to(own.sums.device))
            advantages = whiten(advantages, mask, moments)
        count, total, squares = own.sums.tolist()
        report = {"advantage": (total, int(count)), "advantage_squared": (squares, int(count))}
        return {"advantages": advantages, "returns": found.returns}, report

    def loss_count(self, batch: Any) -> int:
        return loss_count(batch, self.objective.loss)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any) -> Tensor:
        mask, config = batch.action_mask, self.critic_config
        scores = score_policy(self.model, batch.input_ids, mask, self.temperature, self.chunk_logits)
        step = policy_step(scores, batch, self.objective)
        values = self.critic(self.model, batch.input_ids, mask, scores.states)
        critic = value_loss(values, batch.old_values, batch.returns, mask, config.clip)
        self._window.add(step.loss, batch)
        of_critic = {f"value_{name}": figure for name, figure in critic.metrics.items()}
        of_critic["value_loss"] = MetricSum(critic.loss.loss_sum.detach(), critic.loss.count)
        self._metrics.add({**step.metrics, **of_critic}, batch.report)
        counts = window_total(torch.tensor([batch.window_count, batch.window_tokens]).to(self.device))
        accumulation = self.trainer.accumulate_grad_batches
        of_policy = normalise(step.loss.loss_sum, counts[0], accumulation)
        return of_policy + config.weight * normalise(critic.loss.loss_sum, counts[1], accumulation)

    def step_figures(self, found: Mapping[str, MetricSum]) -> dict[str, Tensor]:
        critic = {name.removeprefix("value_"): figure for name, figure in found.items() if name.startswith("value_")}
        figures = {name: figure.mean.float() for name, figure in found.items() if not name.endswith("_squared")}
        figures["explained_variance"] = explained_variance(critic).float()
        return figures

    def validation_step(self, batch: Any) -> None:
        self.evaluation.record(self, batch, "val")

    def test_step(self, batch: Any) -> None:
        self.evaluation.record(self, batch, "test")

    def configure_optimizers(self) -> Any:
        lr = self.optimizer_config.lr if self.critic_config.lr is None else self.critic_config.lr
        return build_optimizer(
            self.model.parameters(),
            self.optimizer_config,
            self.trainer.estimated_stepping_batches,
            others=[(self.critic.parameters(), lr)],
        )
