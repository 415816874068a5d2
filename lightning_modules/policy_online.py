"""What GRPO and PPO share as modules: objective, reference, implicit PRM, KL coefficient, and examination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from lightning_modules.optimizers import OptimizerConfig, build_optimizer
from lightning_modules.policy_actor import (
    PolicyEvaluation,
    PolicyObjective,
    PolicyScores,
    PolicyStep,
    Reference,
    loss_count,
    policy_step,
    score_policy,
    summed,
)
from lightning_modules.policy_implicit import ImplicitPRM, ImplicitPRMConfig
from lightning_modules.policy_module import PolicyModule
from prmkit.errors import ConfigError
from prmkit.losses import MetricSum, normalise, window_total
from prmkit.models import ModelSource
from prmkit.rewards import ChangingWeight, GroupCounts, ProcessWeight, RewardsConfig

__all__ = ["OnlinePolicy"]


class OnlinePolicy(PolicyModule):
    """A policy that is trained on its own solutions; what is learnt from them is the subclass's.

    The KL coefficient, where it adapts, and the weight of process rewards, where it changes, are part of checkpoints.

    Args:
        source, step_format, optimizer, chunk_logits: see PolicyModule.
        objective: terms of the policy's loss.
        reference: the reference policy; None is the source, or with adapters the policy without them.
        implicit: the implicit PRM, for `data.rewards.implicit`; None for none.
        share_prefixes: see `score_policy`.
        process_weight: factor of process rewards; see GRPO and PPO.

    Attributes:
        process_weight: the factor as it is now.
    """

    group_size: int

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None,
        optimizer: OptimizerConfig,
        objective: PolicyObjective,
        reference: ModelSource | None,
        implicit: ImplicitPRMConfig | None,
        share_prefixes: bool,
        chunk_logits: int,
        process_weight: float | ProcessWeight,
    ) -> None:
        super().__init__(source, step_format, optimizer, chunk_logits)
        self.objective, self.temperature = objective, objective.temperature
        self.share_prefixes = share_prefixes
        self.reference = Reference(source, reference, share_prefixes)
        self.reference.wanted = objective.kl.used
        self.kl_weight = objective.kl.weight
        self.implicit_config, self._beta = implicit, 0.0
        self.implicit: ImplicitPRM | None = None
        self.process_weight = ChangingWeight(process_weight)
        self.evaluation = PolicyEvaluation()

    def build_beside(self) -> None:
        if self.share_prefixes:
            self._check_sharing()
        self.reference.build(self.model, self.tokenizer)
        if self._beta > 0.0:
            assert self.implicit_config is not None
            self.implicit = ImplicitPRM(
                self.implicit_config, self.source, self.model, self.tokenizer, self._beta, self.share_prefixes
            )

    def _check_sharing(self) -> None:
        if getattr(self.model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
            raise ConfigError("model.share_prefixes", True, "false with attention other than sdpa and eager")
        strategy = None if self._trainer is None else self._trainer.strategy
        if isinstance(strategy, FSDPStrategy) or getattr(strategy, "zero_stage_3", False):
            raise ConfigError(
                "model.share_prefixes", True, "false where parameters are sharded",
                "Ranks would gather them for different numbers of passes.",
            )  # fmt: skip

    # -- asked by the data module (`Learner`) -------------------------------------------------------------------------

    def require_reference(self) -> None:
        self.reference.wanted = True

    def require_implicit(self, beta: float) -> None:
        if self.implicit_config is None:
            raise ConfigError("model.implicit", None, "an implicit PRM ({} will do), for data.rewards.implicit")
        self._beta = beta

    def check_rewards(self, rewards: RewardsConfig) -> None:
        """See `Learner`: a process weight that changes needs rewards of steps or tokens, and outcomes to follow."""
        if not self.process_weight.changes:
            return
        setting = self.process_weight.setting
        if rewards.process is None and rewards.implicit is None:
            raise ConfigError(
                "model.process_weight", setting, "a number without process rewards",
                "Set data.rewards.process and data.prm, or take the schedule away.",
            )  # fmt: skip
        if not self.process_weight.follows_outcomes:
            return
        if rewards.outcome is None:
            accepted = "a part, of weight 0 at least: model.process_weight follows outcomes"
            raise ConfigError("data.rewards.outcome", None, accepted)
        if self.group_size < 2:
            raise ConfigError(
                "model.process_weight", setting, "a number or a schedule with one solution a prompt",
                "A group of one is always all right or all wrong.",
            )  # fmt: skip

    def begin_iteration(self, update: int, groups: GroupCounts) -> dict[str, tuple[float, int]]:
        """See `Learner`: the process weight follows the groups of all ranks."""
        own = torch.tensor([groups.judged, groups.all_wrong, groups.all_right], device=self.device)
        self.process_weight.begin(update, GroupCounts(*summed(own).tolist()))
        return {name: (float(getattr(groups, name)), groups.judged) for name in ("all_wrong", "all_right")}

    def reference_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        return self.reference.logprobs(self.model, input_ids, written, self.temperature)

    def implicit_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        assert self.implicit is not None
        return self.implicit.rewards_input(input_ids, written, self.temperature)

    def loss_count(self, batch: Any) -> int:
        return loss_count(batch, self.objective.loss)

    def reference_fields(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Fields of Experience about the reference, where the losses need them."""
        if not self.objective.kl.used and self.implicit is None:
            return {}
        return {"reference_logprobs": self.reference_logprobs(input_ids, mask)}

    def score(self, input_ids: Tensor, mask: Tensor) -> PolicyScores:
        """The policy's log-probabilities; see `score_policy`."""
        return score_policy(self.model, input_ids, mask, self.temperature, self.chunk_logits, self.share_prefixes)

    # -- training -----------------------------------------------------------------------------------------------------

    def forward_policy(self, batch: Any) -> tuple[PolicyScores, PolicyStep]:
        """The policy on a PolicyBatch, and its loss."""
        scores = self.score(batch.input_ids, batch.action_mask)
        return scores, policy_step(scores, batch, self.objective, self.kl_weight)

    def share_of_implicit(self, batch: Any) -> tuple[Tensor | float, dict[str, MetricSum]]:
        """A micro-batch's share of the implicit PRM's loss in the optimiser step, and its figures; 0 without one."""
        if self.implicit is None or self.implicit_config is None:
            return 0.0, {}
        found = self.implicit.loss(batch, self.temperature, self.chunk_logits)
        total = window_total(batch.window_judged, self.device)
        share = normalise(found.loss.loss_sum, total, self.trainer.accumulate_grad_batches)
        metrics = {f"implicit_{name}": figure for name, figure in found.metrics.items()}
        metrics["implicit_loss"] = MetricSum(found.loss.loss_sum.detach(), found.loss.count)
        return self.implicit_config.weight * share, metrics

    def step_figures(self, found: Mapping[str, MetricSum]) -> dict[str, Tensor]:
        """Means; and the KL coefficient follows the divergence of this step."""
        figures = super().step_figures(found)
        if self.process_weight.changes:
            figures["process_weight"] = torch.tensor(self.process_weight.now)
        if self.objective.kl.target is not None:
            figures["kl_weight"] = torch.tensor(self.kl_weight)
            self.kl_weight = self.objective.kl.adapted(self.kl_weight, float(found["kl"].mean))
        return figures

    def validation_step(self, batch: Any) -> None:
        self.evaluation.record(self, batch, "val")

    def test_step(self, batch: Any) -> None:
        self.evaluation.record(self, batch, "test")

    def configure_optimizers(self) -> Any:
        others = []
        if self.implicit is not None and self.implicit_config is not None:
            others.append((self.implicit.parameters(), self.implicit_config.lr or self.optimizer_config.lr))
        return build_optimizer(
            self.model.parameters(),
            self.optimizer_config,
            self.trainer.estimated_stepping_batches,
            others=[*others, *self.other_parameters()],
        )

    def other_parameters(self) -> list[tuple[Any, float]]:
        """Parameters beside the policy's, each with its learning rate."""
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["kl_weight"] = self.kl_weight
        checkpoint["process_weight"] = self.process_weight.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.kl_weight = checkpoint["kl_weight"] if self.objective.kl.target is not None else self.objective.kl.weight
        self.process_weight.load_state_dict(checkpoint["process_weight"])
