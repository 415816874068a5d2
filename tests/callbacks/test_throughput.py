import time
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.throughput import TokensPerSecond
from prmkit.errors import ConfigError


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor | None

    def to(self, device, non_blocking=False) -> "Batch":
        return self


class Sleeper(LightningModule):
    """Takes .05 s a batch, and .5 s to validate, which must not count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Batch) -> Tensor:
        time.sleep(0.05)
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Batch) -> None:
        time.sleep(0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rate(batch: Batch) -> float:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callback = TokensPerSecond(every_n_batches=4)
    run = Trainer(**quiet, enable_checkpointing=False, max_epochs=1, val_check_interval=2, callbacks=[callback])
    run.fit(Sleeper(), DataLoader([batch] * 4, batch_size=None), DataLoader([batch], batch_size=None))
    return float(run.callback_metrics["train/tokens_per_second"])


def test_counts_tokens_and_not_padding_nor_validation() -> None:
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert 5 / 0.28 < rate(Batch(torch.zeros(2, 4), mask)) <= 5 / 0.05


def test_packed_rows_have_no_mask() -> None:
    assert 8 / 0.28 < rate(Batch(torch.zeros(2, 4), None)) <= 8 / 0.05


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="every_n_batches"):
        TokensPerSecond(0)
