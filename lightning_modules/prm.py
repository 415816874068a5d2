"""Training of a process reward model on step labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric

from lightning_modules.formats import bind_format
from lightning_modules.optimizers import OptimizerConfig, build_optimizer
from lightning_modules.window import WindowSums
from prmkit.batches import PairBatch, PRMBatch
from prmkit.errors import ConfigError
from prmkit.losses import LossOutput, normalise, step_loss, window_total
from prmkit.metrics import FirstErrorF1, StepMetrics
from prmkit.models import ModelSource, PRMModel, build_prm
from prmkit.plugins import PRM_LOSSES, PRMLossName

__all__ = ["PRM"]


class PRM(LightningModule):
    """Trains a decoder and head to tell right steps from wrong ones.

    Batches are `PRMBatch`es of the data modules, whose targets are floats in [0, 1]: the data module decides what they
    mean (hard or soft, steps after the first error masked or not), the loss only what is done with them:

    - "hard": cross-entropy; targets must be 0 or 1.
    - "soft": the same cross-entropy with targets in between.
    - "mse": squared error of the probability.
    - "pairwise": Bradley-Terry on pairs of steps; batches carry `pairs` [P, 2], indices of the steps among the labelled
      ones row by row, and window_count counts pairs.

    The loss of an optimiser step is the mean over its labelled steps (or pairs), whichever way they are split into
    micro-batches and ranks. Logs `train/loss`, `train/lr`, `train/grad_norm` (before clipping), `train/tokens`,
    `train/targets`; `val/...` (and `test/...`): `loss`, `step_accuracy`, `auroc`, `f1`, `calibration_error` and
    `first_error_f1`.

    Args:
        source: where the model comes from; a policy's folder is the usual start.
        step_format: how steps become input and where scores are read: a preset's name, a file, or a mapping of fields;
            None reads `step_format.json` of the source's folder. Written beside the exported model.
        optimizer: optimiser and schedule.
        loss: see above.
        threshold: a step with a score below it is predicted wrong, in [0, 1]; for metrics only.
        right_above: a step is taken as right in metrics when its target is greater, in [0, 1).

    Attributes:
        model: the PRM; there once `configure_model` has run.
        bound_format: the step format in the tokenizer's ids; data modules read it.
        tokenizer: the model's tokenizer.
        prediction_fields: fields of a row of `predict_step`.
    """

    prediction_fields = ("id", "scores", "positions")

    model: PRMModel

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        loss: PRMLossName = "hard",
        threshold: float = 0.5,
        right_above: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= right_above < 1.0:
            raise ConfigError("model.right_above", right_above, "a number in [0, 1)")
        self.source = source
        self.optimizer_config = optimizer
        self.loss_kind = PRM_LOSSES.name_of(loss, "model.loss")
        self.right_above = right_above
        self.bound_format = bind_format(source, step_format)
        self.tokenizer = self.bound_format.tokenizer
        self.eval_loss = MeanMetric()
        self.step_metrics = StepMetrics(threshold)
        self.first_error_f1 = FirstErrorF1(threshold)
        self._window = WindowSums()

    def configure_model(self) -> None:
        # Here and not in __init__: sharding strategies build the model under contexts of their own.
        if not hasattr(self, "model"):
            self.model = self.build_model()

    def build_model(self) -> PRMModel:
        """The PRM as its source says, untrained."""
        return build_prm(self.source, self.bound_format)

    def training_step(self, batch: PRMBatch) -> Tensor:
        output = self._loss(self._logits(batch), batch)
        self._window.add(output, batch)
        total = window_total(batch.window_count, self.device)
        return normalise(output.loss_sum, total, self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._window.log_step(self, optimizer)

    def validation_step(self, batch: PRMBatch) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: PRMBatch) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: PRMBatch) -> list[dict[str, Any]]:
        """Rows {id, scores, positions}: a score in [0, 1] for every step of a trace and where it was read."""
        scores = self.model.probability(self._logits(batch))
        counts = batch.position_mask.sum(dim=1).tolist()
        return [
            dict(zip(self.prediction_fields, (name, row.tolist(), positions[mask].tolist()), strict=True))
            for name, row, positions, mask in zip(
                batch.ids, scores.split(counts), batch.positions, batch.position_mask, strict=True
            )
            if name  # "" marks a filler row
        ]

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.parameters(), self.optimizer_config, self.trainer.estimated_stepping_batches)

    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None:
        """Write the PRM as a folder that `PRMModel.from_pretrained`, transformers and vLLM read."""
        self.model.save_pretrained(directory, weight_version)

    def _logits(self, batch: PRMBatch) -> Tensor:
        return self.model(batch.input_ids, batch.attention_mask, batch.positions, batch.position_mask)

    def _loss(self, logits: Tensor, batch: PRMBatch) -> LossOutput:
        pairs = batch.pairs if isinstance(batch, PairBatch) else None
        return step_loss(self.loss_kind, logits, batch.targets[batch.position_mask], pairs)

    def _evaluate(self, batch: PRMBatch, stage: str) -> None:
        logits = self._logits(batch)
        output = self._loss(logits, batch)
        scores = self.model.probability(logits)
        right = (batch.targets[batch.position_mask] > self.right_above).long()
        self.eval_loss.update(output.mean, output.count)
        self.step_metrics.update(scores, right)
        self.first_error_f1.update(scores, batch.position_mask, batch.first_error)
        named: dict[str, Metric] = {"loss": self.eval_loss, "first_error_f1": self.first_error_f1}
        named.update(self.step_metrics.items())
        self.log_dict({f"{stage}/{name}": metric for name, metric in named.items()}, on_step=False, on_epoch=True)
