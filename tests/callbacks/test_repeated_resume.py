"""Stopped and resumed again and again, at the ends of epochs too, a run sees every batch once and in order."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from callbacks.exact_resume import ExactResume

EPOCHS, BATCHES = 3, 3


class Loader:
    """Numbers its batches through all epochs, and goes on where it was."""

    def __init__(self) -> None:
        self.place = 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self):
        while True:
            self.place += 1
            yield torch.full((1, 1), float(self.place))
            if self.place % BATCHES == 0:
                return

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Stop(Exception):
    pass


class Diary(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, int, int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((int(batch), self.current_epoch, batch_idx))
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class StopAt(Callback):
    def __init__(self, step: int | None, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise Stop


def fit(path, stop: int | None, resume: bool) -> list[tuple[int, int, int]]:
    module = Diary()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [ExactResume(), StopAt(stop, path)]
    trainer = Trainer(**quiet, enable_checkpointing=False, max_epochs=EPOCHS, callbacks=callbacks)
    try:
        trainer.fit(module, Loader(), ckpt_path=path if resume else None, weights_only=True)
    except Stop:
        assert stop is not None
    return module.seen


@pytest.mark.parametrize("stops", [[3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8], [2, 6, 7]])
def test_every_batch_once(stops, tmp_path):
    expected = [(step + 1, step // BATCHES, step % BATCHES) for step in range(EPOCHS * BATCHES)]
    assert fit(tmp_path / "none", None, resume=False) == expected
    seen = []
    for number, stop in enumerate([*stops, None]):
        seen += fit(tmp_path / "stopped.ckpt", stop, resume=number > 0)
    assert seen == expected
