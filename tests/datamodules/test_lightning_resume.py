"""Under a real Trainer: a fit that is stopped anywhere and resumed sees the rows of an undisturbed one."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from datamodules.batching import BatchConfig
from datamodules.loader import WorkerConfig
from datamodules.sft import SFTDataModule
from datamodules.sources import SourceConfig
from datamodules.step_labels import StepLabelDataModule
from prmkit.annotation.records import StepLabels


class Tiny(pl.LightningModule):
    """Writes down what it sees.

    With `schedule` it asks for the number of steps while optimisers are made, as schedules with a warm-up do: Lightning
    then makes the training loader before it restores the loops' state.
    """

    def __init__(self, bound_format, log, schedule=False):
        super().__init__()
        self.bound_format, self.log_path, self.schedule = bound_format, log, schedule
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        with Path(f"{self.log_path}.{self.global_rank}").open("a") as file:
            file.write(json.dumps([self.current_epoch, batch_idx, *batch.ids, batch.window_count]) + "\n")
        return self.weight.sum() * batch.count

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        if self.schedule:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(Exception):
    pass


class StopAfter(Callback):
    """Saves after a number of micro-batches and dies."""

    def __init__(self, number, path):
        self.left, self.path = number, path

    def on_train_batch_end(self, trainer, *args):
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            raise Stop


def seen(log, rank=0):
    return [json.loads(line) for line in Path(f"{log}.{rank}").read_text().splitlines()]


@pytest.fixture
def fit(bound, write_jsonl, tmp_path):
    rows = [{"question": f"f+5,{i % 8}", "solution": "f" * (i % 5 + 1)} for i in range(21)]
    path = write_jsonl(rows)

    def fit(log, accumulate=1, workers=0, schedule=False, stop=None, resume=False, **trainer):
        sources = [SourceConfig(path=path)]
        batch = BatchConfig(rows=2, drop_last=False)
        data = SFTDataModule(sources, sources, batch=batch, max_length=64, workers=WorkerConfig(workers))
        checkpoint = str(tmp_path / "stopped.ckpt")
        values = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "accumulate_grad_batches": accumulate,
            "callbacks": [StopAfter(stop, checkpoint)] if stop else [],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **trainer,
        }
        log = str(tmp_path / log)
        ckpt_path = checkpoint if resume else None
        pl.Trainer(**values).fit(Tiny(bound, log, schedule), data, ckpt_path=ckpt_path, weights_only=True)
        return log

    return fit


# Of 2 epochs of 11 micro-batches: near the start, inside windows, around the epoch's end, the last but one.
STOPS = (1, 4, 10, 11, 12, 21)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(("accumulate", "workers", "stops"), [(1, 0, STOPS), (2, 0, STOPS), (2, 2, (5, 11))])
def test_resume(fit, accumulate, workers, stops, schedule):
    whole = seen(fit("whole", accumulate))
    assert len(whole) == 22
    assert sorted(id for row in whole[:11] for id in row[2:-1]) == sorted(f"rows:{i}" for i in range(21))
    for stop in stops:
        with pytest.raises(Stop):
            fit(f"first{stop}", accumulate, workers, schedule, stop=stop)
        rest = fit(f"rest{stop}", accumulate, workers, schedule, resume=True)
        assert seen(rest) == whole[stop:], stop


def test_epochs_limited_by_the_trainer_resume_too(fit):
    whole = seen(fit("whole", limit_train_batches=4, max_epochs=4))
    assert [row[:2] for row in whole] == [[epoch, i] for epoch in range(3) for i in range(4)][:11] + [
        [3, i] for i in range(4)
    ]
    for stop in (3, 4, 9):
        with pytest.raises(Stop):
            fit(f"first{stop}", stop=stop, limit_train_batches=4, max_epochs=4)
        rest = fit(f"rest{stop}", resume=True, limit_train_batches=4, max_epochs=4)
        assert [row[2:] for row in seen(rest)] == [row[2:] for row in whole[stop:]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_on_two_processes(fit, workers):
    options = {"devices": 2, "strategy": "ddp_fork", "accumulate": 2}
    whole = fit("whole", workers=workers, **options)
    for rank in range(2):
        assert len(seen(whole, rank)) == 12
    for stop in (1, 5, 6, 7):
        with pytest.raises(Exception, match=r"Stop|terminated"):
            fit(f"first{stop}", workers=workers, stop=stop, **options)
        rest = fit(f"rest{stop}", workers=workers, resume=True, **options)
        for rank in range(2):
            assert seen(rest, rank) == seen(whole, rank)[stop:]


def test_step_labels_under_a_trainer(bound, write_jsonl, tmp_path):
    class Reader(Tiny):
        def test_step(self, batch, batch_idx):
            pass

        def predict_step(self, batch, batch_idx):
            return list(zip(batch.ids, batch.position_mask.sum(1).tolist(), strict=True))

    values = [(1.0, 0.0), (None, 1.0), (0.5, None, 0.25)]
    records = [
        StepLabels("p", "f+5,7", "C", ("f+5=C",) * len(v), v, (1,) * len(v), "t", "", separator="\n") for v in values
    ]
    source = [SourceConfig(path=write_jsonl([record.to_json() for record in records]))]
    data = StepLabelDataModule(source, source, source, source, BatchConfig(rows=2, drop_last=False), max_length=64)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    module = Reader(bound, str(tmp_path / "log"))
    trainer.fit(module, data)
    assert sorted(id for row in seen(tmp_path / "log") for id in row[2:-1]) == ["rows:0", "rows:1", "rows:2"]
    trainer.test(module, data, verbose=False)
    predictions = [pair for batch in trainer.predict(module, data) for pair in batch]
    assert predictions == [("rows:0", 2), ("rows:1", 2), ("rows:2", 3)]
