"""A pair published from inside a fit, and its mirrors."""

import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from callbacks.publish_pair import PublishPair
from datamodules.batching import BatchConfig
from datamodules.sources import SourceConfig
from datamodules.step_labels import StepLabelDataModule
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.prm import PRM
from prmkit.annotation.records import StepLabels
from prmkit.cli import main
from prmkit.errors import ConfigError
from prmkit.io import JsonlWriter
from prmkit.models import ModelSource, PRMModel, build_policy, load_tokenizer, save_policy
from prmkit.steps import get_step_format
from registry import Registry

TINY = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    source = ModelSource(config=TINY, tokenizer="accumulator")
    tokenizer = load_tokenizer(source)
    save_policy(build_policy(source, tokenizer), tokenizer, get_step_format("plain").bind(tokenizer), folder)
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch) -> Registry:
    monkeypatch.setenv("PRMKIT_CACHE", str(tmp_path / "cache"))
    return Registry(tmp_path / "registry")


def fit(policy: Path, folder: Path, callback: PublishPair, **trainer) -> PRM:
    records = folder / "steps.jsonl"
    records.unlink(missing_ok=True)
    with JsonlWriter(records) as writer:
        for value in (1.0, 0.0):
            labels = StepLabels(f"p{value}", "a+3,1", "4", ("a+3=4",), (value,), (1,), "test", "", separator="\n")
            writer.write(labels.to_json())
    module = PRM(ModelSource(path=str(policy)), "plain-head", OptimizerConfig(lr=1e-2, schedule="constant"))
    data = StepLabelDataModule(train=[SourceConfig(path=str(records))], batch=BatchConfig(rows=2))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {**quiet, "enable_checkpointing": False, "max_epochs": 1, "default_root_dir": folder, **trainer}
    Trainer(**options, callbacks=[callback]).fit(module, data)
    return module


def test_the_trained_half_and_the_other_one(policy, store, tmp_path, caplog):
    settings = {"policy": str(policy), "registry": store.storage.url}
    torch.manual_seed(0)
    module = fit(policy, tmp_path, PublishPair("toy", alias="candidate", card={"license": "mit"}, **settings))
    pulled = store.checkout("toy@candidate")
    trained = PRMModel.from_pretrained(pulled.prm).state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in module.model.state_dict().items())
    assert (pulled.policy / "model.safetensors").read_bytes() == (policy / "model.safetensors").read_bytes()
    assert pulled.manifest.card.license == "mit"

    torch.manual_seed(0)
    fit(policy, tmp_path, PublishPair("toy", **settings))  # the same weights: nothing new
    assert store.versions("toy") == [1]
    with caplog.at_level(logging.WARNING):
        fit(policy, tmp_path, PublishPair("toy", alias="best", parent="toy@1", **settings), max_epochs=2)
    assert store.versions("toy") == [1, 2]
    assert "best" not in store.aliases("toy")  # the gate has no metrics to go by, and that ends no fit
    assert "refused by the gate" in caplog.text


def test_the_run_s_config_is_kept(policy, store, tmp_path):
    (tmp_path / "config.yaml").write_text("seed_everything: 3\n")
    fit(policy, tmp_path, PublishPair("toy", policy=str(policy), registry=store.storage.url))
    manifest = store.manifest("toy@1")
    assert [file.path for file in manifest.attachments] == ["config.yaml"]
    assert manifest.recipe.commands == (("prm", "fit", "--config", "config.yaml"),)


def test_refusals_come_before_training(policy, store, tmp_path):
    with pytest.raises(ConfigError, match=r"publish_pair\.policy, prm: got .*exactly one"):
        PublishPair("toy")
    with pytest.raises(ConfigError, match=r"publish_pair\.policy: got None; accepted: the policy that this PRM fits"):
        fit(policy, tmp_path, PublishPair("toy", prm=str(policy), registry=store.storage.url))
    with pytest.raises(ConfigError, match=r"publish_pair\.wandb"):
        fit(policy, tmp_path, PublishPair("toy", policy=str(policy), registry=store.storage.url, wandb=True))
    assert store.versions("toy") == []


def test_hub_layout_opens_as_repositories(policy, store, tmp_path, capsys):
    url = store.storage.url
    card = {"summary": 'says "A: b"\n---\nno', "license": "apache-2.0", "tags": ["toy"], "languages": ["en"]}
    callback = PublishPair("toy", policy=str(policy), registry=url, card=card, hub_layout=str(tmp_path / "hub"))
    fit(policy, tmp_path, callback)
    places = {member: tmp_path / "hub" / f"toy-{member}" for member in ("policy", "prm")}
    for member, task in (("policy", "text-generation"), ("prm", "token-classification")):
        data = ModelCard.load(places[member] / "README.md").data  # the hub's own reader
        assert (data.license, data.language, data.pipeline_tag) == ("apache-2.0", ["en"], task)
        assert {"prmkit", "toy"} <= set(data.tags)
    AutoModelForCausalLM.from_pretrained(places["policy"])
    PRMModel.from_pretrained(places["prm"])
    assert main(["pairs", "export", "toy@1", str(tmp_path / "hub"), "--registry", url]) == 0  # again, in their place
    (tmp_path / "mine" / "toy-prm").mkdir(parents=True)
    (tmp_path / "mine" / "toy-prm" / "thesis.tex").write_text("mine")
    assert main(["pairs", "export", "toy@1", str(tmp_path / "mine"), "--registry", url]) == 2
    assert "toy-prm/thesis.tex: would be replaced" in capsys.readouterr().err
    assert (tmp_path / "mine" / "toy-prm" / "thesis.tex").exists()


def test_wandb_artifact_offline(policy, store, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    logged = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    logger = WandbLogger(project="toy", save_dir=tmp_path, offline=True)
    log = logger.experiment.log_artifact

    def remember(artifact, **options):  # offline runs cannot be asked what they hold
        logged.append((artifact, options))
        return log(artifact, **options)

    monkeypatch.setattr(logger.experiment, "log_artifact", remember)
    callback = PublishPair("toy", policy=str(policy), registry=store.storage.url, wandb=True)
    fit(policy, tmp_path, callback, logger=logger)
    logger.experiment.finish()
    (artifact, options) = logged[0]
    entries = artifact.manifest.entries
    manifest = store.manifest("toy@1")
    wanted = {path for path in manifest.located() if not path.startswith("attachments/")} | {"pair.json"}
    assert set(entries) == wanted
    assert (artifact.name.partition(":")[0], artifact.type, artifact.metadata["ref"]) == ("toy", "pair", "toy@1")
    assert options["aliases"] == ["latest", "registry-1"]
    for path, file in manifest.located().items():
        if path in entries:
            assert Path(entries[path].local_path).stat().st_size == file.size
    assert wandb.run is None


def test_wandb_shows_what_a_run_used(policy, store, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    settings = {"policy": str(policy), "registry": store.storage.url}
    fit(policy, tmp_path, PublishPair("toy", **settings))
    logger = WandbLogger(project="toy", save_dir=tmp_path, offline=True)
    found, log = [], logger.experiment._log_artifact

    def remember(artifact, *arguments, **options):
        found.append((artifact, options))
        return log(artifact, *arguments, **options)

    monkeypatch.setattr(logger.experiment, "_log_artifact", remember)
    callback = PublishPair("toy", parent="toy@1", wandb=True, **settings)
    fit(policy, tmp_path, callback, logger=logger, max_epochs=2)
    logger.experiment.finish()
    used, logged = [(artifact, options.get("use_after_commit", False)) for artifact, options in found]
    assert (used[1], used[0].metadata["ref"], used[0].name.partition(":")[0]) == (True, "toy@1", "toy")
    assert (logged[1], logged[0].metadata["ref"], logged[0].metadata["parent"]) == (False, "toy@2", "toy@1")
    files = {path: file.size for path, file in store.manifest("toy@1").located().items()}
    assert {path: entry.size for path, entry in used[0].manifest.entries.items() if path != "pair.json"} == files


def test_rollouts_are_a_table_of_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from types import SimpleNamespace

    from lightning.pytorch.loggers import WandbLogger

    from callbacks.rollout_samples import RolloutSamples
    from prmkit.rollouts import Rollout
    from prmkit.types import Problem, Step, StepScores, Trace

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = WandbLogger(project="toy", save_dir=tmp_path, offline=True)
    tables = []
    monkeypatch.setattr(logger.experiment, "log", lambda values, **_: tables.append(values))
    trace = Trace("p1", (Step("a=1"), Step("b=2")), "stop", scores=StepScores((0.5, 0.25)))
    rollout = Rollout(Problem("p1", "q", "2"), 0, (1,), (2, 3), (0.0, 0.0), trace, None, {"outcome": 1.0})
    trainer = SimpleNamespace(loggers=[logger], global_step=4)
    RolloutSamples(str(tmp_path / "samples"))._write(trainer, [rollout], 7)
    table = tables[0]["rollout/samples"]
    logger.experiment.finish()
    assert table.columns == [
        "iteration",
        "problem_id",
        "question",
        "answer",
        "steps",
        "scores",
        "finish",
        "reward",
        "outcome",
    ]
    assert table.data == [[7, "p1", "q", "2", "a=1\nb=2", "0.500\n0.250", "stop", None, 1.0]]
