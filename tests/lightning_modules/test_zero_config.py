"""What a DeepSpeed section may not say, before any work; DeepSpeed itself is not needed for that."""

import importlib.util
import json

import pytest
import yaml

from lightning_modules.strategies import ZeroStrategy
from lightning_modules.zero_config import make_config, read_section
from prmkit.cli import main
from prmkit.errors import ConfigError, MissingDependencyError
from prmkit.resources import config_root, find_config

needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")


@pytest.mark.parametrize(
    ("section", "names", "home"),
    [
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: got 4", "trainer.accumulate_grad_batches"),
        ({"gradient_clipping": 1.0}, "gradient_clipping: got 1.0", "trainer.gradient_clip_val"),
        ({"train_batch_size": 64}, "train_batch_size: got 64", "data.batch"),
        ({"optimizer": {"type": "Adam"}}, "config.optimizer: got", "model.optimizer"),
        ({"bf16": {"enabled": True}}, "config.bf16: got", "trainer.precision"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage: got 3", "trainer.strategy.stage"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "reduce_bucket_size: got 'auto'", "a value"),
        ({"zero_optimization": True}, "zero_optimization: got True", "a mapping"),
    ],
)
def test_contradictions_are_named(section, names, home):
    with pytest.raises(ConfigError) as error:
        ZeroStrategy(config=section)
    assert names in str(error.value)
    assert home in str(error.value)


def test_files(tmp_path):
    path = tmp_path / "ds.json"
    with pytest.raises(ConfigError, match="existing JSON file"):
        read_section(str(path))
    path.write_text("{")
    with pytest.raises(ConfigError, match="It cannot be read"):
        read_section(str(path))
    path.write_text(json.dumps({"steps_per_print": 5, "zero_optimization": {"sub_group_size": 9}}))
    config = make_config(read_section(str(path)), 3, True, True, 100)
    assert config["steps_per_print"] == 5
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["sub_group_size"], zero["reduce_bucket_size"]) == (3, 9, 100)
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"stage": 4}, "stage"),
        ({"stage": 2, "offload_parameters": True}, "offload_parameters"),
        ({"bucket_elements": 0}, "bucket_elements"),
        ({"timeout_minutes": 0}, "timeout_minutes"),
    ],
)
def test_settings_out_of_range(settings, field):
    with pytest.raises(ConfigError, match=rf"trainer\.strategy\.{field}"):
        ZeroStrategy(**settings)


@pytest.mark.skipif(bool(importlib.util.find_spec("deepspeed")), reason="deepspeed is installed")
def test_without_deepspeed_the_way_to_get_it_is_said():
    with pytest.raises(MissingDependencyError, match=r"pip install 'prmkit\[deepspeed\]'"):
        ZeroStrategy()


def test_shipped_strategies_go_with_a_job(capsys):
    """Merged under a job's config every file is accepted, and leaves the job's own keys alone."""
    zeros = sorted(path.stem for path in (config_root() / "strategy").glob("zero*.yaml"))
    assert {"zero1", "zero2", "zero3"} <= set(zeros)
    job = yaml.safe_load(find_config("configs/prm/quick.yaml").read_text())
    for name in zeros:
        files = [f"--config=configs/{file}.yaml" for file in ("prm/quick", f"strategy/{name}", "strategy/two_nodes")]
        assert main(["fit", *files, "--print_config"]) == 0
        merged = yaml.safe_load(capsys.readouterr().out)
        trainer = merged["trainer"]
        assert (trainer["devices"], trainer["num_nodes"], trainer["precision"]) == (8, 2, "bf16-mixed")
        assert trainer["strategy"]["init_args"]["stage"] == int(name[4])
        assert merged["model"]["init_args"]["optimizer"]["lr"] == job["model"]["init_args"]["optimizer"]["lr"]
        assert merged["model"]["init_args"]["optimizer"]["fused"] == ("offload" in name)


@needs_deepspeed
def test_half_precision_on_a_cpu_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [f"--config=configs/{file}.yaml" for file in ("sft/quick", "strategy/zero2", "strategy/two_cpus")]
    assert main(["fit", *files, "--trainer.devices=1", "--trainer.precision=16-mixed"]) == 2
    assert "trainer.precision: got '16-mixed'; accepted: 32-true or bf16-mixed on CPUs" in capsys.readouterr().err
