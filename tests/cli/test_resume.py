"""What a resumed `prm fit` takes from its config and from its checkpoint, what it says, and what it refuses."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 - here and not in a test: its log handler keeps the stderr it finds
import pytest
import torch
import yaml

from lightning_modules.optimizers import OptimizerConfig, lr_factor
from prmkit.cli import main

TOY = '''
import argparse
import datetime
import json
import pathlib

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lightning_modules.optimizers import OptimizerConfig, build_optimizer


class Model(LightningModule):
    def __init__(self, size: int = 2, optimizer: OptimizerConfig = OptimizerConfig(), kind: str = "adamw"):
        super().__init__()
        self.optimizer, self.kind = optimizer, kind
        self.w = torch.nn.Parameter(torch.ones(size, 2))
        self.b = torch.nn.Parameter(torch.ones(2))

    def training_step(self, batch, batch_idx):
        loss = ((self.w.sum(0) + self.b - batch.mean()) ** 2).sum()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.w.sum())

    def configure_optimizers(self):
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=self.optimizer.lr)
        if self.kind == "step":
            optimizer = torch.optim.SGD(self.parameters(), lr=self.optimizer.lr)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]
        return build_optimizer(self.parameters(), self.optimizer, self.trainer.estimated_stepping_batches)


class Other(Model):
    pass


class Data(LightningDataModule):
    def __init__(self, rows: int = 8):
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(self.rows).float(), batch_size=2)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(2), batch_size=2)


class Watch(Callback):
    """Writes down what each optimiser step uses."""

    def __init__(self, path: str = "steps.jsonl"):
        self.path = path

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_rank == 0:
            groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": trainer.global_step, "groups": groups}) + "\\n")


class Keeps(Callback):
    """A user's callback with a state of the usual kinds, or of one that is refused."""

    def __init__(self, odd: bool = False):
        self.odd, self.found = odd, None

    def state_dict(self):
        state = {"started": datetime.datetime(2024, 11, 30, 12), "file": pathlib.Path("a/b"), "best": [1.5, None]}
        return {**state, "flags": argparse.Namespace(a=1)} if self.odd else state

    def load_state_dict(self, state):
        pathlib.Path("loaded.txt").write_text(f"{state['started'].year} {state['file'].name} {state['best'][0]}")
'''

CONFIG = """
seed_everything: 5
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: "${trainer.default_root_dir}", name: "", version: ""}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", save_top_k: -1, every_n_epochs: 1}
    - class_path: toy_for_resume.Watch
model:
  class_path: toy_for_resume.Model
  init_args: {optimizer: {lr: 0.001, warmup_steps: 2}}
data:
  class_path: toy_for_resume.Data
"""
FIRST = "run/checkpoints/epoch=0-step=4.ckpt"


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    (tmp_path / "toy_for_resume.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("toy_for_resume", None)
    return tmp_path


def fit(*argv: str, config: str = "toy.yaml") -> list[dict]:
    """Run a fit to its end; what its optimiser steps used."""
    Path("steps.jsonl").unlink(missing_ok=True)
    assert main(["fit", "--config", config, *argv]) == 0
    file = Path("steps.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def error_of(capsys, *argv: str, config: str = "toy.yaml") -> str:
    capsys.readouterr()
    assert main(["fit", "--config", config, *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def with_callbacks(*more: dict, **trainer) -> str:
    """File with the toy config, further callbacks and other settings of the trainer."""
    config = yaml.safe_load(CONFIG)
    config["trainer"]["callbacks"] += more
    config["trainer"].update(trainer)
    Path("variant.yaml").write_text(yaml.safe_dump(config))
    return "variant.yaml"


# -- settings come from the config ------------------------------------------------------------------------------------

CHANGED = {
    "lr": "0.01",
    "schedule": "linear",
    "warmup_steps": "6",
    "warmup_ratio": "0.5",
    "min_lr_ratio": "0.5",
    "weight_decay": "0.3",
    "betas": "[0.5,0.75]",
    "eps": "0.001",
    "fused": "true",
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(OptimizerConfig)])
def test_every_setting_of_the_optimiser_is_the_configs(name, caplog):
    """As in a run that had the new value from its beginning."""
    caplog.set_level(logging.INFO)
    config = "toy.yaml"
    if name == "warmup_ratio":  # counts where warmup_steps is null
        config = "ratio.yaml"
        Path(config).write_text(CONFIG.replace(", warmup_steps: 2", ""))
    fit("--trainer.max_epochs", "1", config=config)
    changed = [f"--model.optimizer.{name}", CHANGED[name]]
    resumed = fit(*changed, "--ckpt_path", "last", config=config)
    before = json.dumps(getattr(OptimizerConfig(lr=0.001, warmup_steps=2), name))
    assert f"resume: model.optimizer.{name}" in caplog.text
    assert "(checkpoint: " in caplog.text
    assert name == "betas" or f"(checkpoint: {before})" in caplog.text
    whole = fit(*changed, "--trainer.default_root_dir", "other", config=config)
    assert resumed == whole[4:]
    assert len(resumed) == 4


def test_a_longer_fit_has_the_schedule_of_its_new_length():
    fit()
    resumed = fit("--trainer.max_epochs", "5", "--ckpt_path", "last")
    whole = fit("--trainer.max_epochs", "5", "--trainer.default_root_dir", "other")
    assert resumed == whole[8:]
    assert all(step["groups"][0]["lr"] > 0 for step in resumed)


@pytest.mark.parametrize(("changes", "total"), [(["--data.rows", "4"], 8), (["--data.rows", "12"], 16)])
def test_with_other_data_the_schedule_ends_with_the_fit(changes, total):
    """Four steps are done and an epoch has another number of them: 2 epochs remain."""
    fit("--trainer.max_epochs", "1")
    rates = [4, 5, 6, 7] if total == 8 else list(range(4, 16))
    steps = fit("--trainer.max_epochs", "3", *changes, "--ckpt_path", FIRST)
    wanted = [1e-3 * lr_factor(step, total=total, warmup=2, schedule="cosine", floor=0.0) for step in rates]
    assert [step["groups"][0]["lr"] for step in steps] == pytest.approx(wanted)
    # and again, from within the changed part: no other schedule
    last = sorted(Path("run/checkpoints").glob("epoch=1-*.ckpt"))[0]
    again = fit("--trainer.max_epochs", "3", *changes, "--ckpt_path", str(last))
    assert again == steps[-len(again) :]


def test_a_raised_limit_alone_changes_one_setting(caplog):
    caplog.set_level(logging.INFO)
    whole = fit("--trainer.default_root_dir", "other")
    fit("--trainer.max_epochs", "1")
    resumed = fit("--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert resumed == whole[4:]
    changes = [line for line in caplog.messages if line.startswith("resume: ")]
    assert changes == ["resume: trainer.max_epochs: 2 (checkpoint: 1)"]


def test_the_same_config_resumes_exactly():
    whole = fit("--trainer.default_root_dir", "other")
    fit()
    Path("run/checkpoints/epoch=1-step=8.ckpt").unlink()
    assert fit("--ckpt_path", "last") == whole[4:]
    name = "checkpoints/epoch=1-step=8.ckpt"
    one, other = (torch.load(f"{run}/{name}", weights_only=True) for run in ("run", "other"))
    assert all(torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items())


@pytest.mark.parametrize("kind", ["sgd", "step"])
def test_optimisers_and_schedules_of_others(kind):
    own = ["--model.kind", kind]
    fit("--trainer.max_epochs", "1", *own)
    changed = [*own, "--model.optimizer.lr", "0.01"]
    resumed = fit(*changed, "--ckpt_path", "last")
    assert resumed == fit(*changed, "--trainer.default_root_dir", "other")[4:]


def test_settings_of_callbacks_are_the_configs():
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "patience": 9, "mode": "min"},
    }
    fit("--trainer.max_epochs", "1", config=with_callbacks(stopping))
    stopping["init_args"]["patience"] = 4
    fit("--ckpt_path", "last", config=with_callbacks(stopping))
    states = torch.load("run/checkpoints/epoch=1-step=8.ckpt", weights_only=True)["callbacks"]
    assert next(state for key, state in states.items() if key.startswith("EarlyStopping"))["patience"] == 4


def test_what_changes_training_is_listed_and_paths_are_not(caplog):
    caplog.set_level(logging.INFO)
    fit("--trainer.max_epochs", "1")
    more = ["--data.rows", "6", "--seed_everything", "7", "--trainer.log_every_n_steps", "2"]
    fit("--ckpt_path", "last", *more)
    changes = [line.removeprefix("resume: ") for line in caplog.messages if line.startswith("resume: ")]
    assert changes == [
        "data.rows: 6 (checkpoint: 8)",
        "seed_everything: 7 (checkpoint: 5)",
        "trainer.max_epochs: 2 (checkpoint: 1)",
    ]


# -- what cannot be continued -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model.size", "3"], f"--ckpt_path {FIRST}: w is [2, 2] there and [3, 2] in this config's model."),
        (["--model.kind", "sgd"], f"--ckpt_path {FIRST}: its optimiser is AdamW, this fit's is SGD, which cannot"),
        (["--trainer.max_epochs", "1"], "trainer.max_epochs: got 1; accepted: more than 1, the epochs of"),
        (["--trainer.max_steps", "4"], "trainer.max_steps: got 4; accepted: more than 4, the optimiser steps of"),
        (["--model", "toy_for_resume.Other"], 'model.class_path: got "toy_for_resume.Other"; accepted: "toy_for_'),
    ],
)
def test_what_cannot_be_continued_is_refused(capsys, argv, message):
    fit()
    Path("steps.jsonl").unlink()
    assert error_of(capsys, "--ckpt_path", FIRST, *argv).startswith(message)
    assert not Path("steps.jsonl").exists()


def test_a_complete_fit_started_again_says_so(caplog):
    caplog.set_level(logging.INFO)
    fit()
    assert fit("--ckpt_path", "last") == []
    assert "nothing is left to train" in caplog.text


def test_weights_only_checkpoints_are_passed_over_by_last_and_refused_by_name(capsys):
    fit("--trainer.max_epochs", "1")
    state = torch.load(FIRST, weights_only=True)
    bare = {key: value for key, value in state.items() if key not in ("optimizer_states", "lr_schedulers")}
    torch.save(bare, "run/checkpoints/weights.ckpt")
    with pytest.warns(UserWarning, match=r"weights\.ckpt: holds weights only"):
        assert len(fit("--ckpt_path", "last")) == 4
    assert "holds weights only" in error_of(capsys, "--ckpt_path", "run/checkpoints/weights.ckpt")


# -- states of callbacks ----------------------------------------------------------------------------------------------


def test_a_callback_may_keep_dates_and_paths():
    config = with_callbacks({"class_path": "toy_for_resume.Keeps"})
    fit("--trainer.max_epochs", "1", config=config)
    assert len(fit("--ckpt_path", "last", config=config)) == 4
    assert Path("loaded.txt").read_text() == "2024 b 1.5"


def test_what_could_not_be_loaded_is_not_saved(capsys):
    config = with_callbacks({"class_path": "toy_for_resume.Keeps", "init_args": {"odd": True}})
    message = error_of(capsys, config=config)
    assert message.startswith(f"{Path(FIRST).resolve()}: not written, callbacks.Keeps.flags is a argparse.Namespace")
    assert list(Path("run/checkpoints").glob("*.ckpt")) == []
    fit("--weights_only", "false", config=config)
    written = sorted(Path("run/checkpoints").iterdir())
    refused = error_of(capsys, "--ckpt_path", "last", "--trainer.max_epochs", "3", config=config)
    assert refused.startswith("--ckpt_path last: ")
    assert "argparse.Namespace" in refused
    assert sorted(Path("run/checkpoints").iterdir()) == written
    again = ["--ckpt_path", "last", "--trainer.max_epochs", "3", "--weights_only", "false"]
    assert len(fit(*again, config=config)) == 4


# -- several processes ------------------------------------------------------------------------------------------------


def together(*argv: str, config: str) -> tuple[subprocess.CompletedProcess, list[dict]]:
    """Run a fit on two gloo processes."""
    Path("steps.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    command += ["-m", "prmkit.cli", "fit", "--config", config, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    file = Path("steps.jsonl")
    return done, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


ZERO = {"class_path": "lightning_modules.strategies.ZeroStrategy", "init_args": {"bucket_elements": 5000}}
WHOLE = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3"])
def test_two_processes_take_the_configs_settings(name):
    strategy = name
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
        stage = int(name[4:])
        init = {**ZERO["init_args"], "stage": stage, **({"config": WHOLE} if stage == 3 else {})}
        strategy = {**ZERO, "init_args": init}
    config = with_callbacks(devices=2, strategy=strategy)
    done, _ = together("--trainer.max_epochs", "2", config=config)
    assert done.returncode == 0, done.stderr
    new = ["--model.optimizer.lr", "0.01", "--model.optimizer.betas", "[0.5,0.75]", "--trainer.max_epochs", "4"]
    new += ["--model.optimizer.weight_decay", "0.3"]
    done, resumed = together(*new, "--ckpt_path", "last", config=config)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resume: model.optimizer.lr: 0.01 (checkpoint: 0.001)") == 1  # by rank 0
    _, whole = together(*new, "--trainer.default_root_dir", "other", config=config)
    assert resumed == whole[-len(resumed) :]
    assert 0 < len(resumed) < len(whole)
    changed, _ = together("--model.size", "3", "--trainer.max_epochs", "6", "--ckpt_path", "last", config=config)
    assert changed.returncode != 0
    assert "error: --ckpt_path" in changed.stderr
    assert "[3, 2] in this config's model" in changed.stderr
