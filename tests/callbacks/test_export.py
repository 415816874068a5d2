import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from callbacks.export import ExportPretrained
from prmkit.errors import ConfigError


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch):
        return self.layer(batch).sum()

    def validation_step(self, batch) -> None:
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Exporting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, int, int]] = []

    def export_pretrained(self, directory, weight_version=0) -> None:
        self.written.append((str(directory), weight_version, self.trainer.global_step))


def fit(model: Plain, callback: ExportPretrained, more=(), **changes) -> None:
    data = DataLoader(torch.ones(4, 2), batch_size=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {**quiet, "enable_checkpointing": False, **changes}
    run = Trainer(**settings, max_epochs=2, callbacks=[callback, *more])
    run.fit(model, data, data)


def test_written_once_at_the_end(tmp_path: Path) -> None:
    model = Exporting()
    fit(model, ExportPretrained(str(tmp_path / "m"), weight_version=3))
    assert model.written == [(str(tmp_path / "m"), 3, 8)]


def test_every_validation_but_not_the_sanity_check(tmp_path: Path) -> None:
    model = Exporting()
    fit(model, ExportPretrained(str(tmp_path), every_validation=True), num_sanity_val_steps=1)
    assert [step for *_, step in model.written] == [4, 8, 8]


def test_nothing_is_written_when_the_fit_fails(tmp_path: Path) -> None:
    class Failing(Exporting):
        def training_step(self, batch):
            raise RuntimeError("out of memory")

    model = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(model, ExportPretrained(str(tmp_path)))
    assert model.written == []


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export\.dirpath"):
        ExportPretrained("")
    with pytest.raises(ConfigError, match=r"ExportPretrained: got 'Plain'"):
        fit(Plain(), ExportPretrained(str(tmp_path)))


@pytest.mark.parametrize("dirpath", [".", "..", "run", "run/logs", "run/checkpoints"])
def test_folders_of_the_run_and_of_others_are_refused_before_training(tmp_path: Path, monkeypatch, dirpath) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run" if dirpath.startswith(".") else tmp_path)
    root = Path() if dirpath.startswith(".") else tmp_path / "run"
    loggers = [CSVLogger(root / "logs", name="", version="")]
    saver = ModelCheckpoint(root / "checkpoints")
    model, callback = Exporting(), ExportPretrained(dirpath)
    with pytest.raises(ConfigError, match=rf"export\.dirpath: got '{re.escape(dirpath)}'.*name a folder in it"):
        fit(model, callback, default_root_dir=root, logger=loggers, enable_checkpointing=True, more=[saver])
    assert model.written == []
    assert model.trainer.global_step == 0
