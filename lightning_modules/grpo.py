"""Policy optimisation without a critic: GRPO and its relatives, with rewards of outcomes and of steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.optimizers import OptimizerConfig
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
from lightning_modules.policy_module import PolicyModule
from prmkit.advantages import (
    GroupAdvantages,
    GroupConfig,
    Moments,
    outcome_advantages,
    process_advantages,
    spread_steps,
    step_token_counts,
)
from prmkit.errors import ConfigError
from prmkit.losses import (
    CHUNK_LOGITS,
    CorrectionConfig,
    PolicyLossConfig,
)
from prmkit.models import ModelSource

__all__ = ["GRPO"]


class GRPO(PolicyModule):
    """Trains a policy on its own solutions, each compared with the others for its prompt.

    Batches are `PolicyBatch`es of `datamodules.experience`; docs/algorithms.md says which settings make GRPO, DAPO, Dr.
    GRPO, GSPO, CISPO and RLOO. The loss of an optimiser step is divided once by its count over all micro-batches and
    ranks. Logs `train/...` an optimiser step (loss, policy_loss, kl, entropy, ratio, clipped_low, clipped_high,
    approximate_kl, importance_weight, importance_cut, generator_gap, generator_kl, lr, grad_norm), `rollout/...` an
    iteration (reward and its parts, length, steps, no_signal, tokens_per_second, ...), and `val/pass_at_1`.

    Args:
        source: where the policy comes from; one that solves some problems already.
        step_format: see SFT.
        optimizer: optimiser and schedule.
        advantage: group size, and how rewards become advantages.
        credit: "steps": rewards of steps have advantages of their own, which are added to the outcome's; "trace": one
            advantage from everything added up.
        process_weight: factor of the steps' advantages with credit "steps", at least 0.
        loss: the surrogate.
        kl: pull towards the reference.
        reference: the reference policy; None is the source, or with adapters the policy without them.
        entropy_weight: factor of the entropy bonus, at least 0.
        correction: importance weights of generator against trainer; None is 1 everywhere.
        temperature: of the policy, above 0: solutions are sampled, and probabilities taken, at it.
        chunk_logits: logits held at once in the loss.

    Attributes:
        model: the policy; there once `configure_model` has run.
        bound_format, tokenizer: the step format in the tokenizer's ids, and the tokenizer.
    """

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        advantage: GroupConfig = GroupConfig(),  # noqa: B008
        credit: Literal["steps", "trace"] = "steps",
        process_weight: float = 1.0,
        loss: PolicyLossConfig = PolicyLossConfig(reduction="sequence"),  # noqa: B008
        kl: KLPenalty = KLPenalty(),  # noqa: B008
        reference: ModelSource | None = None,
        entropy_weight: float = 0.0,
        correction: CorrectionConfig | None = CorrectionConfig(),  # noqa: B008
        temperature: float = 1.0,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__(source, step_format, optimizer, chunk_logits)
        if credit not in ("steps", "trace"):
            raise ConfigError("model.credit", credit, "steps | trace")
        if not process_weight >= 0.0:
            raise ConfigError("model.process_weight", process_weight, "a number of at least 0")
        self.advantage, self.credit, self.process_weight = advantage, credit, process_weight
        self.objective = PolicyObjective(loss, kl, entropy_weight, correction, temperature)
        self.temperature = temperature
        self.group_size = advantage.size
        self.reference = Reference(source, reference)
        self.reference.wanted = kl.weight > 0.0
        self.evaluation = PolicyEvaluation()

    def build_beside(self) -> None:
        self.reference.build(self.model, self.tokenizer)

    # -- asked by the data module (`Learner`) -------------------------------------------------------------------------

    def require_reference(self) -> None:
        self.reference.wanted = True

    def reference_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        return self.reference.logprobs(self.model, input_ids, written, self.temperature)

    def score_tokens(self, input_ids: Tensor, mask: Tensor, single_update: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with evaluating(self.model):
            if not single_update:
                scores = score_policy(self.model, input_ids, mask, self.temperature, self.chunk_logits)
                found["old_logprobs"] = scores.logprobs
            if self.objective.kl.weight > 0.0:
                found["reference_logprobs"] = self.reference.logprobs(self.model, input_ids, mask, self.temperature)
        return found

    def advantages(self, experience: Any) -> tuple[dict[str, Tensor], dict[str, tuple[float, int]]]:
        """See `Learner`. The outcome's advantage is that of whatever steps do not earn (credit "steps")."""
        by_steps = self.credit == "steps" and bool(experience.step_mask.any())
        rewards = experience.trace_rewards if by_steps else experience.total_rewards
        moments = None
        if self.advantage.outcome == "batch":
            own = Moments.of(rewards, experience.row_mask).sums
            moments = Moments(summed(own.to(self.device)).to(own.device))
        of_traces = outcome_advantages(self.advantage.outcome, rewards, experience.groups, experience.row_mask, moments)
        advantages = of_traces.advantages[:, None].expand(experience.action_mask.shape)
        signal = of_traces.signal
        if by_steps:
            of_steps = self._process(experience)
            advantages = advantages + self.process_weight * spread_steps(of_steps.advantages, experience.index)
            signal = signal | of_steps.signal
        advantages = torch.where(experience.action_mask, advantages, 0.0)
        silent, groups = _groups_without(signal, experience.groups)
        return {"advantages": advantages}, {"no_signal": (float(silent), groups)}

    def loss_count(self, batch: Any) -> int:
        return loss_count(batch, self.objective.loss)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any) -> Tensor:
        scores = score_policy(self.model, batch.input_ids, batch.action_mask, self.temperature, self.chunk_logits)
        step = policy_step(scores, batch, self.objective)
        self._metrics.add(step.metrics, batch.report)
        return self.share_of_step(step.loss, batch)

    def validation_step(self, batch: Any) -> None:
        self.evaluation.record(self, batch, "val")

    def test_step(self, batch: Any) -> None:
        self.evaluation.record(self, batch, "test")

    def _process(self, experience: Any) -> GroupAdvantages:
        steps = experience.step_rewards.shape[1]
        counts = step_token_counts(experience.index, steps) * experience.step_mask
        return process_advantages(
            self.advantage.process, experience.step_rewards, counts, experience.groups, experience.row_mask
        )


def _groups_without(signal: Tensor, groups: Tensor) -> tuple[int, int]:
    """Groups none of whose rows has a signal, and all groups."""
    with_signal = set(groups[signal].tolist())
    every = set(groups.tolist())
    return len(every - with_signal), len(every)
