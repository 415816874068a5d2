"""How a `prm fit` begins and ends: its run folder, its time, signals, loggers, smoke tests, and a user's mistakes."""

import csv
import importlib
import inspect
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch  # noqa: F401 - here and not in a test: its log handler keeps the stderr it finds
import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.imports import RequirementCache

import callbacks
from prmkit.cli import main

TOY = '''
import json
import os
import time

import torch
from lightning.pytorch import LightningDataModule, LightningModule


class Model(LightningModule):
    """Writes down the numbers it has seen."""

    def __init__(self, seconds: float = 0.0, seen: str = "seen.txt"):
        super().__init__()
        self.seconds, self.seen = seconds, seen
        self.w = torch.nn.Parameter(torch.ones(2))

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        with open(self.seen, "a") as file:
            file.write(f"{int(batch.rows[0])}\\n")
        loss = ((self.w - batch.rows.mean()) ** 2).sum()
        self.log("train/loss", loss, batch_size=2)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.w.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Exported(Model):
    def export_pretrained(self, directory, weight_version=0):
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, "model.txt"), "w") as file:
            file.write("exported")


class Batch:
    def __init__(self, rows):
        self.rows = torch.stack(rows)
        self.attention_mask = torch.ones_like(self.rows)


class Data(LightningDataModule):
    def __init__(self, rows: int = 8):
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(self.rows).float(), batch_size=2, collate_fn=Batch)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(2), batch_size=2)
'''

CONFIG = """
seed_everything: 5
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 3
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
model:
  class_path: toy_for_runs.Model
data:
  class_path: toy_for_runs.Data
"""


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    """A working directory with a toy module and its config; signals are handled as before afterwards."""
    (tmp_path / "toy_for_runs.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sys.modules.pop("toy_for_runs", None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def with_callbacks(*more: dict, **trainer) -> list[str]:
    """Arguments of a fit with the toy config, further callbacks and other settings of the trainer."""
    config = yaml.safe_load(CONFIG)
    config["trainer"]["callbacks"] += more
    config["trainer"].update(trainer)
    Path("variant.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "variant.yaml"]


def error_of(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(["fit", *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def started(*argv: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "prmkit.cli", "fit", *argv], stderr=subprocess.PIPE, text=True)


def until_steps(process: subprocess.Popen, steps: int, file: str = "seen.txt") -> None:
    deadline = time.monotonic() + 60
    while not Path(file).exists() or len(Path(file).read_text().split()) < steps:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tree() -> dict[str, bytes]:
    skipped = ("__pycache__", "seen.txt", "variant.yaml")
    files = [path for path in Path().rglob("*") if path.is_file() and not any(part in skipped for part in path.parts)]
    return {str(path): path.read_bytes() for path in files}


# -- time and signals -------------------------------------------------------------------------------------------------


def test_every_start_has_its_budget_of_time_and_makes_progress():
    argv = ["fit", "--config", "toy.yaml", "--model.seconds", "0.4", "--trainer.max_time", "00:00:00:01"]
    statuses = []
    while not statuses or statuses[-1] == 75:
        statuses.append(main([*argv, "--ckpt_path", "last"]))
        assert len(statuses) < 13
    assert statuses[-1] == 0
    assert len(statuses) > 2
    assert len(Path("seen.txt").read_text().split()) == 12


def test_a_limit_of_time_needs_a_folder_to_stop_with(capsys):
    argv = with_callbacks(max_time="00:00:00:01", callbacks=[])
    assert error_of(capsys, *argv).startswith("trainer.max_time: got '1 s'; accepted: null, or a ModelCheckpoint with")


def test_more_signals_do_not_change_the_status():
    """Sent from the first until the process is gone, in the half second in which the interpreter ends."""
    process = started("--config", "toy.yaml", "--model.seconds", "0.05", "--trainer.max_epochs", "100")
    until_steps(process, 3)
    deadline = time.monotonic() + 60
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.returncode == 75
    assert len(list(Path("run/checkpoints").glob("preempted-*.ckpt"))) == 1


# -- the run folder ---------------------------------------------------------------------------------------------------


def test_a_second_fit_in_a_run_folder_is_refused_until_the_first_ends(capsys, workdir):
    process = started("--config", "toy.yaml", "--model.seconds", "0.2", "--trainer.max_epochs", "100")
    try:
        until_steps(process, 2)
        message = error_of(capsys, "--config", "toy.yaml", "--model.seen", "other.txt")
        assert message.startswith(f"trainer.default_root_dir: another fit writes to {workdir / 'run'} (process ")
        assert str(process.pid) in message
        text = Path("toy.yaml").read_text().replace("${trainer.default_root_dir}/checkpoints", "run/checkpoints")
        Path("shared.yaml").write_text(text)  # another run's folder, the same checkpoints
        message = error_of(capsys, "--config", "shared.yaml", "--trainer.default_root_dir", "elsewhere")
        assert message.startswith(f"trainer.callbacks.ModelCheckpoint.dirpath: another fit writes to {workdir / 'run'}")
    finally:
        process.kill()
        process.wait()
    assert not Path("other.txt").exists()
    assert main(["fit", "--config", "toy.yaml", "--trainer.max_epochs", "1"]) == 0  # a dead process holds nothing


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/training.json", "run/model"])
def test_places_that_cannot_be_written_are_refused_first(capsys, place):
    argv = with_callbacks(
        {"class_path": "callbacks.training_summary.TrainingSummary", "init_args": {"path": "run/training.json"}},
        {"class_path": "callbacks.export.ExportPretrained", "init_args": {"dirpath": "run/model"}},
    )
    Path(place).parent.mkdir(exist_ok=True)
    if place.endswith(".json"):
        Path(place).mkdir()
    else:
        Path(place).write_text("mine")
    before = tree()
    message = error_of(capsys, *argv)
    assert "a file" in message
    assert place in message
    assert tree() == before
    assert not Path("seen.txt").exists()


def file_writers() -> list[type]:
    """Our callbacks whose code writes files."""
    found = []
    for name in [f"callbacks.{module.name}" for module in pkgutil.iter_modules(callbacks.__path__)]:
        module = importlib.import_module(name)
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Callback) and kind.__module__ == name
            if own and re.search(
                r"write_|export_pretrained\(|\.open\(|mkdir|savefig|publish\(", inspect.getsource(module)
            ):
                found.append(kind)
    return found


@pytest.mark.parametrize("kind", file_writers(), ids=lambda kind: kind.__name__)
def test_every_callback_that_writes_files_is_left_out_of_a_smoke_test(kind):
    assert kind.leaves_files


def test_a_smoke_test_writes_nothing():
    argv = with_callbacks({"class_path": "callbacks.export.ExportPretrained", "init_args": {"dirpath": "run/model"}})
    argv += ["--model", "toy_for_runs.Exported"]
    smoke = ["fit", *argv, "--trainer.fast_dev_run", "true"]
    before = tree()
    assert main(smoke) == 0
    assert tree() == before
    assert main(["fit", *argv, "--trainer.max_epochs", "1"]) == 0
    assert Path("run/model/model.txt").exists()
    before = tree()
    assert main([*smoke, "--ckpt_path", "last"]) == 0
    assert tree() == before


# -- loggers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", None])
def test_the_csv_history_continues(version):
    """The interrupted process went two steps further than its checkpoint, and its validation comes again."""
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "run", "name": ""}}
    logger["init_args"]["version"] = version
    argv = with_callbacks(logger=logger)
    file = Path("run/metrics.csv") if version == "" else Path("run/version_0/metrics.csv")

    def rows() -> list[dict]:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file.open())]

    assert main(["fit", *argv]) == 0
    whole = rows()
    for later in Path("run/checkpoints").glob("epoch=[12]-*"):
        later.unlink()
    assert main(["fit", *argv, "--ckpt_path", "last"]) == 0
    assert rows() == whole
    assert [row["step"] for row in whole if "train/loss" in row] == [str(step) for step in range(12)]
    assert len(list(Path("run").rglob("metrics.csv"))) == 1


@pytest.mark.slow
def test_a_wandb_run_continues_under_its_id(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Path("run").mkdir()
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"save_dir": "run", "offline": True}}
    argv = with_callbacks(logger=logger)
    for more in (["--trainer.max_epochs", "1"], ["--ckpt_path", "last"]):
        done = subprocess.run([sys.executable, "-m", "prmkit.cli", "fit", *argv, *more], check=False)
        assert done.returncode == 0
    ids = [path.name.rpartition("-")[2] for path in Path("run/wandb").glob("offline-run-*")]
    assert len(ids) == 2
    assert len(set(ids)) == 1


# -- mistakes ---------------------------------------------------------------------------------------------------------

CALLBACKS = "lightning.pytorch.callbacks."


@pytest.mark.parametrize(
    ("kind", "monitor", "said"),
    [
        ("EarlyStopping", "val/los", "val/los'; accepted: train/loss, val/loss. Did you mean val/loss?"),
        ("EarlyStopping", "accuracy", "accuracy'; accepted: train/loss, val/loss."),
        ("ModelCheckpoint", "val/acc", "val/acc'; accepted: train/loss, val/loss."),
    ],
)
@pytest.mark.parametrize("validated", [True, False])
def test_a_metric_that_is_not_there(capsys, kind, monitor, said, validated):
    saver = {"class_path": CALLBACKS + kind, "init_args": {"monitor": monitor}}
    argv = with_callbacks(saver, **({} if validated else {"limit_val_batches": 0}))
    message = error_of(capsys, *argv)
    assert message.startswith(f"trainer.callbacks.{kind}.monitor: got '{monitor}'; accepted: train/loss")
    assert not validated or message.endswith(said)
    assert len(Path("seen.txt").read_text().split()) <= 4  # the first epoch


def test_a_fit_that_ends_before_it_validates_says_that_a_metric_was_not_there(caplog):
    saver = {"class_path": CALLBACKS + "ModelCheckpoint", "init_args": {"monitor": "nothere"}}
    assert main(["fit", *with_callbacks(saver, max_steps=1)]) == 0
    assert "ModelCheckpoint.monitor: got 'nothere'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_check_interval": 9}, "trainer.val_check_interval: `val_check_interval` (9) must be less than or equal"),
        ({"max_epochs": -3}, "trainer.max_epochs: `max_epochs` must be a non-negative integer or -1."),
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "median"}, "trainer"),
        ({"devices": 0}, "trainer"),
        ({"limit_train_batches": 1.5}, "trainer.limit_train_batches: "),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches: "),
        ({"check_val_every_n_epoch": None, "val_check_interval": 0.5}, "trainer.val_check_interval: "),
    ],
)
def test_what_lightning_refuses_is_one_line_with_the_key(capsys, changes, message):
    assert error_of(capsys, *with_callbacks(**changes)).startswith(message)


def test_the_rest_is_shown_on_request(capsys):
    assert main(["--debug", "fit", *with_callbacks(val_check_interval=9)]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_without_key_or_not_installed(monkeypatch, capsys):
    pytest.importorskip("wandb")
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"save_dir": "run"}}
    argv = with_callbacks(logger=logger)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(Path.cwd()), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "prmkit.cli", "fit", *argv],
        env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: trainer.logger: W&B refused to start: ")
    assert "Traceback" not in done.stderr
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", RequirementCache("wandb>=999"))
    assert error_of(capsys, *argv) == "trainer.logger: W&B is not installed: pip install 'prmkit[wandb]'"
