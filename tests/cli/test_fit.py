"""`prm fit` and its siblings on a toy module: merging, overrides, interpolation, messages, resuming, predictions."""

import argparse
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
from omegaconf import OmegaConf

from prmkit.cli import main
from prmkit.cli.parsing import expand_configs
from prmkit.errors import PrmkitError
from prmkit.resources import config_root, find_config, shipped_configs

TOY = '''
import os
import signal
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from prmkit.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    lr: float = 0.1
    momentum: float = 0.0

    def __post_init__(self):
        if self.lr <= 0:
            raise ConfigError("model.optimizer.lr", self.lr, "a positive number")


class Model(LightningModule):
    """Minimises |w - x|^2 / 2 and remembers the numbers it has seen."""

    def __init__(self, size: int = 2, optimizer: Optimizer = Optimizer(), seen: str = "seen.txt"):
        super().__init__()
        self.optimizer = optimizer
        self.seen = seen
        self.w = torch.nn.Parameter(torch.randn(size))

    def training_step(self, batch, batch_idx):
        with open(self.seen, "a") as file:
            file.write(f"{int(batch[0])}\\n")
        return ((self.w - batch.mean()) ** 2).sum() / 2

    def validation_step(self, batch, batch_idx):
        self.log("val/distance", (self.w - batch.mean()).abs().mean())

    def predict_step(self, batch, batch_idx):
        return [{"id": int(x), "scores": (self.w * x).tolist()} for x in batch]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.optimizer.lr, momentum=self.optimizer.momentum)


class Data(LightningDataModule):
    def __init__(self, rows: int = 8, scale: float = 1.0):
        super().__init__()
        self.rows, self.scale = rows, scale

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(self.rows).float() * self.scale, batch_size=2)

    val_dataloader = predict_dataloader = train_dataloader


class Stop(Callback):
    """Ends the process as a scheduler would, or a user, after some steps."""

    def __init__(self, step: int, how: str):
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), getattr(signal, self.how))
'''

CONFIG = """
seed_everything: 5
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 3
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: "${trainer.default_root_dir}", name: "", version: ""}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${trainer.default_root_dir}/checkpoints", save_top_k: -1, every_n_epochs: 1}
model:
  class_path: toy_for_fit.Model
  init_args: {size: 3, optimizer: {lr: 0.25}}
data:
  class_path: toy_for_fit.Data
  init_args: {rows: 8, scale: "${model.init_args.optimizer.lr}"}
"""


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    """A working directory with a toy module and its config; the process's own logging is left as it was."""
    (tmp_path / "toy_for_fit.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("toy_for_fit", None)
    return tmp_path


def parsed(capsys, *argv: str) -> dict:
    """The printed config, its interpolations resolved."""
    assert main(["fit", *argv, "--print_config"]) == 0
    return OmegaConf.to_container(OmegaConf.create(yaml.safe_load(capsys.readouterr().out)), resolve=True)


def error_of(capsys, *argv: str, command: str = "fit") -> str:
    capsys.readouterr()
    assert main([command, *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def variant(**changes) -> str:
    """File with the toy config in which dotted keys (`__` for the dot) have other values."""
    config = yaml.safe_load(CONFIG)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for part in parents:
            node = node[int(part) if part.isdigit() else part]
        node[last] = value
    Path("variant.yaml").write_text(yaml.safe_dump(config))
    return "variant.yaml"


# -- what a command line means ----------------------------------------------------------------------------------------


def test_interpolation_sees_the_merged_config(capsys, workdir):
    config = parsed(capsys, "--config", "toy.yaml")
    assert config["data"]["init_args"] == {"rows": 8, "scale": 0.25}
    assert config["trainer"]["callbacks"][0]["init_args"]["dirpath"] == "run/checkpoints"

    (workdir / "more.yaml").write_text("model: {init_args: {optimizer: {lr: 0.5}}}\ntrainer: {default_root_dir: other}")
    config = parsed(capsys, "--config", "toy.yaml", "-c", "more.yaml")
    assert config["model"]["init_args"]["size"] == 3  # from the first file
    assert config["data"]["init_args"]["scale"] == 0.5
    assert config["trainer"]["callbacks"][0]["init_args"]["dirpath"] == "other/checkpoints"
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "other"


@pytest.mark.parametrize("form", ["--model.init_args.optimizer.lr=1e-4", "--model.optimizer.lr=1e-4"])
def test_overrides_long_and_short(capsys, form):
    config = parsed(capsys, "--config", "toy.yaml", form, "--trainer.max_epochs", "7", "--seed_everything", "9")
    assert config["model"]["init_args"]["optimizer"] == {"lr": 1e-4, "momentum": 0.0}
    assert config["data"]["init_args"]["scale"] == 1e-4
    assert (config["trainer"]["max_epochs"], config["seed_everything"]) == (7, 9)


def test_overrides_of_list_items(capsys):
    index = "--trainer.callbacks.0"
    config = parsed(capsys, "--config", "toy.yaml", f"{index}.init_args.save_top_k=2", f"{index}.monitor", "loss")
    init = config["trainer"]["callbacks"][0]["init_args"]
    assert (init["save_top_k"], init["monitor"], init["dirpath"]) == (2, "loss", "run/checkpoints")
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: loss}}"
    whole = parsed(capsys, "--config", "toy.yaml", index, stopping, f"{index}.monitor=x")
    assert whole["trainer"]["callbacks"][0]["class_path"] == "lightning.pytorch.callbacks.EarlyStopping"
    assert whole["trainer"]["callbacks"][0]["init_args"]["monitor"] == "x"
    assert error_of(capsys, "--config", "toy.yaml", "--trainer.callbacks.1.monitor=x") == (
        "trainer.callbacks.1: no such item; trainer.callbacks is a list of 1, and items are counted from 0"
    )
    assert "trainer.max_epochs is not a list" in error_of(capsys, "--config", "toy.yaml", "--trainer.max_epochs.0=1")
    assert "did you mean `monitor`" in error_of(capsys, "--config", "toy.yaml", f"{index}.init_args.monitr=1").lower()


def test_printed_config_is_a_config(capsys, workdir):
    assert main(["fit", "--config", "toy.yaml", "--model.size", "4", "--print_config"]) == 0
    text = capsys.readouterr().out
    (workdir / "printed.yaml").write_text(text)
    assert main(["fit", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == text


def test_configs_are_found_in_the_working_directory_then_among_the_shipped(workdir):
    name = shipped_configs("sft")[0]
    shipped = config_root() / Path(name).relative_to("configs")
    assert find_config(name) == shipped
    assert find_config(str(Path(name).relative_to("configs"))) == shipped
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).write_text("trainer: {}")
    assert find_config(name) == Path(name)
    assert find_config(shipped) == shipped
    assert expand_configs(["--config", name, "-c=toy.yaml", "--a", "b"]) == (
        ["--config", name, "--config", "toy.yaml", "--a", "b"],
        (Path(name), Path("toy.yaml")),
    )
    with pytest.raises(PrmkitError, match=r"--config nope.yaml: no such file.*e.g. configs/.*prm configs list"):
        find_config("nope.yaml")


def test_help_all_is_lightnings(capsys):
    assert main(["fit", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert "--trainer.accumulate_grad_batches" in text
    assert main(["fit", "--model.help", "toy_for_fit.Model"]) == 0
    assert "--model.optimizer.lr" in capsys.readouterr().out


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--trainer.max_epoch=9", "trainer.max_epoch: no such setting. Did you mean `max_epochs`?"),
        (
            "--model.init_args.sise=9",
            "model.init_args.sise: no such setting of toy_for_fit.Model. Did you mean `size`?",
        ),
        (
            "--model.optimizer.lrr=9",
            "model.init_args.optimizer.lrr: no such setting of toy_for_fit.Optimizer. Did you mean `lr`?",
        ),
        (
            "--model.qqq=9",
            "model.init_args.qqq: no such setting of toy_for_fit.Model. Accepted: size, optimizer, seen.",
        ),
        ("--foo=3", "foo: no such setting. Accepted: seed_everything, trainer, model, data,"),
        ("--model.size=big", "model.init_args.size: got 'big'; accepted: int"),
        ("--trainer.max_epochs=x", "trainer.max_epochs: got 'x'; accepted: int | null"),
        ("--model.optimizer.lr=-1", "model.optimizer.lr: got -1.0; accepted: a positive number."),
        ("stray", "stray: not an argument here; settings are given as --key value or --key=value"),
        ("--ckpt_path=gone.ckpt", "ckpt_path: got 'gone.ckpt'; accepted: an existing checkpoint, or `last`."),
    ],
)
def test_wrong_arguments(capsys, argument, message):
    assert error_of(capsys, "--config", "toy.yaml", argument).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modell": {"a": 1}}, "modell: no such setting. Did you mean `model`?"),
        ({"trainer__max_epoch": 1}, "trainer.max_epoch: no such setting. Did you mean `max_epochs`?"),
        (
            {"model__init_args__optimizer__lrr": 1},
            "model.init_args.optimizer.lrr: no such setting of toy_for_fit.Optimizer. Did you mean `lr`?",
        ),
        (
            {"trainer__callbacks__0__init_args__dirpth": "x"},
            "trainer.callbacks.0.init_args.dirpth: no such setting of "
            "lightning.pytorch.callbacks.ModelCheckpoint. Did you mean `dirpath`?",
        ),
        ({"model__init_args__optimizer__lr": "fast"}, "model.init_args.optimizer.lr: got 'fast'; accepted: float"),
        (
            {"model__class_path": "toy_for_fit.Modle"},
            "model.class_path: toy_for_fit.Modle: module 'toy_for_fit'",
        ),
        ({"data__class_path": "nowhere.Data"}, "data.class_path: nowhere.Data: No module named 'nowhere'"),
        ({"model__class_path": "Modle"}, "model.class_path: got 'Modle'; accepted: an import path, e.g."),
        ({"model": {"init_args": {"size": 1}}}, "model.class_path: not given; accepted: an import path, e.g."),
        ({"data__init_args__scale": "${trainer.nope}"}, "data.init_args.scale: Interpolation key 'trainer.nope' not"),
    ],
)
def test_wrong_configs(capsys, changes, message):
    assert error_of(capsys, "--config", variant(**changes)).startswith(message)


def test_unusable_files(capsys, workdir):
    (workdir / "broken.yaml").write_text("a: 1\nb: [1\nc: }")
    assert error_of(capsys, "--config", "broken.yaml").startswith("broken.yaml:3: not valid YAML: ")
    (workdir / "list.yaml").write_text("- 1")
    assert error_of(capsys, "--config", "list.yaml") == (
        "list.yaml: holds list; a config is a mapping of keys to values"
    )
    assert "nope.yaml: no such file" in error_of(capsys, "--config", "toy.yaml", "--config", "nope.yaml")
    assert error_of(capsys, "--trainer.max_epochs", "2").startswith("`data`, `model`: not given. Name a config")


# -- running ----------------------------------------------------------------------------------------------------------


def weights(checkpoint: str) -> torch.Tensor:
    return torch.load(checkpoint, weights_only=True)["state_dict"]["w"]


def test_same_seed_same_weights_and_saved_config_reproduces(workdir):
    assert main(["fit", "--config", "toy.yaml"]) == 0
    saved = yaml.safe_load((workdir / "run" / "config.yaml").read_text())
    assert saved["seed_everything"] == 5
    before = {path: path.read_bytes() for path in (workdir / "run").rglob("*.*")}
    assert main(["fit", "--config", "run/config.yaml", "--trainer.default_root_dir", "again"]) == 0
    assert {path: path.read_bytes() for path in (workdir / "run").rglob("*.*")} == before
    for epoch in range(3):
        name = f"checkpoints/epoch={epoch}-step={4 * (epoch + 1)}.ckpt"
        assert torch.equal(weights(f"run/{name}"), weights(f"again/{name}"))


def test_last_starts_afresh_then_goes_on_past_half_written_files(workdir, caplog):
    caplog.set_level(logging.INFO)
    assert main(["fit", "--config", "toy.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "1"]) == 0
    assert "starting afresh" in caplog.text
    whole = (workdir / "run/checkpoints/epoch=0-step=4.ckpt").read_bytes()
    (workdir / "run/checkpoints/epoch=1-step=8.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"epoch=1-step=8\.ckpt: not a complete checkpoint; skipped"):
        assert main(["fit", "--config", "toy.yaml", "--ckpt_path", "last"]) == 0
    assert "resuming from" in caplog.text
    assert len(Path("seen.txt").read_text().split()) == 12  # three epochs of four batches, none twice
    resumed = weights("run/checkpoints/epoch=2-step=12.ckpt")

    assert main(["fit", "--config", "toy.yaml", "--trainer.default_root_dir", "straight"]) == 0
    assert torch.equal(weights("straight/checkpoints/epoch=2-step=12.ckpt"), resumed)


def test_overrides_hold_on_resume(workdir):
    assert main(["fit", "--config", "toy.yaml", "--trainer.max_epochs", "1"]) == 0
    before = weights("run/checkpoints/epoch=0-step=4.ckpt")
    argv = ["fit", "--config", "toy.yaml", "--ckpt_path", "run/checkpoints/epoch=0-step=4.ckpt"]
    assert main([*argv, "--trainer.max_epochs", "2", "--data.scale", "0"]) == 0
    after = weights("run/checkpoints/epoch=1-step=8.ckpt")
    torch.testing.assert_close(after, before * 0.75**4)  # four steps towards 0 with rate 0.25


def test_validate_and_predict_from_last(workdir, capsys):
    assert "no complete checkpoint" in error_of(
        capsys, "--config", "toy.yaml", "--ckpt_path", "last", command="validate"
    )
    assert main(["fit", "--config", "toy.yaml"]) == 0
    written = (workdir / "run" / "config.yaml").read_bytes()
    w = weights("run/checkpoints/epoch=2-step=12.ckpt")

    capsys.readouterr()
    assert main(["validate", "--config", "toy.yaml", "--ckpt_path", "last", "--data.scale", "1"]) == 0
    assert "val/distance" in capsys.readouterr().out
    assert (workdir / "run" / "config.yaml").read_bytes() == written

    predict = ["predict", "--config", "toy.yaml", "--ckpt_path", "last", "--data.scale", "1"]
    assert main(predict) == 0
    rows = [json.loads(line) for line in (workdir / "run/predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(8))
    assert rows[3]["scores"] == pytest.approx((3 * w).tolist())
    assert main([*predict, "--predictions", "elsewhere/scores.jsonl"]) == 0
    assert (workdir / "elsewhere/scores.jsonl").read_bytes() == (workdir / "run/predictions.jsonl").read_bytes()


def test_last_needs_a_checkpoint_folder(capsys):
    config = variant(trainer__callbacks__0__init_args__dirpath=None)
    assert error_of(capsys, "--config", config, "--ckpt_path", "last").startswith("ckpt_path: got 'last'; accepted:")


def test_what_lightning_refuses_is_a_users_error(workdir, capsys):
    bar = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"  # the config wants none
    assert "trainer.enable_progress_bar: Trainer was configured with" in error_of(capsys, "--config", "toy.yaml", bar)


def test_unsafe_checkpoint_is_refused(workdir, capsys):
    assert main(["fit", "--config", "toy.yaml", "--trainer.max_epochs", "1"]) == 0
    checkpoint = torch.load("run/checkpoints/epoch=0-step=4.ckpt", weights_only=True)
    torch.save({**checkpoint, "extra": argparse.Namespace()}, "unsafe.ckpt")
    argv = ["--config", "toy.yaml", "--ckpt_path", "unsafe.ckpt"]
    assert "refused, it holds more than tensors" in error_of(capsys, *argv)
    assert main(["fit", *argv, "--weights_only", "false"]) == 0


def test_a_stopped_fit_does_not_look_finished(workdir):
    expected = {"SIGTERM": 75, "SIGINT": 130}
    environment = {**os.environ, "PYTHONPATH": str(workdir), "OMP_NUM_THREADS": "1"}
    processes = {}
    for how in expected:
        config = yaml.safe_load(CONFIG)
        config["trainer"]["default_root_dir"] = how
        config["trainer"]["callbacks"].append({"class_path": "toy_for_fit.Stop", "init_args": {"step": 5, "how": how}})
        config["model"]["init_args"]["seen"] = f"{how}.txt"
        Path(f"{how}.yaml").write_text(yaml.safe_dump(config))
        # a shell that starts the tests in the background has them ignore SIGINT, which processes inherit
        code = "import signal as s, sys; s.signal(s.SIGINT, s.default_int_handler)"
        code += "; from prmkit.cli import main; sys.exit(main(sys.argv[1:]))"
        processes[how] = subprocess.Popen(
            [sys.executable, "-c", code, "fit", "--config", f"{how}.yaml"], env=environment
        )
    assert {how: process.wait(120) for how, process in processes.items()} == expected
    assert {how: len(Path(f"{how}.txt").read_text().split()) for how in expected} == {"SIGTERM": 5, "SIGINT": 5}
    assert Path("SIGTERM/checkpoints/preempted-5.ckpt").exists()
