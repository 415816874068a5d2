"""What `prm fit` shows while it runs: on a terminal's stderr, in a log, and on two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from callbacks.progress import FitProgress, headline
from prmkit.resources import config_root, shipped_configs

TOY = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        self.log_dict({"train/loss": self.w.sum() + 0.4321, "train/lr": 0.001, "rollout/reward": 0.25})
        return (self.w * batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/pass_at_1", self.w.sum() * 0 + 0.75, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([0.0, 1.0, 2.0, 3.0])

    val_dataloader = train_dataloader
"""

CONFIG = {
    "trainer": {"default_root_dir": "run", "accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False}
    | {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1},
    "model": {"class_path": "toy_for_progress.Model"},
    "data": {"class_path": "toy_for_progress.Data"},
}


@pytest.fixture
def fit(tmp_path):
    """Runs `prm fit` on a toy in processes of its own; gives stdout and stderr."""
    (tmp_path / "toy_for_progress.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(CONFIG))

    def run(*arguments, launcher=("-m", "prmkit.cli")):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, "fit", "--config", "toy.yaml", *arguments]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout, found.stderr

    return run


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("fit: ")]


def test_a_log_shows_the_numbers_that_matter_and_no_bar_of_lightning(fit):
    out, err = fit()
    shown = lines_of(err)
    assert re.fullmatch(
        r"fit: 8/8, epoch 2/2, loss 0\.432, reward 0\.250, lr 1\.0e-03; validation: pass@1 0\.750", shown[-1]
    )
    assert "\r" not in err
    assert "\x1b" not in err
    assert "it/s" not in err
    assert out.splitlines()[:1] == ["result  validation: pass@1 0.750"]


def test_it_can_be_switched_off_and_replaced(fit):
    assert lines_of(fit("--trainer.enable_progress_bar", "false")[1]) == []
    out, err = fit("--trainer.callbacks", "[lightning.pytorch.callbacks.TQDMProgressBar]")
    assert lines_of(err) == []
    assert "it/s" in out + err


def test_two_processes_print_once_and_do_not_wait(fit):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prmkit.cli")
    out, err = fit("--trainer.devices", "2", "--trainer.strategy", "ddp", launcher=launcher)
    shown = lines_of(err)
    assert len(set(shown)) == len(shown)
    assert shown[-1].startswith("fit: 4/4, epoch 2/2, loss 0.432")
    assert out.count("validation: pass@1 0.750") == 1


def test_evaluations_count_batches(capsys):
    class Module(pl.LightningModule):
        def test_step(self, batch, batch_idx):
            pass

        validation_step = predict_step = test_step

    loader = DataLoader(torch.arange(6.0), batch_size=2)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    for name in ("validate", "test", "predict"):
        getattr(pl.Trainer(callbacks=[FitProgress()], **options), name)(Module(), loader)
        assert capsys.readouterr().err.endswith(f"{name}: 3/3\n")


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"val/loss": 0.25, "val/step_accuracy": 0.9, "val/f1": 0.5}, "loss 0.250, step accuracy 0.900"),
        ({"val/pass_at_1": torch.tensor(0.5), "val/length": 30.0}, "pass@1 0.500"),
        ({"val/distance": 2.0}, "distance 2.000"),
        ({"val/loss": 0.00012, "val/auroc": float("nan")}, "loss 1.2e-04"),
        ({"train/loss": 1.0}, ""),
    ],
)  # fmt: skip
def test_headline(metrics, text):
    assert headline(metrics) == text


@pytest.mark.parametrize("name", shipped_configs())
def test_no_shipped_config_has_a_bar_of_its_own(name):
    assert "ProgressBar" not in (config_root() / Path(*Path(name).parts[1:])).read_text()


def test_the_sampling_of_an_iteration_is_shown(tmp_path):
    """A data module that samples says how far it is, before the first step of an iteration ends."""
    seen = []

    class Data(pl.LightningDataModule):
        watch = None

        def train_dataloader(self):
            return DataLoader([0.0, 1.0])

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            self.trainer.datamodule.watch(8, 8)
            seen.append(self.trainer.progress_bar_callback._line._text)
            return (self.w * batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, callbacks=[FitProgress()], default_root_dir=tmp_path, **options)
    trainer.fit(Model(), Data())
    assert seen[0] == "sampling: 8 of 8 prompts"
    assert seen[1].startswith("sampling: 8 of 8 prompts; epoch 1/1, loss 0.000")
