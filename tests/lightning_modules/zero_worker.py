"""Runs fits under torchrun, or in one process: `zero_worker.py JOBS.json`. What each job says is in `Job`.

Not a test: the tests of ZeRO start it and compare what it writes.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from callbacks.checkpoint_io import AtomicCheckpointIO
from datamodules.batching import BatchConfig
from datamodules.experience import EvaluationConfig, ExperienceDataModule, IterationConfig
from datamodules.prompts import PromptConfig
from datamodules.sft import SFTDataModule
from datamodules.sources import SourceConfig
from datamodules.step_labels import StepLabelDataModule
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_critic import CriticConfig
from lightning_modules.ppo import PPO
from lightning_modules.prm import PRM
from lightning_modules.sft import SFT
from prmkit.models import LoraSpec, ModelSource
from prmkit.models.sharding import whole_state_dict
from prmkit.rl.advantages import GroupConfig
from prmkit.rl.policy_step import KLPenalty
from prmkit.rl.rewards import LengthConfig, OutcomeConfig, RewardsConfig

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


@dataclass
class Job:
    """A fit: `strategy` "zero1" .. "zero3", "ddp" or "auto"; a checkpoint after `save_at` steps into `checkpoint`, from
    which another job may go on; losses, gradient norms and weights into `out`."""

    out: str
    data: str
    kind: str = "sft"
    strategy: str = "auto"
    rows: int = 4
    accumulate: int = 2
    steps: int = 6
    clip: float | None = 0.5
    precision: str = "32-true"
    save_at: int = 0
    checkpoint: str = ""
    resume: str = ""
    export: str = ""
    kill_in_save: bool = False
    lora: bool = False
    tied: bool = True
    source: str = ""
    options: dict[str, Any] | None = None


def source(job: Job) -> ModelSource:
    lora = LoraSpec(r=4) if job.lora else None
    if job.source:
        return ModelSource(path=job.source, lora=lora)
    config = {**CONFIG, "tie_word_embeddings": job.tied}
    return ModelSource(config=config, tokenizer="accumulator", lora=lora)


def module(job: Job) -> Any:
    optimizer = OptimizerConfig(lr=3e-3, schedule="cosine", warmup_steps=2)
    if job.kind == "sft":
        return SFT(source(job), "plain", optimizer, chunk_logits=3000)
    if job.kind == "prm":
        return PRM(source(job), "plain", optimizer)
    kl = KLPenalty(0.02)
    if job.kind == "grpo":
        return GRPO(source(job), "plain", optimizer, GroupConfig(4), kl=kl)
    critic = CriticConfig(lr=1e-2, kind="separate" if job.kind == "ppo-separate" else "head")
    return PPO(source(job), "plain", optimizer, samples=2, critic=critic, kl=kl)


def data(job: Job) -> Any:
    batch = BatchConfig(rows=job.rows, drop_last=False)
    if job.kind == "sft":
        return SFTDataModule([SourceConfig(path=job.data)], batch=batch, max_length=64)
    if job.kind == "prm":
        return StepLabelDataModule([SourceConfig(path=job.data)], batch=batch, max_length=64)
    return ExperienceDataModule(
        PromptConfig("accumulator", count=64),
        PromptConfig("accumulator", split="validation", count=4),
        IterationConfig(prompts=8, updates=2),
        max_tokens=16,
        rewards=RewardsConfig(OutcomeConfig(), length=LengthConfig(16, 12)),
        evaluation=EvaluationConfig(),
    )


def strategy(job: Job, world: int) -> Any:
    if job.strategy.startswith("zero"):
        from lightning_modules.strategies import ZeroStrategy

        return ZeroStrategy(stage=int(job.strategy[4:]), bucket_elements=5000, **(job.options or {}))
    return job.strategy if world > 1 else "auto"


class Watch(Callback):
    """Writes down every optimiser step, and saves in between."""

    def __init__(self, job: Job) -> None:
        self.job, self.losses, self.norms = job, [], []
        self.seen = job.save_at if job.resume else 0

    def on_train_batch_end(self, trainer, pl_module, *_: object) -> None:
        if trainer.global_step > self.seen:
            self.seen = trainer.global_step
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.norms.append(float(trainer.callback_metrics.get("train/grad_norm", float("nan"))))
            if self.job.checkpoint and trainer.global_step == self.job.save_at:
                self.save(trainer)

    def save(self, trainer) -> None:
        if self.job.kill_in_save and trainer.global_rank == 1:
            torch.save = die_half_way
        trainer.save_checkpoint(self.job.checkpoint)

    def on_fit_end(self, trainer, pl_module) -> None:
        state = whole_state_dict(pl_module)
        if self.job.export:
            from callbacks.export import ExportPretrained

            ExportPretrained(self.job.export, weight_version=7)._export(trainer, pl_module)
        if trainer.is_global_zero:
            state = {name: value.clone() for name, value in state.items()}
            torch.save({"losses": self.losses, "norms": self.norms, "state": state}, self.job.out)


def die_half_way(_: object, path: str) -> None:
    Path(path).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def run(job: Job, rank: int, world: int) -> None:
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        strategy=strategy(job, world),
        precision=job.precision,
        max_steps=job.steps,
        accumulate_grad_batches=job.accumulate,
        gradient_clip_val=job.clip,
        use_distributed_sampler=False,
        callbacks=[Watch(job)],
        logger=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if not job.strategy.startswith("zero"):
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    trainer.fit(module(job), data(job), ckpt_path=job.resume or None, weights_only=True)
    trainer.strategy.barrier("job")


if __name__ == "__main__":
    place, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for given in json.loads(Path(sys.argv[1]).read_text()):
        run(Job(**given), place, count)
