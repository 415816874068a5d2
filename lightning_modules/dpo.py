"""Offline preference optimisation: DPO, step-DPO and IPO on pairs of solutions or steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lightning_modules.formats import bind_format
from lightning_modules.optimizers import OptimizerConfig, build_optimizer
from lightning_modules.policy_actor import MetricWindow, Reference, evaluating, score_policy
from lightning_modules.window import WindowSums
from prmkit.losses import (
    CHUNK_LOGITS,
    PreferenceConfig,
    PreferenceOutput,
    logprob_sums,
    normalise,
    preference_loss,
    window_total,
)
from prmkit.models import ModelSource, build_policy, checked_lm_head, save_policy

__all__ = ["DPO"]


class DPO(LightningModule):
    """Trains a policy to prefer the chosen of each pair over the rejected.

    Batches are `OfflineBatch`es of `datamodules.experience_offline`: rows "pairs" make DPO (or IPO), "step_pairs"
    step-DPO. The loss of an optimiser step is the mean over its pairs, whichever way they are split. Logs `train/loss`,
    `train/accuracy`, `train/margin`, `train/chosen_reward`, `train/rejected_reward`, `val/loss`, `val/accuracy`.

    Args:
        source, step_format, optimizer, chunk_logits: see SFT.
        loss: which preference loss.
        reference: the reference policy; None is the source, or with adapters the policy without them.
    """

    model: PreTrainedModel

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        loss: PreferenceConfig = PreferenceConfig(),  # noqa: B008
        reference: ModelSource | None = None,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__()
        self.source, self.optimizer_config = source, optimizer
        self.preference, self.chunk_logits = loss, chunk_logits
        self.bound_format = bind_format(source, step_format)
        self.tokenizer = self.bound_format.tokenizer
        self.reference = Reference(source, reference)
        self.reference.wanted = True
        self.eval_loss, self.eval_accuracy = MeanMetric(), MeanMetric()
        self._window, self._metrics = WindowSums(), MetricWindow()

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = build_policy(self.source, self.tokenizer)
            checked_lm_head(self.model)
            self.reference.build(self.model, self.tokenizer)

    def training_step(self, batch: Any) -> Tensor:
        output = self._loss(batch)
        self._window.add(output.loss, batch)
        self._metrics.add(output.metrics, None)
        total = window_total(batch.window_count, self.device)
        return normalise(output.loss.loss_sum, total, self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._window.log_step(self, optimizer)
        found, _ = self._metrics.pop()
        self.log_dict({f"train/{name}": figure.mean.float() for name, figure in found.items()})

    def validation_step(self, batch: Any) -> None:
        output = self._loss(batch)
        self.eval_loss.update(output.loss.mean, output.loss.count)
        self.eval_accuracy.update(output.metrics["accuracy"].mean, output.loss.count)
        self.log("val/loss", self.eval_loss, on_step=False, on_epoch=True)
        self.log("val/accuracy", self.eval_accuracy, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.parameters(), self.optimizer_config, self.trainer.estimated_stepping_batches)

    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None:
        """Write the policy as a folder that transformers and vLLM read."""
        save_policy(self.model, self.tokenizer, self.bound_format, directory, weight_version)

    def _loss(self, batch: Any) -> PreferenceOutput:
        ids, mask = batch.input_ids, batch.action_mask
        with torch.no_grad(), evaluating(self.model):
            reference = logprob_sums(self.reference.logprobs(self.model, ids, mask, 1.0), mask)
        found = logprob_sums(score_policy(self.model, ids, mask, 1.0, self.chunk_logits).logprobs, mask)
        pairs = batch.pairs  # a filler batch has one row and no pair: both halves are empty, the graph stays whole
        chosen, rejected = found[:pairs], found[pairs : 2 * pairs]
        return preference_loss(chosen, rejected, reference[:pairs], reference[pairs : 2 * pairs], self.preference)
