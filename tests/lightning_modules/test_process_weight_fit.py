"""Process weights in fits: logged, the same after a stop, the same on every process; what cannot work is refused.

Run as a script (by torchrun) it fits over two processes and writes the weights of both; see the last test.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from datamodules.experience import ExperienceDataModule, IterationConfig
from datamodules.experience_rollouts import PRMSource
from datamodules.prompts import PromptConfig
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.ppo import PPO
from prmkit.advantages import GroupConfig
from prmkit.errors import ConfigError
from prmkit.models import ModelSource, PRMModel, build_prm, load_tokenizer
from prmkit.rewards import ImplicitConfig, OutcomeConfig, ProcessConfig, ProcessWeight, RewardsConfig
from prmkit.rollouts import DynamicSampling
from prmkit.steps import get_step_format

CONFIG = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 16, "tie_word_embeddings": True, "initializer_range": 0.1}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
OPTIMIZER = OptimizerConfig(lr=3e-3, schedule="constant", warmup_steps=0)
RULE = ProcessWeight("silent", 0.9, 0.1)
REWARDS = RewardsConfig(OutcomeConfig(truncated="grade"), ProcessConfig())
MODULES = {
    "grpo": lambda weight: GRPO(SOURCE, optimizer=OPTIMIZER, advantage=GroupConfig(4), process_weight=weight),
    "ppo": lambda weight: PPO(SOURCE, optimizer=OPTIMIZER, samples=4, process_weight=weight),
}


class Stop(Exception):
    pass


class Diary(Callback):
    """What every optimiser step logged; saves and dies after a number of them."""

    def __init__(self, stop: Path | None = None, after: int = 3) -> None:
        self.stop, self.after = stop, after
        self.lines: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        names = ("train/process_weight", "rollout/all_wrong", "rollout/all_right", "train/loss")
        found = trainer.callback_metrics
        self.lines.append({name: float(found[name]) for name in names if name in found})
        if self.stop is not None and trainer.global_step == self.after:
            trainer.save_checkpoint(self.stop)
            raise Stop


def write_inputs(folder: Path) -> None:
    """Questions whose answer a random policy writes now and then, and a PRM of random weights."""
    rows = [json.dumps({"question": f"{letter}+1,0", "answer": str(n % 3)}) for n, letter in enumerate("abcdefgh")]
    (folder / "train.jsonl").write_text("\n".join(rows))
    bound = get_step_format("plain").bind(load_tokenizer(SOURCE))
    PRMModel(build_prm(SOURCE, bound).model, bound).save_pretrained(folder / "prm")


def fit(folder: Path, kind: str = "grpo", weight=RULE, stop=None, resume=None, world: int = 1, **changes):
    module, diary = MODULES[kind](weight), Diary(stop)
    prompts = PromptConfig("jsonl", str(folder / "train.jsonl"), task_options={"grader": "exact"})
    prm = PRMSource(str(folder / "prm"))
    settings = {"iteration": IterationConfig(4, updates=2), "rewards": REWARDS, "prm": prm, "max_tokens": 16}
    data = ExperienceDataModule(prompts, **{**settings, **changes})
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", callbacks=[diary],
        log_every_n_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, diary.lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("process_weight")
    write_inputs(made)
    return made


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_rule_is_logged_and_exact_after_a_stop(kind, folder, tmp_path):
    whole, lines = fit(folder, kind)
    assert len(lines) == 8
    share = None  # an iteration's two updates have the weight of its first
    for line in lines[::2]:
        found = line["rollout/all_wrong"] + line["rollout/all_right"]
        share = found if share is None else 0.5 * share + 0.5 * found
        assert line["train/process_weight"] == pytest.approx(0.1 + 0.8 * share)
    weights = [line["train/process_weight"] for line in lines]
    assert weights[::2] == weights[1::2]
    assert len(set(weights)) > 2
    with pytest.raises(Stop):
        fit(folder, kind, stop=tmp_path / "stopped.ckpt")  # in the middle of the second iteration
    rest, resumed = fit(folder, kind, resume=tmp_path / "stopped.ckpt")
    assert resumed[1:] == lines[4:]
    assert resumed[0]["train/process_weight"] == lines[3]["train/process_weight"]
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_a_schedule_counts_updates_and_a_weight_of_0_is_no_process_reward(folder):
    _, lines = fit(folder, "ppo", ProcessWeight("drop", 0.5, updates=3))
    assert [line["train/process_weight"] for line in lines] == [0.5] * 4 + [0.0] * 4
    dropped, _ = fit(folder, weight=ProcessWeight("linear", 0.0, 0.0, 1))
    watched = RewardsConfig(OutcomeConfig(truncated="grade"), ProcessConfig(weight=0.0))
    plain, _ = fit(folder, weight=ProcessWeight("linear", 1.0, 1.0, 1), rewards=watched)
    for name, value in plain.state_dict().items():
        assert torch.equal(dropped.state_dict()[name], value), name


def test_groups_that_dynamic_sampling_drops_count(folder):
    _, lines = fit(folder, dynamic_sampling=DynamicSampling("process", max_waves=2))
    assert lines[0]["rollout/all_wrong"] > 0.0


def test_what_cannot_work_is_refused_before_any_rollout(folder):
    outcome, process = OutcomeConfig(), ProcessConfig()
    linear = ProcessWeight("linear", updates=4)
    for weight, changes, said in (
        (RULE, {"rewards": RewardsConfig(outcome)}, "model.process_weight: got .*without process rewards"),
        (linear, {"rewards": RewardsConfig(outcome)}, "model.process_weight: got .*without process rewards"),
        (RULE, {"rewards": RewardsConfig(None, process)}, "data.rewards.outcome: got None"),
        (RULE, {"kind": "alone"}, "a number or a schedule with one solution a prompt"),
    ):
        MODULES["alone"] = lambda weight: PPO(SOURCE, samples=1, process_weight=weight)
        with pytest.raises(ConfigError, match=said):
            fit(folder, weight=weight, **changes)
    for weight in (0.5, linear):
        with pytest.raises(ConfigError, match=r"model.process_weight: got .*1 with model.credit trace"):
            GRPO(SOURCE, credit="trace", process_weight=weight)
    MODULES["implicit"] = lambda weight: GRPO(SOURCE, advantage=GroupConfig(4), process_weight=weight)
    with pytest.raises(ConfigError, match=r"model.implicit"):  # an implicit PRM is a process reward
        fit(folder, "implicit", linear, rewards=RewardsConfig(outcome, implicit=ImplicitConfig()))


@pytest.mark.slow
def test_two_processes_have_the_same_weights(folder, tmp_path):
    """A share over one rank's groups would differ between ranks, and from one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    run = subprocess.run([*command, str(folder), str(tmp_path)], timeout=300, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    states = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert states[0] == states[1]
    _, lines = fit(folder)
    assert states[0]["weights"][0] == pytest.approx(lines[0]["train/process_weight"])


if __name__ == "__main__":
    import os

    module, lines = fit(Path(sys.argv[1]), world=2)
    weights = [line["train/process_weight"] for line in lines]
    state = {"weights": weights, **module.process_weight.state_dict()}
    (Path(sys.argv[2]) / f"{os.environ['RANK']}.json").write_text(json.dumps(state))
