"""Sampling the next iteration's solutions while the present one is trained on: off-policy by one iteration, no more.

The weights that sample are those of the beginning of the present iteration, so that the loss needs its importance
correction (`prmkit.losses.importance_correction`). What is sampled depends on those weights and on the numbers of the
prompts, never on how far training has come meanwhile. A checkpoint therefore holds the weights, and a resumed run
samples the same again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from prmkit.engines import HFEngine
from prmkit.engines.inprocess.fused import can_fuse
from prmkit.errors import ConfigError
from prmkit.models.lora import merged_state_dict
from prmkit.protocols import Engine
from prmkit.rl.learner import Learner
from prmkit.rl.rewards import RewardsConfig
from prmkit.rl.rollouts import Group

__all__ = ["Sampled", "SamplingAhead", "check_ahead", "timed"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Groups of an iteration on this rank.

    Attributes:
        kept, drawn: groups to train on, and all groups.
        position: number of the next prompt.
        version: optimiser steps that the weights had seen.
        seconds: that sampling and judging took.
    """

    kept: list[Group]
    drawn: list[Group]
    position: int
    version: int
    seconds: float


Sample = Callable[[Engine, int, int], Sampled]
"""Samples with an engine from a prompt's number on; the last argument is the weights' version."""


@dataclass(frozen=True, slots=True)
class _Pending:
    weights: dict[str, Tensor]
    position: int
    version: int
    result: Future[Sampled]


class SamplingAhead:
    """One iteration's solutions in the making, in a thread, by an engine with weights of its own.

    Args:
        model: policy that is trained.
        make_engine: an engine for it; its copies of the weights are left alone by training.
        sample: see `Sample`; called in the thread. What it needs of the policy must not change under training.
    """

    def __init__(self, model: nn.Module, make_engine: Callable[[int], HFEngine], sample: Sample) -> None:
        self._model, self._make_engine, self._sample = model, make_engine, sample
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._engine: HFEngine | None = None
        self._pending: _Pending | None = None

    def begin(self, position: int, version: int) -> None:
        """Sample from here on, with the weights as they are now."""
        weights = {name: t.detach().to("cpu", copy=True) for name, t in merged_state_dict(self._model).items()}
        self._launch(weights, position, version)

    def take(self, position: int) -> Sampled | None:
        """What was begun for this position, once it is there; None when nothing was."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        sampled = pending.result.result()
        return sampled if pending.position == position else None

    def state(self) -> dict[str, Any] | None:
        """What `restore` needs to sample the same again; None when nothing was begun. The same on every rank."""
        pending = self._pending
        if pending is None:
            return None
        return {"weights": pending.weights, "position": pending.position, "version": pending.version}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Sample again what was being sampled when the state was written."""
        if state is not None:
            self._launch(state["weights"], state["position"], state["version"])

    def close(self) -> None:
        """Wait for the thread, and end it."""
        self._thread.shutdown(cancel_futures=True)

    def _launch(self, weights: dict[str, Tensor], position: int, version: int) -> None:
        if self._pending is not None:
            self._pending.result.result()  # an engine in use takes no weights
        with torch.inference_mode():
            if self._engine is None:
                self._engine = self._make_engine(version)
            self._engine.update_weights(weights, version)
        result = self._thread.submit(self._sample, self._engine, position, version)
        self._pending = _Pending(weights, position, version, result)


def timed(waves: Callable[[Engine, int], tuple[list[Group], list[Group], int]]) -> Sample:
    """A `Sample` from a function that samples."""

    def sample(engine: Engine, position: int, version: int) -> Sampled:
        start = time.perf_counter()
        kept, drawn, position = waves(engine, position)
        return Sampled(kept, drawn, position, version, time.perf_counter() - start)

    return sample


def check_ahead(learner: Learner, rewards: RewardsConfig) -> None:
    """Refuse what cannot be sampled ahead, or would be wrong. Called once the models are built.

    Raises:
        ConfigError: no importance correction; rewards that need the policy under training; an architecture whose
            engine computes with the very weights that are trained.
    """
    if not learner.corrects:
        raise ConfigError("model.correction", None, "an importance correction, with data.ahead")
    for name in ("kl", "implicit"):
        if getattr(rewards, name) is not None:
            raise ConfigError(f"data.rewards.{name}", getattr(rewards, name), "None, with data.ahead")
    if not can_fuse(cast(nn.Module, learner.model.base_model)):
        raise ConfigError(
            "data.ahead", True, f"False for {type(learner.model).__name__}: its engine has no weights of its own"
        )
