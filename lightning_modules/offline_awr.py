"""Offline regression on solutions: advantage-weighted regression, and rejection-sampling fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_module import PolicyModule
from prmkit.errors import ConfigError
from prmkit.losses import CHUNK_LOGITS, PolicyLossOutput, advantage_weighted_regression, row_weights
from prmkit.models import ModelSource
from prmkit.rl.batches import OfflineBatch
from prmkit.rl.policy_step import score_policy

__all__ = ["AWR"]


class AWR(PolicyModule):
    """Trains a policy on solutions, each weighed by exp(advantage / temperature).

    Batches are `OfflineBatch`es of `prmkit.rl.batches`: rows "solutions" make AWR, "right" (all with
    weight 1) rejection-sampling fine-tuning. The loss of an optimiser step is the mean over its tokens. Logs
    `train/loss`, `train/weight`, `train/bounded` (share of tokens at the bound), `val/loss`.

    Args:
        source, step_format, optimizer, chunk_logits: see SFT.
        temperature: above 0; smaller trusts advantages more.
        max_weight: bound on the weight, above 0.
    """

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        temperature: float = 1.0,
        max_weight: float = 20.0,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__(source, step_format, optimizer, chunk_logits)
        for name, value in (("temperature", temperature), ("max_weight", max_weight)):
            if not value > 0.0:
                raise ConfigError(f"model.{name}", value, "a number above 0")
        self.temperature, self.max_weight = temperature, max_weight
        self.eval_loss = MeanMetric()

    def training_step(self, batch: OfflineBatch) -> Tensor:
        output = self._loss(batch)
        self._metrics.add(output.metrics, None)
        return self.share_of_step(output.loss, batch)

    def validation_step(self, batch: OfflineBatch) -> None:
        output = self._loss(batch)
        self.eval_loss.update(output.loss.mean, output.loss.count)
        self.log("val/loss", self.eval_loss, on_step=False, on_epoch=True)

    def _loss(self, batch: OfflineBatch) -> PolicyLossOutput:
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
