"""Policy optimisation without a critic: GRPO and its relatives, with rewards of outcomes and of steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_actor import KLPenalty, PolicyObjective, evaluating, summed
from lightning_modules.policy_implicit import ImplicitPRMConfig
from lightning_modules.policy_online import OnlinePolicy
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
from prmkit.rewards import ProcessWeight

__all__ = ["GRPO"]


class GRPO(OnlinePolicy):
    """Trains a policy on its own solutions, each compared with the others for its prompt.

    Batches are `PolicyBatch`es of `datamodules.experience`; docs/algorithms.md says which settings make GRPO, DAPO, Dr.
    GRPO, GSPO, CISPO and RLOO. The loss of an optimiser step is divided once by its count over all micro-batches and
    ranks. Logs `train/...` an optimiser step (loss, policy_loss, kl, entropy, ratio, clipped_low, clipped_high,
    approximate_kl, importance_weight, importance_cut, generator_gap, generator_kl, lr, grad_norm), `rollout/...` an
    iteration (reward and its parts, length, steps, no_signal, tokens_per_second, ...), and `val/pass_at_1`. Where
    advantages alone make the gradient, rows without any are counted and not computed: figures of an optimiser step are
    then over the rows that were.

    Args:
        source: where the policy comes from; one that solves some problems already.
        step_format: see SFT.
        optimizer: optimiser and schedule.
        advantage: group size, and how rewards become advantages.
        credit: "steps": rewards of steps have advantages of their own, which are added to the outcome's; "trace": one
            advantage from everything added up; "tokens": as "steps" with every token a step of its own, which earns its
            own reward, and at a step's end the step's.
        process_weight: factor of the steps' (tokens') advantages with credit "steps" ("tokens"), at least 0; or how it
            changes, by a schedule or with the outcomes (`ProcessWeight`). Logs `train/process_weight` where it changes.
        loss: the surrogate.
        kl: pull towards the reference.
        reference: the reference policy; None is the source, or with adapters the policy without them.
        entropy_weight: factor of the entropy bonus, at least 0.
        correction: importance weights of generator against trainer; None is 1 everywhere.
        temperature: of the policy, above 0: solutions are sampled, and probabilities taken, at it.
        implicit: the implicit PRM that is trained along, for `data.rewards.implicit`; None for none. With
            advantage.outcome "rloo", advantage.process "token_baseline" and credit "tokens" this is PRIME (arXiv
            2502.01456). Logs `train/implicit_loss`, `train/implicit_accuracy`, `train/implicit_right` and
            `train/implicit_wrong` (mean total reward of right and of wrong solutions).
        share_prefixes: compute once what solutions of a prompt in a micro-batch have in common, in training and
            scoring: the same gradients for a fraction of the work where solutions are short or much alike. A tree of
            solutions attends to itself by a dense mask, so long ones are better off without. Attention "sdpa" or
            "eager" only, and no sharded parameters (FSDP, ZeRO-3).
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
        credit: Literal["steps", "tokens", "trace"] = "steps",
        process_weight: float | ProcessWeight = 1.0,
        loss: PolicyLossConfig = PolicyLossConfig(reduction="sequence"),  # noqa: B008
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
        if credit not in ("steps", "tokens", "trace"):
            raise ConfigError("model.credit", credit, "steps | tokens | trace")
        if credit == "trace" and process_weight != 1.0:
            raise ConfigError(
                "model.process_weight", process_weight, "1 with model.credit trace, which adds all rewards up",
                "Weigh them there by data.rewards.process.weight.",
            )  # fmt: skip
        self.advantage, self.credit = advantage, credit
        self.group_size = advantage.size

    # -- asked by the data module (`Learner`) -------------------------------------------------------------------------

    @property
    def skips_silent(self) -> bool:
        return not self.objective.kl.used and self.objective.entropy_weight == 0.0 and self.implicit is None

    def score_tokens(self, input_ids: Tensor, mask: Tensor, single_update: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with evaluating(self.model):
            if not single_update:
                scores = self.score(input_ids, mask)
                found["old_logprobs"] = scores.logprobs
        return found | self.reference_fields(input_ids, mask)

    def advantages(self, experience: Any) -> tuple[dict[str, Tensor], dict[str, tuple[float, int]]]:
        """See `Learner`. The outcome's advantage is that of whatever steps (or tokens) do not earn."""
        of_parts = self._of_parts(experience)
        rewards = experience.total_rewards
        if of_parts is not None:
            rewards = experience.trace_rewards if self.credit == "steps" else experience.outcome_rewards
        moments = None
        if self.advantage.outcome == "batch":
            own = Moments.of(rewards, experience.row_mask).sums
            moments = Moments(summed(own.to(self.device)).to(own.device))
        of_traces = outcome_advantages(self.advantage.outcome, rewards, experience.groups, experience.row_mask, moments)
        advantages = of_traces.advantages[:, None].expand(experience.action_mask.shape)
        signal = of_traces.signal
        if of_parts is not None:
            spread = of_parts.advantages
            if self.credit == "steps":
                spread = spread_steps(spread, experience.index)
            advantages = advantages + self.process_weight.now * spread
            signal = signal | of_parts.signal
        advantages = torch.where(experience.action_mask, advantages, 0.0)
        silent, groups = _groups_without(signal, experience.groups)
        return {"advantages": advantages}, {"no_signal": (float(silent), groups)}

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any) -> Tensor:
        _, step = self.forward_policy(batch)
        of_implicit, figures = self.share_of_implicit(batch)
        self._metrics.add({**step.metrics, **figures}, batch.report)
        return self.share_of_step(step.loss, batch) + of_implicit

    def _of_parts(self, experience: Any) -> GroupAdvantages | None:
        """Advantages of steps, [N, S], or of tokens, [N, T]; None where only whole solutions earn anything."""
        if self.credit == "tokens":
            rewards, counts = experience.dense_rewards, experience.action_mask.long()
        elif self.credit == "steps" and bool(experience.step_mask.any()):
            rewards = experience.step_rewards
            counts = step_token_counts(experience.index, rewards.shape[1]) * experience.step_mask
        else:
            return None
        how, rows = self.advantage, (experience.groups, experience.row_mask)
        return process_advantages(how.process, rewards, counts, *rows, how.gamma)


def _groups_without(signal: Tensor, groups: Tensor) -> tuple[int, int]:
    """Groups none of whose rows has a signal, and all groups."""
    with_signal = set(groups[signal].tolist())
    every = set(groups.tolist())
    return len(every - with_signal), len(every)
