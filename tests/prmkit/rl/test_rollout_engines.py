"""Rollouts by vLLM follow the policy under training."""

import sys

import pytest
from lightning.pytorch import Callback, Trainer

from datamodules.experience import EvaluationConfig, ExperienceDataModule, IterationConfig
from datamodules.prompts import PromptConfig
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from prmkit.engines.vllm.options import CPU_TRIAL, VLLMOptions
from prmkit.errors import ConfigError
from prmkit.models import LoraSpec, ModelSource
from prmkit.rl.advantages import GroupConfig
from prmkit.rl.engines import EngineOptions, VLLMRollouts
from prmkit.rl.rewards import LengthConfig, OutcomeConfig, RewardsConfig

CONFIG = {"model_type": "qwen2", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 64, "tie_word_embeddings": True, "initializer_range": 0.1}
CONFIG |= {"max_position_embeddings": 128}


class Figures(Callback):
    """Every optimiser step's figures, and the versions of the weights that wrote its experience."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.versions: list[set[int]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.gaps.append(trainer.callback_metrics["train/generator_gap"].item())
        self.versions.append({rollout.trace.weight_version for rollout in trainer.datamodule.rollouts})


def fit(engine: EngineOptions, **source) -> Figures:
    module = GRPO(
        ModelSource(config=CONFIG, tokenizer="accumulator", **source),
        optimizer=OptimizerConfig(lr=2e-2, schedule="constant", warmup_steps=0),
        advantage=GroupConfig(size=4),
    )
    data = ExperienceDataModule(
        PromptConfig(count=64),
        PromptConfig(split="validation", count=6),
        iteration=IterationConfig(prompts=4),
        max_tokens=24,
        rewards=RewardsConfig(OutcomeConfig(weight=0.0, truncated="grade"), length=LengthConfig(12, 11)),
        evaluation=EvaluationConfig(rows=4),
        engine=engine,
    )
    figures = Figures()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[figures],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    assert 1 <= trainer.callback_metrics["val/length"].item() <= 24
    return figures


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_of_the_run_follows_its_policy():
    pytest.importorskip("vllm")
    found = fit(EngineOptions("vllm", vllm=VLLMRollouts(CPU_TRIAL, interpreter=sys.executable, startup=1800)))
    assert max(found.gaps) < 1e-4
    assert found.versions == [{0}, {1}, {2}]


@pytest.mark.vllm
@pytest.mark.parametrize("source", [{}, {"lora": LoraSpec(r=4)}], ids=["all weights", "adapters"])
def test_every_iteration_is_sampled_with_the_weights_of_its_beginning(source):
    pytest.importorskip("vllm")
    found = fit(EngineOptions("vllm", vllm=VLLMRollouts(CPU_TRIAL)), **source)
    assert len(found.gaps) == 3
    assert max(found.gaps) < 1e-4  # |log w|, mean over tokens: generator and trainer are one policy
    assert found.versions == [{0}, {1}, {2}]


def test_refusals():
    with pytest.raises(ConfigError, match=r"data\.engine\.vllm.*hf"):
        EngineOptions(vllm=VLLMRollouts())
    with pytest.raises(ConfigError, match=r"data\.engine\.vllm\.options\.sleep"):
        VLLMRollouts(VLLMOptions(sleep=True), interpreter="python")
