"""A small fit that writes down every hook, for tests of stopping and going on."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from callbacks.exact_resume import ExactResume

ROWS = 4
HOOKS = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
OTHERS = ("on_train_epoch_start", "on_train_batch_start", "on_validation_start", "on_validation_batch_end")


class Rows:
    """Goes on where it was left."""

    def __init__(self):
        self.consumed = 0

    def __len__(self):
        return ROWS

    def __iter__(self):
        for row in range(self.consumed, ROWS):
            self.consumed = (row + 1) % ROWS
            yield torch.tensor(float(row))

    def state_dict(self):
        return {"consumed": self.consumed}

    def load_state_dict(self, state):
        self.consumed = state["consumed"]


class Module(pl.LightningModule):
    def __init__(self, validated):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows, self.validated = Rows(), validated

    def training_step(self, batch, batch_idx):
        self.log("row", batch)
        return (self.weight * (batch + self.global_rank)).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.weight.sum(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)

    def train_dataloader(self):
        return self.rows

    def val_dataloader(self):
        return DataLoader([0.0, 1.0]) if self.validated else []


class Logger(pl.loggers.logger.DummyLogger):
    """Metrics and steps as a logger is told them."""

    def __init__(self, diary):
        super().__init__()
        self.diary = diary

    def log_metrics(self, metrics, step=None):
        self.diary.append(("logged", step, *sorted(metrics.items())))


class Diary(Callback):
    """Writes down every hook, and saves where a fit may be resumed; the last of the callbacks, as savers are."""

    def __init__(self, diary, folder):
        self.diary, self.folder, self.saved = diary, folder, {}

    def seen(self, name, trainer, module, *args):
        row = [float(args[1 if name == "on_train_batch_end" else 0])] if "train_batch" in name else []
        self.diary.append((name, trainer.current_epoch, trainer.global_step, module.weight.item(), *row))
        if name in HOOKS and not trainer.fit_loop.epoch_loop._should_accumulate() and self.folder is not None:
            path = self.folder / f"{len(self.diary)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[path] = len(self.diary)


for name in HOOKS + OTHERS:
    setattr(Diary, name, lambda self, *args, name=name: self.seen(name, *args))


@pytest.fixture
def fit():
    """fit(folder, resume, callbacks, ...) -> the diary, and checkpoints with the length of the diary at each.

    The diary is a list that may be given, for fits that do not end well.
    """

    def fit(
        folder: Path | None = None, resume: Path | None = None, callbacks: Any = (), diary: Any = None, **options: Any
    ):
        diary = [] if diary is None else diary
        keeper = Diary(diary, folder)
        module = Module(options.pop("validated", True))
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=Logger(diary),
            log_every_n_steps=1,
            callbacks=[ExactResume(), keeper, *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
        trainer.fit(module, ckpt_path=resume, weights_only=True)
        assert "devices" in options or trainer.current_epoch == 3  # processes of their own count for themselves
        return diary, keeper.saved

    return fit


@pytest.fixture
def rest_of():
    """What comes after a hook. What a step logged reaches loggers right behind its last hook: it is not told twice."""
    return lambda whole, place: whole[place + (place < len(whole) and whole[place][0] == "logged") :]
