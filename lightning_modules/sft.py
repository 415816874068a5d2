"""Supervised fine-tuning of a policy on demonstrations."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_module import PolicyModule
from prmkit.batches import SFTBatch
from prmkit.losses import CHUNK_LOGITS, LossOutput, predicted_positions, token_cross_entropy
from prmkit.models import ModelSource, checked_lm_head, hidden_states

__all__ = ["SFT"]


class SFT(PolicyModule):
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

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__(source, step_format, optimizer, chunk_logits)
        self.eval_loss = MeanMetric()

    def training_step(self, batch: SFTBatch) -> Tensor:
        return self.share_of_step(self._loss(batch), batch)

    def validation_step(self, batch: SFTBatch) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SFTBatch) -> None:
        self._evaluate(batch, "test")

    def _loss(self, batch: SFTBatch) -> LossOutput:
        hidden = hidden_states(self.model.base_model, batch.input_ids, batch.attention_mask, batch.position_ids)
        states, labels = predicted_positions(hidden, batch.input_ids, batch.loss_mask)
        head = checked_lm_head(self.model)
        return token_cross_entropy(states, labels, head, head.out_features, self.chunk_logits)

    def _evaluate(self, batch: SFTBatch, stage: str) -> None:
        output = self._loss(batch)
        self.eval_loss.update(output.mean, output.count)
        self.log(f"{stage}/loss", self.eval_loss, on_step=False, on_epoch=True)
