"""Data for policy optimisation: the policy's own solutions, sampled at the start of every iteration.

One Lightning epoch is one iteration: roll out, score, compute advantages, then passes of minibatches over that
experience. The experience and the position in the prompts are part of the checkpoint, so that a run resumed in the
middle of an iteration goes on exactly. All randomness is derived from (seed, number of the prompt or iteration).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from datamodules.experience_loader import Collected, EvaluationLoader, ExperienceLoader, Schedule, check_same
from datamodules.experience_records import EvalBatch, Sums
from datamodules.experience_rollouts import (
    EngineOptions,
    Learner,
    PRMSource,
    RolloutWorker,
    WorkerOptions,
    check_prompts,
    gather,
)
from datamodules.prompts import PromptConfig, PromptStream, open_prompts
from prmkit.errors import ConfigError, DataError
from prmkit.rewards import RewardsConfig
from prmkit.rollouts import DynamicSampling, Rollout
from prmkit.types import Problem, Task

__all__ = ["EvaluationConfig", "ExperienceDataModule", "IterationConfig"]


@dataclass(frozen=True)
class IterationConfig:
    """Size of an iteration. It is prompts x group size solutions, over all processes.

    The solutions of an optimiser step are prompts x group size / updates; each process splits its share into
    `trainer.accumulate_grad_batches` micro-batches.

    Attributes:
        prompts: at least 1; a multiple of updates x processes.
        updates: optimiser steps a pass, at least 1.
        passes: passes over the experience, at least 1.
    """

    prompts: int = 32
    updates: int = 1
    passes: int = 1

    def __post_init__(self) -> None:
        for name in ("prompts", "updates", "passes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.iteration.{name}", getattr(self, name), "an integer of at least 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """How the policy is examined on the validation prompts: pass@1.

    Attributes:
        temperature: 0 is greedy.
        samples: solutions a problem, at least 1; more than 1 only with a temperature above 0.
        rows: problems a batch, at least 1.
    """

    temperature: float = 0.0
    samples: int = 1
    rows: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.samples > 1 and self.temperature == 0.0):
            raise ConfigError("data.evaluation.samples", self.samples, "an integer of at least 1; 1 at temperature 0")
        if self.rows < 1:
            raise ConfigError("data.evaluation.rows", self.rows, "an integer of at least 1")


class ExperienceDataModule(LightningDataModule):
    """Streams of PolicyBatch for GRPO and PPO modules (`Learner`), which say how many solutions a prompt gets.

    Args:
        prompts: problems to learn from.
        validation: problems to examine the policy on; None for no validation.
        iteration: size of an iteration.
        max_tokens: tokens a solution at most, at least 1.
        rewards: what is maximised.
        prm: the process reward model, or several, for the part `process`; None for none.
        dynamic_sampling: which groups are kept; None keeps all.
        evaluation: how the policy is examined.
        engine: how solutions are sampled.
        ahead: sample the next iteration while this one is trained on, with the weights that this one began with. The
            samples are one iteration old when they are trained on; `model.correction` weighs them accordingly.
        scoring_tokens: padded tokens in one pass without gradient (log-probabilities, values), at least 1.
        seed: of the order of prompts and of the samples.

    Attributes:
        rollouts: this rank's solutions of the last iteration, group by group; for callbacks.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        prompts: PromptConfig,
        validation: PromptConfig | None = None,
        iteration: IterationConfig = IterationConfig(),
        max_tokens: int = 512,
        rewards: RewardsConfig = RewardsConfig(),  # noqa: B008
        prm: PRMSource | None = None,
        dynamic_sampling: DynamicSampling | None = None,
        evaluation: EvaluationConfig = EvaluationConfig(),
        engine: EngineOptions = EngineOptions(),  # noqa: B008
        scoring_tokens: int = 16384,
        seed: int = 0,
        ahead: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("max_tokens", max_tokens), ("scoring_tokens", scoring_tokens)):
            if value < 1:
                raise ConfigError(f"data.{name}", value, "an integer of at least 1")
        if rewards.process is not None and prm is None:
            raise ConfigError("data.prm", None, "a PRM, for data.rewards.process")
        if rewards.implicit is not None and rewards.outcome is None:
            raise ConfigError("data.rewards.outcome", None, "a part, of weight 0 at least: it trains the implicit PRM")
        self._prompts, self._validation, self._iteration = prompts, validation, iteration
        self._evaluation, self._seed, self._ahead = evaluation, seed, ahead
        self._options = WorkerOptions(0, True, max_tokens, rewards, prm, dynamic_sampling, engine, scoring_tokens, seed)
        self._task: Task | None = None
        self._problems: list[Problem] = []
        self._examined: list[Problem] = []
        self._worker: RolloutWorker | None = None
        self._loader: ExperienceLoader | None = None
        self._restored: dict[str, Any] | None = None
        self._position = 0
        self.rollouts: list[Rollout] = []
        self.watch: Callable[[int, int], None] | None = None

    def setup(self, stage: str) -> None:
        """Open the problems, and refuse what does not fit together, before any model is built.

        Raises:
            ConfigError: the stage has no problems; groups too small or not to be dealt out to the processes.
            DataError, StepFormatError: problems or a PRM that cannot be used.
        """
        learner = self._learner
        if stage == "fit":
            self._check_sizes()
            if self._options.prm is not None:
                self._options.prm.checked_formats(learner.bound_format)
            rewards = self._options.rewards
            learner.check_rewards(rewards)
            if rewards.kl is not None or rewards.implicit is not None:
                learner.require_reference()
            if rewards.implicit is not None:
                learner.require_implicit(rewards.implicit.beta)
            self._task, self._problems = open_prompts(self._prompts)
        elif self._validation is None:
            raise ConfigError("data.validation", None, f"problems, to {stage}")
        if self._validation is not None:
            task, self._examined = open_prompts(self._validation)
            self._task = self._task or task

    def teardown(self, stage: str) -> None:  # noqa: ARG002 - called by Lightning
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def train_dataloader(self) -> ExperienceLoader:
        trainer, learner = self.trainer, self._learner
        worker = self._open_worker()
        stream = PromptStream(check_prompts(self._problems, worker.fits, worker.longest_prompt), self._seed)
        shape = self._iteration
        rows = shape.prompts // trainer.world_size * learner.group_size
        schedule = Schedule(rows, shape.updates, shape.passes, int(trainer.accumulate_grad_batches), self._seed)

        if self._ahead:
            worker.sample_ahead(stream)

        def collect(iteration: int) -> Collected:
            last = trainer.max_epochs is not None and iteration + 1 == trainer.max_epochs
            with self._whole_weights():
                step = trainer.global_step
                experience, sums, self._position = worker.collect(stream, self._position, step, last)
            self.rollouts = worker.rollouts
            report = {f"rollout/{name}": value for name, value in _means(gather(sums)).items()}
            return Collected(experience, {**report, "rollout/iteration": float(iteration)})

        tokenizer = learner.bound_format.tokenizer
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._loader = ExperienceLoader(collect, learner.loss_count, schedule, int(pad_id), learner.skips_silent)
        if self._restored is not None:
            self._restore(self._restored)
        return self._loader

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        return self._evaluation_loader()

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        return self._evaluation_loader()

    # -- exact resume -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Position in prompts and iterations, and the experience of an iteration that has begun. Collective."""
        if self._loader is None:
            return {}
        ahead = None if self._worker is None or self._worker.ahead is None else self._worker.ahead.state()
        return {
            "ahead": ahead,
            "prompts": self._position,
            "made_with": self._made_with(),
            "ranks": gather(self._loader.state()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None
        if self._loader is not None and self._restored is not None:
            self._restore(self._restored)

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._loader is not None
        ours = state["ranks"][0]
        if ours["consumed"] > 0:
            check_same(state["made_with"], self._made_with())
            ours = state["ranks"][self.trainer.global_rank]
        self._loader.restore(ours)
        self._position = state["prompts"]
        if self._worker is not None and self._worker.ahead is not None:
            self._worker.ahead.restore(state.get("ahead"))

    def _made_with(self) -> dict[str, int]:
        shape = self._iteration
        return {
            "processes": self.trainer.world_size,
            "trainer.accumulate_grad_batches": int(self.trainer.accumulate_grad_batches),
            "data.iteration.prompts": shape.prompts,
            "data.iteration.updates": shape.updates,
            "data.iteration.passes": shape.passes,
            "group size": self._learner.group_size,
            "data.seed": self._seed,
        }

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _learner(self) -> Learner:
        learner: Any = self.trainer.lightning_module
        if not hasattr(learner, "score_tokens"):
            raise ConfigError("model", type(learner).__name__, "a module that optimises a policy: GRPO or PPO")
        return learner

    def _check_sizes(self) -> None:
        trainer, shape = self.trainer, self._iteration
        unit = shape.updates * trainer.world_size
        if shape.prompts % unit:
            raise ConfigError(
                "data.iteration.prompts", shape.prompts,
                f"a multiple of {unit}: data.iteration.updates {shape.updates} x {trainer.world_size} processes",
            )  # fmt: skip
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise ConfigError("trainer.callbacks", "GradientAccumulationScheduler", "trainer.accumulate_grad_batches")
        limit = trainer.limit_train_batches  # the number 1 is one batch, 1.0 all of them
        whole = isinstance(limit, float) and limit == 1.0 and not trainer.overfit_batches
        if not whole and not trainer.fast_dev_run:
            raise ConfigError(
                "trainer.limit_train_batches", limit, "1.0 (and overfit_batches 0)",
                "An epoch is an iteration; its size is data.iteration.",
            )  # fmt: skip

    def _open_worker(self) -> RolloutWorker:
        if self._worker is None:
            assert self._task is not None
            shape = self._iteration
            options = replace(
                self._options,
                groups=shape.prompts // self.trainer.world_size,
                single_update=shape.updates * shape.passes == 1,
            )
            precision = self.trainer.precision_plugin.forward_context
            self._worker = RolloutWorker(self._learner, self._task, precision, options)
            self._worker.watch = self._watched
        return self._worker

    def _watched(self, done: int, total: int) -> None:
        if self.watch is not None:
            self.watch(done, total)

    def _evaluation_loader(self) -> EvaluationLoader | list[Any]:
        if not self._examined:
            return []
        mine = self._examined[self.trainer.global_rank :: self.trainer.world_size]
        if not mine:
            raise DataError(f"data.validation: {len(self._examined)} problems for {self.trainer.world_size} processes")
        worker, config = self._open_worker(), self._evaluation

        def evaluate(numbers: range) -> EvalBatch:
            with self._whole_weights():
                return worker.evaluate(mine, numbers, config.samples, config.temperature)

        return EvaluationLoader(evaluate, len(mine), config.rows)

    def _whole_weights(self) -> AbstractContextManager[None]:
        """Where the strategy divides weights, every process holds all of them while it samples and scores."""
        strategy: Any = self.trainer.strategy
        return strategy.whole_weights() if hasattr(strategy, "whole_weights") else nullcontext()


def _means(ranks: list[Sums]) -> dict[str, float]:
    """Means over ranks of figures that are sums and counts; what nobody counted is left out."""
    names = sorted({name for sums in ranks for name in sums})
    means: dict[str, float] = {}
    for name in names:
        entries = [sums[name] for sums in ranks if name in sums]
        count = sum(number for _, number in entries)
        if count:
            means[name] = sum(total for total, _ in entries) / count
    return means
