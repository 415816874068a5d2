"""A run killed in the middle of an iteration, or anywhere else, goes on with the same figures, bit for bit."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file

from datamodules.experience import ExperienceDataModule, IterationConfig
from datamodules.prompts import PromptConfig
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_critic import CriticConfig
from lightning_modules.ppo import PPO
from prmkit.errors import DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.models import ModelSource, build_policy, load_tokenizer, save_policy
from prmkit.rl.advantages import GroupConfig
from prmkit.rl.policy_step import KLPenalty
from prmkit.rl.rewards import LengthConfig, OutcomeConfig, RewardsConfig
from prmkit.rl.rollouts import DynamicSampling

CONFIG = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 32, "tie_word_embeddings": True, "initializer_range": 0.1}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_ratio=0.1)
REWARDS = RewardsConfig(OutcomeConfig(weight=0.0, truncated="grade"), length=LengthConfig(12, 11))
CLOCK = ("seconds", "per_second")


class Stop(Exception):
    pass


class Diary(Callback):
    """Writes what every optimiser step logged; saves and dies after a number of them."""

    def __init__(self, path: Path, stop: int | None = None) -> None:
        self.path, self.stop = path, stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        logged = {n: v.item() for n, v in trainer.callback_metrics.items() if not n.endswith(CLOCK)}
        line = {"step": trainer.global_step, "epoch": trainer.current_epoch, "ids": batch.ids, **logged}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if trainer.global_step == self.stop:
            trainer.save_checkpoint(self.path.parent / "stopped.ckpt")
            raise Stop


def fit(path: Path, kind: str = "grpo", stop: int | None = None, resume: bool = False, **changes):
    if kind == "grpo":
        module = GRPO(SOURCE, optimizer=OPTIMIZER, advantage=GroupConfig(4), kl=KLPenalty(0.05))
    else:
        module = PPO(SOURCE, optimizer=OPTIMIZER, samples=4, critic=CriticConfig("separate"))
    dynamic = DynamicSampling("length", max_waves=3) if kind == "grpo" else None
    data = ExperienceDataModule(
        PromptConfig(count=10),
        PromptConfig(split="validation", count=4),
        **{"iteration": IterationConfig(4, 2, 2), "dynamic_sampling": dynamic, **changes},
        max_tokens=12,
        rewards=REWARDS,
    )
    trainer = Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[Diary(path, stop)],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data, ckpt_path=path.parent / "stopped.ckpt" if resume else None, weights_only=True)
    return module


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def known(line: dict) -> dict:
    """Without figures that only the first steps of an iteration, or a validation, log."""
    return {n: v for n, v in line.items() if not n.startswith(("rollout/", "val/"))}


@pytest.mark.parametrize(
    ("kind", "stops", "changes"),
    [("grpo", (1, 4, 6, 7), {}), ("ppo", (3, 8), {}), ("grpo", (2, 4, 7), {"ahead": True})],
    ids=["grpo", "ppo", "ahead"],
)
def test_resume(kind, stops, changes, tmp_path):
    whole = fit(tmp_path / "whole", kind, **changes)
    written = lines(tmp_path / "whole")
    assert len(written) == 12
    assert len({line["train/loss"] for line in written}) == 12
    for stop in stops:  # steps of 3 iterations of 4; 4 and 8 are their ends
        with pytest.raises(Stop):
            fit(tmp_path / f"first{stop}", kind, stop, **changes)
        rest = fit(tmp_path / f"rest{stop}", kind, resume=True, **changes)
        resumed = lines(tmp_path / f"rest{stop}")
        assert [known(line) for line in resumed] == [known(line) for line in written[stop:]], stop
        for one, other in zip(resumed, written[stop:], strict=True):
            if one["epoch"] > written[stop - 1]["epoch"]:  # an iteration sampled after the resume
                assert {n: v for n, v in one.items() if "rollout" in n} == {
                    n: v for n, v in other.items() if "rollout" in n
                }
        for name, value in whole.state_dict().items():
            assert torch.equal(rest.state_dict()[name], value), (stop, name)


def test_other_settings_are_refused_in_the_middle_of_an_iteration_only(tmp_path):
    with pytest.raises(Stop):
        fit(tmp_path / "first", stop=3)
    with pytest.raises(DataError, match=r"data.iteration.updates = 2, and this run has 4"):
        fit(tmp_path / "rest", resume=True, iteration=IterationConfig(4, 4, 1))
    with pytest.raises(Stop):
        fit(tmp_path / "first", stop=4)
    fit(tmp_path / "rest", resume=True, iteration=IterationConfig(4, 4, 1))


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    """SIGKILL ten times, up to some steps after going on, with iterations of 4 steps; then undisturbed to the end."""
    tokenizer = load_tokenizer(SOURCE)
    bound = BoundStepFormat(get_step_format("plain"), tokenizer)
    save_policy(build_policy(SOURCE, tokenizer), tokenizer, bound, tmp_path / "policy")
    settings = {
        "model.source.path": tmp_path / "policy",
        "trainer.callbacks.0.every_n_train_steps": 1,
        "trainer.callbacks.0.save_top_k": -1,
        "trainer.max_epochs": 24,
        "data.iteration.updates": 4,
        "data.max_tokens": 12,
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    draw = random.Random(0)

    def start(root: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "prmkit.cli", "fit", "--config", "configs/grpo/quick.yaml", *options]
        command += ["--trainer.default_root_dir", str(root), "--ckpt_path", "last"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def written(root: Path) -> list[str]:
        return sorted(path.name for path in (root / "checkpoints").glob("*.ckpt"))

    assert start(tmp_path / "whole").wait(900) == 0
    assert len(written(tmp_path / "whole")) == 96
    for _ in range(10):
        process, before = start(tmp_path / "killed"), len(written(tmp_path / "killed"))
        steps_more = draw.randint(1, 4)
        while process.poll() is None and len(written(tmp_path / "killed")) < before + steps_more:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.05))
        assert process.poll() is None
        process.kill()
        process.wait()
    assert start(tmp_path / "killed").wait(900) == 0
    one, other = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "killed"))
    for name in (name for name in one["metrics"] if name.startswith(("train/", "val/"))):
        assert one["metrics"][name] == other["metrics"][name], name
    assert one["tokens"] == other["tokens"]
