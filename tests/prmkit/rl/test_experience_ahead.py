"""Solutions sampled an iteration ahead: by the weights of its beginning, and weighed for it."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from datamodules.experience import ExperienceDataModule, IterationConfig
from datamodules.prompts import PromptConfig
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from prmkit.errors import ConfigError
from prmkit.models import ModelSource
from prmkit.rl.advantages import GroupConfig
from prmkit.rl.rewards import KLConfig, LengthConfig, OutcomeConfig, RewardsConfig

CONFIG = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 32, "tie_word_embeddings": True, "initializer_range": 0.1}
LENGTH = RewardsConfig(OutcomeConfig(weight=0.0, truncated="grade"), length=LengthConfig(12, 11))


class Diary(Callback):
    """Ids of the samples, and figures, of every micro-batch."""

    def __init__(self):
        self.samples, self.figures = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.samples.append(batch.input_ids[batch.attention_mask].tolist())
        self.figures.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(lr, ahead, config=CONFIG, rewards=LENGTH, iterations=3, **options):
    torch.manual_seed(0)
    optimizer = OptimizerConfig(lr=lr, schedule="constant", warmup_steps=0, weight_decay=0.0)
    module = GRPO(
        ModelSource(config=config, tokenizer="accumulator"), optimizer=optimizer, advantage=GroupConfig(4), **options
    )
    data = ExperienceDataModule(
        PromptConfig(count=16), None, IterationConfig(4, 2), max_tokens=12, rewards=rewards, ahead=ahead
    )
    diary = Diary()
    Trainer(
        max_epochs=iterations,
        accelerator="cpu",
        callbacks=[diary],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
    return diary


def test_one_iteration_old_and_no_older():
    still, moving, ahead = fit(1e-12, False), fit(0.03, False), fit(0.03, True)
    assert ahead.samples[:2] == moving.samples[:2] == still.samples[:2]
    assert moving.samples[2:4] != still.samples[2:4]
    assert ahead.samples[2:4] == still.samples[2:4]  # the second iteration's are the first weights' work, too
    assert ahead.samples[4:] != still.samples[4:]
    assert [f["rollout/staleness"] for f in ahead.figures] == [0.0, 0.0, 2.0, 2.0, 2.0, 2.0]
    first, later = ahead.figures[:2], ahead.figures[2:]
    later = [f for f in later if f["train/generator_gap"] != 0.0]  # 0 where no row of a minibatch has an advantage
    assert max(f["train/generator_gap"] for f in first) < 1e-5
    assert len(later) >= 3
    assert min(f["train/generator_gap"] for f in later) > 1e-3
    assert all(f["train/importance_weight"] != 1.0 for f in later)


def test_weights_that_stand_still_make_no_difference():
    assert fit(1e-12, True).samples == fit(1e-12, False).samples


def test_what_cannot_be_sampled_ahead():
    with pytest.raises(ConfigError, match=r"model.correction.*data.ahead"):
        fit(0.1, True, correction=None)
    with pytest.raises(ConfigError, match=r"data.rewards.kl.*data.ahead"):
        fit(0.1, True, rewards=RewardsConfig(OutcomeConfig(), kl=KLConfig()))
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    with pytest.raises(ConfigError, match=r"data.ahead.*GPT2"):
        fit(0.1, True, config=json.loads(json.dumps(gpt2)))
