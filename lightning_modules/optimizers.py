"""Optimiser and learning-rate schedule of all LightningModules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from prmkit.errors import ConfigError

__all__ = ["OptimizerConfig", "WarmupDecay", "build_optimizer", "lr_factor", "parameter_groups"]

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and decay.

    Attributes:
        lr: highest learning rate, positive.
        schedule: what follows the warm-up: "cosine" or "linear" decay to min_lr_ratio at the last optimiser step of
            the fit, or "constant".
        warmup_steps: optimiser steps of linear warm-up from 0; None takes warmup_ratio.
        warmup_ratio: warm-up as a share of all optimiser steps, in [0, 1).
        min_lr_ratio: learning rate at the end of the decay as a share of lr, in [0, 1].
        weight_decay: decoupled weight decay of matrices; biases and norms (tensors of one dimension) get none.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, positive.
        fused: update all parameters in one kernel: faster, above all for small models on CPUs, and not together with
            clipping under 16-mixed precision, which needs to unscale gradients in between.
    """

    lr: float = 1e-5
    schedule: Schedule = "cosine"
    warmup_steps: int | None = None
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError("optimizer.lr", self.lr, "a positive number")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ConfigError("optimizer.schedule", self.schedule, "cosine | linear | constant")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError("optimizer.warmup_steps", self.warmup_steps, "an integer of at least 0, or None")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ConfigError("optimizer.warmup_ratio", self.warmup_ratio, "a number in [0, 1)")
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise ConfigError("optimizer.min_lr_ratio", self.min_lr_ratio, "a number in [0, 1]")
        if self.weight_decay < 0:
            raise ConfigError("optimizer.weight_decay", self.weight_decay, "a number of at least 0")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError("optimizer.betas", self.betas, "two numbers in [0, 1)")
        if not self.eps > 0:
            raise ConfigError("optimizer.eps", self.eps, "a positive number")


def lr_factor(step: int, *, total: float, warmup: int, schedule: Schedule, floor: float) -> float:
    """Share of the highest learning rate at an optimiser step, in [0, 1].

    Args:
        step: optimiser steps done; 0 for the first.
        total: optimiser steps of the whole fit; only "constant" may have infinitely many.
        warmup: steps of linear warm-up; the first of them already moves, at 1 / warmup.
        schedule: see `OptimizerConfig`.
        floor: share at the end of the decay.

    >>> [lr_factor(s, total=6, warmup=2, schedule="linear", floor=0.0) for s in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, total - warmup))
    left = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return floor + (1.0 - floor) * left


class WarmupDecay(torch.optim.lr_scheduler.LambdaLR):
    """The schedule of an `OptimizerConfig`, stepped after every optimiser step: rate = lr x `lr_factor`.

    A checkpoint gives it the number of steps done and nothing else: rates and lengths are those of the config at hand.

    Args:
        optimizer: its groups hold the highest rates.
        config: warm-up, decay and floor.
        total: optimiser steps of the whole fit; infinite only for a constant rate after a fixed warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, total: float) -> None:
        self._config, self.total = config, total
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        config = self._config
        warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * self.total)
        return lr_factor(step, total=self.total, warmup=warmup, schedule=config.schedule, floor=config.min_lr_ratio)

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self.apply()

    def apply(self) -> None:
        """Give the optimiser the rates of the present step."""
        rates = [base * self._factor(self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def ends_at(self, total: float) -> None:
        """Let the fit have another number of optimiser steps from now on."""
        self.total = total
        self.apply()


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices with decay, vectors (biases, norms) without; frozen parameters left out."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimizerConfig,
    total_steps: float,
    others: Sequence[tuple[Iterable[nn.Parameter], float]] = (),
) -> dict[str, Any]:
    """What `configure_optimizers` returns: AdamW and its schedule, stepped after every optimiser step.

    Args:
        parameters: of the model; frozen ones are left out.
        config: the settings.
        total_steps: optimiser steps of the whole fit; infinite when the fit has no end of its own.
        others: further parameters, each with a highest learning rate of its own in place of config.lr.

    Raises:
        ConfigError: a decay or a warm-up ratio over a fit without an end.
    """
    endless = math.isinf(total_steps)
    if endless and (config.schedule != "constant" or config.warmup_steps is None):
        raise ConfigError(
            "trainer.max_steps",
            -1,
            "a positive number with data of unknown length",
            'Or set optimizer.schedule to "constant" and optimizer.warmup_steps.',
        )
    groups = parameter_groups(parameters, config.weight_decay)
    for more, lr in others:
        groups += [{**group, "lr": lr} for group in parameter_groups(more, config.weight_decay)]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=config.fused,
    )
    schedule = WarmupDecay(optimizer, config, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
