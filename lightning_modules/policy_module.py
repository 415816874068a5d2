"""What every module that trains a policy has: a policy built from a source, an optimiser, logs of a step, an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_modules.formats import bind_format
from lightning_modules.optimizers import OptimizerConfig, build_optimizer
from lightning_modules.policy_logs import MetricWindow
from lightning_modules.window import WindowSums
from prmkit.batches import SFTBatch
from prmkit.losses import LossOutput, MetricSum, normalise, window_total
from prmkit.models import ModelSource, build_policy, checked_lm_head, resolve_folder, save_policy
from prmkit.rl.batches import OfflineBatch, PolicyBatch
from prmkit.weights import check_kind

__all__ = ["PolicyModule"]


class PolicyModule(LightningModule):
    """A policy under training. The loss, and what is logged of it, are the subclass's.

    Args:
        source: where the policy comes from.
        step_format: how problems and steps become tokens; None reads it from the source's folder.
        optimizer: optimiser and schedule.
        chunk_logits: logits held at once in the loss.

    Attributes:
        model: the policy; there once `configure_model` has run.
        bound_format, tokenizer: the step format in the tokenizer's ids, and the tokenizer.
    """

    model: PreTrainedModel

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None,
        optimizer: OptimizerConfig,
        chunk_logits: int,
    ) -> None:
        super().__init__()
        self.source = source
        self.optimizer_config = optimizer
        self.chunk_logits = chunk_logits
        self.bound_format = bind_format(source, step_format)
        self.tokenizer = self.bound_format.tokenizer
        self._window, self._metrics = WindowSums(), MetricWindow()

    def configure_model(self) -> None:
        # Here and not in __init__: sharding strategies build the model under contexts of their own.
        if not hasattr(self, "model"):
            self.model = self.build_model()
            self.build_beside()

    def build_model(self) -> PreTrainedModel:
        """The policy as its source says, untrained."""
        if self.source.path is not None:
            check_kind("model.source.path", self.source.path, resolve_folder(self.source.path), "policy")
        model = build_policy(self.source, self.tokenizer)
        checked_lm_head(model)
        return model

    def build_beside(self) -> None:
        """Build what a method needs beside its policy; called once, when the policy is there."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._window.log_step(self, optimizer)
        found, report = self._metrics.pop()
        self.log_dict({f"train/{name}": value for name, value in self.step_figures(found).items()})
        self.log_dict(report)

    def step_figures(self, found: Mapping[str, MetricSum]) -> dict[str, Tensor]:
        """What is logged of the figures that the losses of an optimiser step gave: their means."""
        return {name: figure.mean.float() for name, figure in found.items()}

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.parameters(), self.optimizer_config, self.trainer.estimated_stepping_batches)

    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None:
        """Write the policy as a folder that transformers and vLLM read."""
        save_policy(self.model, self.tokenizer, self.bound_format, directory, weight_version)

    def share_of_step(self, loss: LossOutput, batch: SFTBatch | PolicyBatch | OfflineBatch) -> Tensor:
        """A micro-batch's share of the optimiser step's loss, counted for the logs."""
        self._window.add(loss, batch)
        total = window_total(batch.window_count, self.device)
        return normalise(loss.loss_sum, total, self.trainer.accumulate_grad_batches)
