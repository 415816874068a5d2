"""Every shipped config of policy optimisation is instantiated, and the quick ones are run with a tiny policy."""

import json
from pathlib import Path

import pytest
import yaml

from callbacks.reward_guards import GuardLimits
from prmkit.cli import main
from prmkit.cli.fit_settings import read_fit
from prmkit.cli.parsing import expand_configs
from prmkit.models import ModelSource, PRMModel, build_policy, build_prm, load_tokenizer, save_policy
from prmkit.resources import find_config, shipped_configs
from prmkit.steps import get_step_format

JOBS = ("grpo", "ppo", "dpo")
NAMES = [name for job in JOBS for name in shipped_configs(job)]
CONFIG = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 16, "initializer_range": 0.1}
TINY = ModelSource(config=CONFIG, tokenizer="accumulator")


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tiny") / "policy"
    tokenizer = load_tokenizer(TINY)
    save_policy(build_policy(TINY, tokenizer), tokenizer, get_step_format("plain").bind(tokenizer), path)
    return str(path)


def arguments(name: str, policy: str) -> list[str]:
    """A tiny policy, and its own step format, in place of a model that a user would download."""
    return ["--config", name, "--model.init_args.source.path", policy, "--model.init_args.step_format", "null"]


def test_every_algorithm_has_a_small_and_a_quick_config():
    for job in ("grpo", "ppo"):
        assert {Path(name).stem for name in shipped_configs(job)} >= {"accumulator", "quick", "qwen2.5-math-1.5b"}


@pytest.mark.parametrize("name", NAMES)
def test_config_instantiates(name, policy, tmp_path, monkeypatch):
    from prmkit.cli.resume import checkpoint_path
    from prmkit.cli.trainer_cli import PrmCLI

    monkeypatch.chdir(tmp_path)
    expanded, _ = expand_configs([*arguments(name, policy), "--ckpt_path", "last"])
    on_cpu = ["--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]
    cli = PrmCLI("fit", read_fit([*expanded, *on_cpu], "fit"))
    assert checkpoint_path(cli) is None
    root = Path(cli.config.trainer.default_root_dir)
    assert root.parts == ("runs", Path(name).stem, Path(name).parent.name)
    savers = [callback for callback in cli.trainer.callbacks if "ModelCheckpoint" in type(callback).__name__]
    assert {Path(saver.dirpath) for saver in savers} == {tmp_path / root / "checkpoints"}
    exports = [callback for callback in cli.trainer.callbacks if type(callback).__name__ == "ExportPretrained"]
    assert [Path(export.dirpath).parent for export in exports] == [root]


@pytest.mark.parametrize("name", [name for name in NAMES if Path(name).parts[1] in ("grpo", "ppo")])
def test_the_policy_is_held_and_watched_by_default(name):
    """A pull whose gradient does not level off, and guards that watch length and luck."""
    config = yaml.safe_load(find_config(name).read_text())
    kl = config["model"]["init_args"]["kl"]
    assert kl["weight"] >= 0.1
    assert kl["estimator"] == "k3_k2"
    (guards,) = (c for c in config["trainer"]["callbacks"] if c["class_path"].endswith(".RewardGuards"))
    limits = GuardLimits(**guards.get("init_args", {}).get("limits", {}))
    assert None not in (limits.shorter, limits.lucky)


@pytest.mark.parametrize("job", ["grpo", "ppo"])
def test_quick_config_runs_with_a_prm(job, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bound = get_step_format("plain-head").bind(load_tokenizer(TINY))
    PRMModel(build_prm(TINY, bound).model, bound).save_pretrained(tmp_path / "prm")
    more = ["--data.prm.path", "prm", "--data.rewards.process.form", "min", "--data.max_tokens", "16"]
    more += ["--trainer.max_epochs", "1", "--trainer.logger", "false"]
    assert main(["fit", *arguments(f"configs/{job}/quick.yaml", policy), *more]) == 0
    root = tmp_path / "runs" / "quick" / job
    metrics = json.loads((root / "training.json").read_text())["metrics"]
    assert {"val/pass_at_1", "rollout/outcome", "rollout/process", "rollout/score_gap", "train/ratio"} <= metrics.keys()
    assert {path.name for path in (root / "samples").iterdir()} == {
        f"iteration-00000.{e}" for e in ("txt", "jsonl", "png")
    }
    assert (root / "policy" / "model.safetensors").is_file()


def test_wrong_settings_are_named(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for override, message in (
        (("--model.advantage.size", "1"), "advantage.size: got 1; accepted: an integer of at least 2"),
        (("--model.reference.path", "no/such"), "no/such"),
        (("--data.prm.path", "no/such"), "no/such"),
        (("--data.rewards.process.form", "min"), "data.prm: got None"),
        (("--data.iteration.updates", "3"), "data.iteration.prompts: got 8; accepted: a multiple of 3"),
        (("--data.iteratio.updates", "3"), "data.init_args.iteratio"),
    ):
        assert main(["fit", *arguments("configs/grpo/quick.yaml", policy), *override]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: "), error
        assert message in error
