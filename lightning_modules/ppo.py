"""Policy optimisation with a critic: PPO over tokens, with rewards of outcomes and of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_actor import KLPenalty, PolicyObjective, evaluating, summed
from lightning_modules.policy_critic import Critic, CriticConfig
from lightning_modules.policy_implicit import ImplicitPRMConfig
from lightning_modules.policy_online import OnlinePolicy
from prmkit.advantages import GAEConfig, Moments, gae, step_table, two_level_gae, whiten
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
from prmkit.rewards import ProcessWeight

__all__ = ["PPO"]


class PPO(OnlinePolicy):
    """Trains a policy and a critic on the policy's own solutions.

    Batches are `PolicyBatch`es of `datamodules.experience`. Rewards fall on tokens: a step's on its last one, the
    outcome on the last of all. Advantages are GAE's, whitened over all processes. The policy's loss and those of the
    critic are divided by counts of their own over all micro-batches and ranks. Logs what GRPO does, and
    `train/value_loss`, `train/explained_variance`, `train/value_clipped`; with levels "steps" also
    `train/step_value_loss`, `train/step_explained_variance` and `train/step_value_clipped`.

    Args:
        source, step_format, optimizer: see GRPO; the schedule is the critic's too.
        samples: solutions a prompt, at least 1.
        advantage: discounts.
        levels: "tokens": GAE over tokens. "steps": over steps, by a step critic of its own, and within each step over
            its tokens (`two_level_gae`); steps and outcomes then reward steps, and only rewards of tokens tokens.
        process_weight: factor of the rewards of steps beside `data.rewards.process.weight`, at least 0; or how it
            changes, see GRPO.
        whiten: advantages get mean 0 and deviation 1 over the iteration.
        critic: where values come from.
        loss, kl, reference, entropy_weight, correction, temperature, implicit, share_prefixes, chunk_logits: see GRPO.

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
        levels: Literal["tokens", "steps"] = "tokens",
        process_weight: float | ProcessWeight = 1.0,
        whiten: bool = True,
        critic: CriticConfig = CriticConfig(),  # noqa: B008
        loss: PolicyLossConfig = PolicyLossConfig(),  # noqa: B008
        kl: KLPenalty = KLPenalty(),  # noqa: B008
        reference: ModelSource | None = None,
        entropy_weight: float = 0.0,
        correction: CorrectionConfig | None = CorrectionConfig(),  # noqa: B008
        temperature: float = 1.0,
        implicit: ImplicitPRMConfig | None = None,
        share_prefixes: bool = False,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        objective = PolicyObjective(loss, kl, entropy_weight, correction, temperature)
        super().__init__(
            source, step_format, optimizer, objective, reference, implicit, share_prefixes, chunk_logits, process_weight
        )
        if samples < 1:
            raise ConfigError("model.samples", samples, "an integer of at least 1")
        self.group_size, self.advantage, self.whiten = samples, advantage, whiten
        if levels not in ("tokens", "steps"):
            raise ConfigError("model.levels", levels, "tokens | steps")
        self.critic_config, self.levels = critic, levels

    def build_beside(self) -> None:
        super().build_beside()
        self.critic = Critic(self.critic_config, self.source, self.model, self.tokenizer, self.levels == "steps")

    # -- asked by the data module (`Learner`) -------------------------------------------------------------------------

    @property
    def skips_silent(self) -> bool:
        return False  # every row teaches the critic

    def score_tokens(self, input_ids: Tensor, mask: Tensor, single_update: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with evaluating(self):
            states = None
            if not single_update or self.critic_config.kind == "head":
                scores = self.score(input_ids, mask)
                states = scores.states
            if not single_update:
                found["old_logprobs"] = scores.logprobs
            values = self.critic(self.model, input_ids, mask, states)
            found |= dict(zip(("old_values", "old_step_values"), values, strict=False))
        return found | self.reference_fields(input_ids, mask)

    def advantages(self, experience: Any) -> tuple[dict[str, Tensor], dict[str, tuple[float, int]]]:
        """See `Learner`. A solution that was cut off ends there: nothing is expected behind it."""
        mask, config = experience.action_mask, self.advantage
        if self.levels == "steps":
            advantages, found = self._by_steps(experience)
        else:
            of_tokens = gae(self._token_rewards(experience), experience.old_values, mask, config.gamma, config.lam)
            advantages, found = of_tokens.advantages, {"returns": of_tokens.returns}
        own = Moments.of(advantages, mask)
        if self.whiten:
            moments = Moments(summed(own.sums.to(self.device)).to(own.sums.device))
            advantages = whiten(advantages, mask, moments)
        count, total, squares = own.sums.tolist()
        report = {"advantage": (total, int(count)), "advantage_squared": (squares, int(count))}
        return {"advantages": advantages, **found}, report

    def _token_rewards(self, experience: Any) -> Tensor:
        """[N, T] rewards at the tokens that earn them, those of steps times their weight."""
        weight, rewards = self.process_weight.now, experience.token_rewards
        return rewards if weight == 1.0 else rewards + (weight - 1.0) * experience.step_end_rewards

    def _by_steps(self, experience: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Advantages of tokens, [N, T], and targets of both critics. A solution without steps is one step."""
        mask = experience.action_mask
        bare = mask & (experience.index < 0).all(1, keepdim=True)
        index = torch.where(mask, torch.where(bare, 0, experience.index), -1)
        steps = step_table(index, experience.step_rewards.shape[1])
        rewards = torch.where(steps.mask, self.process_weight.now * experience.step_rewards, 0.0)
        rewards = rewards + torch.where(steps.last, experience.outcome_rewards[:, None], 0.0)
        found = two_level_gae(
            rewards,
            experience.old_step_values.gather(1, steps.starts),
            steps.mask,
            experience.own_rewards,
            experience.old_values,
            index,
            self.advantage,
        )
        returns = torch.zeros_like(experience.old_values)
        returns.scatter_add_(1, steps.starts, torch.where(steps.mask, found.step.returns, 0.0))
        starts = torch.zeros_like(returns).scatter_add_(1, steps.starts, steps.mask.to(returns.dtype)) > 0
        targets = {"returns": found.token.returns, "step_returns": returns, "step_starts": starts}
        return found.token.advantages, targets

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any) -> Tensor:
        scores, step = self.forward_policy(batch)
        values = self.critic(self.model, batch.input_ids, batch.action_mask, scores.states)
        heads = {"value": (values[0], batch.old_values, batch.returns, batch.action_mask, batch.window_tokens)}
        if self.levels == "steps":
            of_steps = (values[1], batch.old_step_values, batch.step_returns, batch.step_starts, batch.window_steps)
            heads["step_value"] = of_steps
        of_implicit, figures = self.share_of_implicit(batch)
        loss = self.share_of_step(step.loss, batch) + of_implicit
        for name, (given, old, returns, mask, count) in heads.items():
            found = value_loss(given, old, returns, mask, self.critic_config.clip)
            figures |= {f"{name}_{part}": figure for part, figure in found.metrics.items()}
            figures[f"{name}_loss"] = MetricSum(found.loss.loss_sum.detach(), found.loss.count)
            total = window_total(count, self.device)
            share = normalise(found.loss.loss_sum, total, self.trainer.accumulate_grad_batches)
            loss = loss + self.critic_config.weight * share
        self._metrics.add({**step.metrics, **figures}, batch.report)
        return loss

    def step_figures(self, found: Mapping[str, MetricSum]) -> dict[str, Tensor]:
        kept = {name: figure for name, figure in found.items() if not name.endswith("_squared")}
        figures = super().step_figures(kept)
        for prefix in ("", "step_"):
            head = f"{prefix}value_"
            of_critic = {name.removeprefix(head): value for name, value in found.items() if name.startswith(head)}
            if of_critic:
                figures[f"{prefix}explained_variance"] = explained_variance(of_critic).float()
        return figures

    def other_parameters(self) -> list[tuple[Any, float]]:
        lr = self.optimizer_config.lr if self.critic_config.lr is None else self.critic_config.lr
        return [(self.critic.parameters(), lr)]
