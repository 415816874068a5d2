"""Saved at any hook of a fit, and resumed: what follows is what followed in the undisturbed run, hook by hook."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from callbacks.exact_resume import ExactResume

ROWS = 4


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
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.weight.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

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


HOOKS = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
OTHERS = ("on_train_epoch_start", "on_train_batch_start", "on_validation_start", "on_validation_batch_end")


class Diary(Callback):
    """Writes down every hook, and saves where it may be resumed; the last of the callbacks, as savers are."""

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


def fit(folder=None, resume=None, *, validated=True, **options):
    """The diary of a run, and its checkpoints with the length of the diary at each."""
    diary = []
    callback = Diary(diary, folder)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=Logger(diary),
        log_every_n_steps=1,
        callbacks=[ExactResume(), callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(Module(validated), ckpt_path=resume, weights_only=True)
    assert trainer.current_epoch == 3
    return diary, callback.saved


def rest_of(whole, place):
    """What comes after a hook. What a step logged reaches loggers right behind its last hook: it is not told twice."""
    return whole[place + (place < len(whole) and whole[place][0] == "logged") :]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2},
        {"validated": False},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()) or "plain",
)
def test_every_moment(tmp_path, options):
    whole, saved = fit(tmp_path, **options)
    assert {whole[place - 1][0] for place in saved.values()} == set(HOOKS) - (
        {"on_validation_end"} if not options.get("validated", True) else set()
    )
    for path, place in saved.items():
        assert fit(resume=path, **options)[0] == rest_of(whole, place), whole[place - 1]


def test_resumed_again_and_again(tmp_path):
    """At the last batch of each epoch: counters that are one off would add up."""
    whole, saved = fit(tmp_path)
    last = [path for path, place in saved.items() if whole[place - 1][0] == HOOKS[0] and whole[place - 1][-1] == 3.0]
    assert len(last) == 3
    place = saved[last[0]]
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        rest, found = fit(folder, last[0] if number == 0 else again)
        assert rest == rest_of(whole, place)
        again = next(path for path, at in found.items() if rest[at - 1] in whole[saved[last[number + 1]] - 1 :][:1])
        place = saved[last[number + 1]]
