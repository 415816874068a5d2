"""Offline preference optimisation: DPO, step-DPO and IPO on pairs of solutions or steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_module import PolicyModule
from prmkit.losses import CHUNK_LOGITS, PreferenceConfig, PreferenceOutput, logprob_sums, preference_loss
from prmkit.models import ModelSource
from prmkit.rl.batches import OfflineBatch
from prmkit.rl.policy_step import Reference, score_policy

__all__ = ["DPO"]


class DPO(PolicyModule):
    """Trains a policy to prefer the chosen of each pair over the rejected.

    Batches are `OfflineBatch`es of `prmkit.rl.batches`: rows "pairs" make DPO (or IPO), "step_pairs"
    step-DPO. The loss of an optimiser step is the mean over its pairs, whichever way they are split. Logs `train/loss`,
    `train/accuracy`, `train/margin`, `train/chosen_reward`, `train/rejected_reward`, `val/loss`, `val/accuracy`.

    Args:
        source, step_format, optimizer, chunk_logits: see SFT.
        loss: which preference loss.
        reference: the reference policy; None is the source, or with adapters the policy without them.
    """

    def __init__(
        self,
        source: ModelSource,
        step_format: str | dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        loss: PreferenceConfig = PreferenceConfig(),  # noqa: B008
        reference: ModelSource | None = None,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__(source, step_format, optimizer, chunk_logits)
        self.preference = loss
        self.reference = Reference(source, reference)
        self.reference.wanted = True
        self.eval_loss, self.eval_accuracy = MeanMetric(), MeanMetric()

    def build_beside(self) -> None:
        self.reference.build(self.model, self.tokenizer)

    def training_step(self, batch: OfflineBatch) -> Tensor:
        output = self._loss(batch)
        self._metrics.add(output.metrics, None)
        return self.share_of_step(output.loss, batch)

    def validation_step(self, batch: OfflineBatch) -> None:
        output = self._loss(batch)
        self.eval_loss.update(output.loss.mean, output.loss.count)
        self.eval_accuracy.update(output.metrics["accuracy"].mean, output.loss.count)
        self.log("val/loss", self.eval_loss, on_step=False, on_epoch=True)
        self.log("val/accuracy", self.eval_accuracy, on_step=False, on_epoch=True)

    def _loss(self, batch: OfflineBatch) -> PreferenceOutput:
        ids, mask = batch.input_ids, batch.action_mask
        reference = logprob_sums(self.reference.logprobs(self.model, ids, mask, 1.0), mask)
        found = logprob_sums(score_policy(self.model, ids, mask, 1.0, self.chunk_logits).logprobs, mask)
        pairs = batch.pairs  # a filler batch has one row and no pair: both halves are empty, the graph stays whole
        chosen, rejected = found[:pairs], found[pairs : 2 * pairs]
        return preference_loss(chosen, rejected, reference[:pairs], reference[pairs : 2 * pairs], self.preference)
