"""What the training logs say of one optimiser step: sums over its micro-batches and over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from prmkit.dist import summed
from prmkit.losses import LossOutput

__all__ = ["WindowSums", "gradient_norm", "token_count"]


class Tokens(Protocol):
    """Of a batch, what its tokens are counted by."""

    @property
    def input_ids(self) -> Tensor: ...

    @property
    def attention_mask(self) -> Tensor | None: ...


class WindowSums:
    """Loss, items and tokens since the last optimiser step, on this rank."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, output: LossOutput, batch: Tokens) -> None:
        """Count one micro-batch."""
        new = torch.stack([output.loss_sum.detach(), output.count, token_count(batch)])
        self._sums = new if self._sums is None else self._sums + new

    def pop(self) -> dict[str, Tensor]:
        """Figures of the window over all ranks, and start anew. Collective.

        Returns:
            `loss` per item, `targets` (items of the loss) and `tokens` (tokens fed to the model).
        """
        assert self._sums is not None, "no micro-batch since the last optimiser step"
        sums, self._sums = self._sums, None
        loss_sum, count, tokens = summed(sums)
        return {"loss": loss_sum / count.clamp(min=1), "targets": count, "tokens": tokens}

    def log_step(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Log the window's figures, the learning rate and the norm of the gradients, before they are clipped, on the
        first step (so that monitors find the names) and on those that the trainer's loggers write: Lightning's part in
        logging a step costs as much as a small model's backward pass. Collective, as `pop` is."""
        every, step = module.trainer.log_every_n_steps, module.trainer.global_step  # type: ignore[attr-defined]
        if step > 0 and (every == 0 or (step + 1) % every != 0):
            self._sums = None
            return
        module.log_dict({f"train/{name}": value for name, value in self.pop().items()})
        module.log("train/lr", optimizer.param_groups[0]["lr"])
        norm = gradient_norm(module.parameters())
        if norm is not None:
            module.log("train/grad_norm", norm)


def token_count(batch: Tokens) -> Tensor:
    """Tokens of a batch, a scalar: those of its attention mask, or all where it has none (packed rows)."""
    if batch.attention_mask is None:
        return torch.tensor(batch.input_ids.numel(), device=batch.input_ids.device)
    return batch.attention_mask.sum()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """2-norm of all gradients; None where the strategy keeps them elsewhere, as sharded ones do."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
