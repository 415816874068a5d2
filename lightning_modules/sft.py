"""Supervised fine-tuning of a policy on demonstrations."""

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
from lightning_modules.window import WindowSums
from prmkit.losses import CHUNK_LOGITS, LossOutput, normalise, predicted_positions, token_cross_entropy, window_total
from prmkit.models import ModelSource, build_policy, checked_lm_head, hidden_states, save_policy

__all__ = ["SFT"]


class SFT(LightningModule):
    """Trains a causal language model on the tokens that a batch marks.

    Batches are `SFTBatch`es of the data modules. The loss of an optimiser step is the mean over its tokens, whichever
    way they are split into micro-batches and ranks. Logs `train/loss`, `train/lr`, `train/grad_norm` (before
    clipping), `train/tokens`, `train/targets`, and `val/loss` (`test/loss`) per token.

    Args:
        source: where the model comes from.
        step_format: how problems become prompts: a preset's name, a file, or a mapping of fields; None reads
            `step_format.json` of the source's folder. Written beside the exported model.
        optimizer: optimiser and schedule.
        chunk_logits: logits held at once in the loss, at least 1; memory against speed, the result is the same.

    Attributes:
        model: the causal language model; there once `configure_model` has run.
        bound_format: the step format in the tokenizer's ids; data modules read it.
        tokenizer: the model's tokenizer.
    """

    model: PreTrainedModel

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__()
        self.source = source
        self.optimizer_config = optimizer
        self.chunk_logits = chunk_logits
        self.bound_format = bind_format(source, step_format)
        self.tokenizer = self.bound_format.tokenizer
        self.eval_loss = MeanMetric()
        self._window = WindowSums()

    def configure_model(self) -> None:
        # Here and not in __init__: sharding strategies build the model under contexts of their own.
        if not hasattr(self, "model"):
            self.model = build_policy(self.source, self.tokenizer)
            checked_lm_head(self.model)

    def training_step(self, batch: Any) -> Tensor:
        output = self._loss(batch)
        self._window.add(output, batch)
        total = window_total(batch.window_count, self.device)
        return normalise(output.loss_sum, total, self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._window.log_step(self, optimizer)

    def validation_step(self, batch: Any) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.parameters(), self.optimizer_config, self.trainer.estimated_stepping_batches)

    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None:
        """Write the policy as a folder that transformers and vLLM read."""
        save_policy(self.model, self.tokenizer, self.bound_format, directory, weight_version)

    def _loss(self, batch: Any) -> LossOutput:
        hidden = hidden_states(self.model.base_model, batch.input_ids, batch.attention_mask, batch.position_ids)
        states, labels = predicted_positions(hidden, batch.input_ids, batch.loss_mask)
        head = checked_lm_head(self.model)
        return token_cross_entropy(states, labels, head, head.out_features, self.chunk_logits)

    def _evaluate(self, batch: Any, stage: str) -> None:
        output = self._loss(batch)
        self.eval_loss.update(output.mean, output.count)
        self.log(f"{stage}/loss", self.eval_loss, on_step=False, on_epoch=True)
