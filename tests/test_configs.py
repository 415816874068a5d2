"""Every shipped config is instantiated, with tiny folders in place of the models that a user would download."""

import importlib
import json
from pathlib import Path

import lightning.pytorch  # noqa: F401 - here and not in a test: its log handler keeps the stderr it finds
import pytest
import torch
import yaml

from prmkit.cli import main
from prmkit.cli.fit_settings import read_fit
from prmkit.cli.options import parse_settings, peek
from prmkit.cli.parsing import expand_configs
from prmkit.models import ModelSource, build_policy, load_tokenizer, save_policy
from prmkit.resources import config_root, shipped_configs
from prmkit.steps import get_step_format
from prmkit.tasks import get_task

FIT_JOBS = ("sft", "prm")
TINY = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2, "intermediate_size": 16}


def fit_configs() -> list[str]:
    return [name for job in FIT_JOBS for name in shipped_configs(job)]


@pytest.fixture(scope="session")
def policies(tmp_path_factory) -> dict[str, Path]:
    """Tiny policy folders: of the built-in task, and one whose tokenizer knows the labels and the tag of Math-psa."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("policies")
    source = ModelSource(config=TINY, tokenizer="accumulator")
    tokenizer = load_tokenizer(source)
    save_policy(build_policy(source, tokenizer), tokenizer, get_step_format("plain").bind(tokenizer), root / "plain")

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, newline = "\u0120", "\u010a"
    merges = [(space, "+"), (space, "-")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, f"{space}+", f"{space}-", "<|im_end|>"])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    assert newline in vocabulary
    chat = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = chat
    fast.save_pretrained(root / "bpe-tokenizer")
    source = ModelSource(config=TINY, tokenizer=str(root / "bpe-tokenizer"))
    tokenizer = load_tokenizer(source)
    bound = get_step_format("math-psa").bind(tokenizer)
    save_policy(build_policy(source, tokenizer), tokenizer, bound, root / "math-psa")
    return {"plain": root / "plain", "math-psa": root / "math-psa"}


def stand_in(name: str, policies: dict[str, Path]) -> list[str]:
    """Arguments that put a tiny policy in place of a config's pretrained model."""
    model = yaml.safe_load((config_root() / Path(name).relative_to("configs")).read_text())["model"]["init_args"]
    if "path" not in model["source"]:
        return []
    fitting = "math-psa" if model.get("step_format") == "math-psa" else "plain"
    return ["--model.init_args.source.path", str(policies[fitting])]


def test_there_are_configs_of_every_job():
    names = shipped_configs()
    for job in ("sft", "prm", "annotate", "search"):
        assert any(name.startswith(f"configs/{job}/") for name in names), job
    assert all(Path(name).suffix == ".yaml" for name in names)


@pytest.mark.parametrize("name", fit_configs())
def test_fit_config_instantiates(name, policies, tmp_path, monkeypatch):
    from prmkit.cli.resume import checkpoint_path
    from prmkit.cli.trainer_cli import PrmCLI

    monkeypatch.chdir(tmp_path)  # shipped configs are found from anywhere
    arguments, _ = expand_configs(["--config", name, *stand_in(name, policies), "--ckpt_path", "last"])
    cli = PrmCLI("fit", read_fit(arguments, "fit"))
    assert cli.model.bound_format.tokenizer is cli.model.tokenizer
    assert checkpoint_path(cli) is None
    root = Path(cli.config.trainer.default_root_dir)
    assert root.parts[:2] == ("runs", Path(name).stem)
    assert root.name == Path(name).parent.name
    savers = [callback for callback in cli.trainer.callbacks if "ModelCheckpoint" in type(callback).__name__]
    assert {Path(saver.dirpath) for saver in savers} == {tmp_path / root / "checkpoints"}
    exports = [callback for callback in cli.trainer.callbacks if type(callback).__name__ == "ExportPretrained"]
    assert [Path(export.dirpath).parent for export in exports] == [root]


@pytest.mark.parametrize("name", fit_configs())
def test_a_second_config_with_one_callback_still_leaves_what_a_fit_leaves(name, policies, tmp_path, monkeypatch):
    from prmkit.cli.trainer_cli import PrmCLI

    kept = ["EarlyStopping", "ExportPretrained", "ModelCheckpoint", "Preemption", "TrainingSummary"]

    def callbacks(key: str, *argv: str) -> list[str]:
        stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
        Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {key: [stop]}}))
        arguments, _ = expand_configs(["--config", name, "--config", "mine.yaml", *stand_in(name, policies), *argv])
        cli = PrmCLI("fit", read_fit(arguments, "fit"))
        root = tmp_path / cli.config.trainer.default_root_dir
        made = {type(callback).__name__: callback for callback in cli.trainer.callbacks}
        assert "ModelCheckpoint" not in made or Path(made["ModelCheckpoint"].dirpath) == root / "checkpoints"
        return sorted(
            set(made) & {"ModelCheckpoint", "ExportPretrained", "TrainingSummary", "Preemption", "EarlyStopping"}
        )

    monkeypatch.chdir(tmp_path)

    assert callbacks("callbacks+") == callbacks("callbacks") == kept
    off = [part for key in ("export", "summary", "preemption") for part in (f"--{key}", "false")]
    assert callbacks("callbacks", *off) == ["EarlyStopping", "ModelCheckpoint"]
    assert callbacks("callbacks", *off, "--trainer.enable_checkpointing", "false") == ["EarlyStopping"]


@pytest.mark.parametrize("name", [name for job in ("annotate", "search") for name in shipped_configs(job)])
def test_annotate_and_search_configs_instantiate(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = Path(name).parent.name
    command = importlib.import_module(f"prmkit.cli.{job}")
    arguments, _ = expand_configs(["--config", name, "--policy", "p", "--output", "o"])
    parser = command.parser(*([peek(arguments, "method", "omegaprm")] if job == "annotate" else []))
    values = parse_settings(parser, arguments)
    task = get_task(values["task"], values["data"], **values["task_options"])
    assert values["split"] is None or values["split"] in task.splits
    assert values["limit"] is None or values["limit"] >= 1
    assert values["sampling"].max_tokens >= 1
    assert values["engine"].max_rows >= 1


def last_error(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any(line.startswith("Traceback") for line in lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("--model.optimizer.lrate", "1"),
            "error: model.init_args.optimizer.lrate: no such setting of lightning_modules",
        ),
        (
            ("--data.train.0.pth", "x"),
            "error: data.init_args.train.0.pth: no such setting of datamodules.sources.SourceConfig",
        ),
        (("--model.loss", "hinge"), "error: model.init_args.loss: got 'hinge'; accepted: "),
        (("--model.source.path", "no/such/folder"), "error: model.init_args.source.path: no/such/folder: no such"),
        (
            ("--model.step_format", '{"base": "plain", "prm": {"tag": "<tag>"}}'),
            "error: step_format.prm.tag: the tokenizer",
        ),
        (("--model.step_format", "no-such-format"), "error: step_format: got 'no-such-format'; accepted: a preset"),
    ],
)
def test_wrong_settings_of_a_real_config(override, message, policies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "configs/prm/accumulator.yaml"
    Path("labels.jsonl").touch()
    data = ["--data.train.0.path", "labels.jsonl"]
    assert main(["fit", "--config", name, *stand_in(name, policies), *data, *override]) == 2
    assert last_error(capsys).startswith(message)


def test_data_files_that_are_missing_empty_or_malformed(policies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "configs/prm/quick.yaml"
    command = ["fit", "--config", name, *stand_in(name, policies), "--data.train.0.path"]
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text('{"schema": 1,\n')
    for file, message in {"gone.jsonl": "no such", "empty.jsonl": "empty.jsonl", "bad.jsonl": "bad.jsonl:1"}.items():
        assert main([*command, file]) == 2
        assert message in last_error(capsys)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.ckpt"))


# -- the PRM of the OpenR paper ---------------------------------------------------------------------------------------

MATH_PSA = "configs/prm/math_psa.yaml"


def test_math_psa_says_what_the_paper_says():
    config = yaml.safe_load((config_root() / "prm" / "math_psa.yaml").read_text())
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    assert data["batch"]["rows"] * trainer["accumulate_grad_batches"] * trainer["devices"] == 256
    assert (trainer["max_epochs"], trainer["precision"]) == (3, "bf16-mixed")
    assert model["source"]["path"] == "Qwen/Qwen2.5-Math-7B-Instruct"
    assert model["source"]["lora"]["r"] == 8
    assert model["source"]["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert (model["optimizer"]["lr"], model["step_format"]) == (1e-4, "math-psa")
    sources = {source["name"]: source for source in data["train"]}
    assert set(sources) == {"trl-lib/prm800k", "peiyi9979/Math-Shepherd", "mengfang/MATH-APS"}
    assert all(source["kind"] == "hub" and source["streaming"] and source["weight"] > 0 for source in sources.values())


@pytest.fixture
def fit_math_psa(policies, data_dir, tmp_path, monkeypatch):
    """Runs the file as it is, with a tiny Qwen2, the sample files and a small batch put in by overrides."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    settings = {
        "model.source.path": policies["math-psa"],
        "model.source.lora.dropout": 0,  # its random state would not be the same after a stop
        "model.optimizer.schedule": "constant",
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.accumulate_grad_batches": 2,
        "trainer.val_check_interval": 1.0,
        "trainer.callbacks.0.every_n_train_steps": 1,
        "data.epoch_rows": 24,
        "data.max_length": 512,
        "data.workers.num_workers": 0,
        "data.val.0.name": "json",
        "data.val.0.path": data_dir / "formats" / "math-shepherd.jsonl",
        "data.val.0.split": "train",
        "data.val.0.count": 7,
    }
    for number, sample in enumerate(("prm800k", "math-shepherd", "math-aps")):
        settings[f"data.train.{number}.name"] = "json"
        settings[f"data.train.{number}.path"] = data_dir / "formats" / f"{sample}.jsonl"
        settings[f"data.train.{number}.weight"] = 1

    def fit(root: str, **more: object) -> dict:
        overrides = {**settings, "trainer.default_root_dir": root, **{k.replace("__", "."): v for k, v in more.items()}}
        arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        assert main(["fit", "--config", MATH_PSA, *arguments]) == 0
        return json.loads((tmp_path / root / "training.json").read_text())

    return fit


def test_math_psa_trains_in_epochs_and_goes_on_in_the_middle_of_one(fit_math_psa, tmp_path):
    from safetensors.torch import load_file

    summary = fit_math_psa("whole", trainer__callbacks__0__save_top_k=-1)
    assert summary["steps"] == 9  # 3 epochs of 24 rows, 4 x 2 rows a step
    assert summary["metrics"]["val/first_error_f1"] is None  # the sample has no solution that is right
    (middle,) = (tmp_path / "whole" / "checkpoints").glob("*step=5.ckpt")
    assert fit_math_psa("resumed", ckpt_path=middle)["steps"] == 9
    one, other = (load_file(tmp_path / root / "model" / "model.safetensors") for root in ("whole", "resumed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
