"""Offline regression on solutions: advantage-weighted regression, and rejection-sampling fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lightning_modules.formats import bind_format
from lightning_modules.optimizers import OptimizerConfig, build_optimizer
from lightning_modules.policy_actor import MetricWindow, score_policy
from lightning_modules.window import WindowSums
from prmkit.errors import ConfigError
from prmkit.losses import (
    CHUNK_LOGITS,
    PolicyLossOutput,
    advantage_weighted_regression,
    normalise,
    row_weights,
    window_total,
)
from prmkit.models import ModelSource, build_policy, checked_lm_head, save_policy

__all__ = ["AWR"]


class AWR(LightningModule):
    """Trains a policy on solutions, each weighed by exp(advantage / temperature).

    Batches are `OfflineBatch`es of `datamodules.experience_offline`: rows "solutions" make AWR, "right" (all with
    weight 1) rejection-sampling fine-tuning. The loss of an optimiser step is the mean over its tokens. Logs
    `train/loss`, `train/weight`, `train/bounded` (share of tokens at the bound), `val/loss`.

    Args:
        source, step_format, optimizer, chunk_logits: see SFT.
        temperature: above 0; smaller trusts advantages more.
        max_weight: bound on the weight, above 0.
    """

    model: PreTrainedModel

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        temperature: float = 1.0,
        max_weight: float = 20.0,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("max_weight", max_weight)):
            if not value > 0.0:
                raise ConfigError(f"model.{name}", value, "a number above 0")
        self.source, self.optimizer_config = source, optimizer
        self.temperature, self.max_weight, self.chunk_logits = temperature, max_weight, chunk_logits
        self.bound_format = bind_format(source, step_format)
        self.tokenizer = self.bound_format.tokenizer
        self.eval_loss = MeanMetric()
        self._window, self._metrics = WindowSums(), MetricWindow()

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = build_policy(self.source, self.tokenizer)
            checked_lm_head(self.model)

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
        self.log("val/loss", self.eval_loss, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.parameters(), self.optimizer_config, self.trainer.estimated_stepping_batches)

    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None:
        """Write the policy as a folder that transformers and vLLM read."""
        save_policy(self.model, self.tokenizer, self.bound_format, directory, weight_version)

    def _loss(self, batch: Any) -> PolicyLossOutput:
        mask = batch.action_mask
        scores = score_policy(self.model, batch.input_ids, mask, 1.0, self.chunk_logits)
        return advantage_weighted_regression(
            scores.logprobs,
            batch.advantages[:, None],
            mask,
            row_weights("token", mask),
            self.temperature,
            self.max_weight,
        )
