"""Guards against reward hacking: warn when the rollouts drift, and on request go back to the last good weights."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from prmkit.errors import ConfigError

__all__ = ["GuardLimits", "RewardGuards"]

logger = logging.getLogger(__name__)

_SHARES = ("shorter", "lucky", "outcome_drop")
_BASED = ("step_length", "steps", "length", "score_gap", "lucky")  # figures with a baseline

_HOLD = "hold the policy: model.kl.weight 0.1 with model.kl.estimator k3_k2"
_COUNTED = ("rewards of steps are earned by fewer or more, not by better steps", f"{_HOLD}; model.advantage.gamma 0")
_ADVICE = {
    "step_length": _COUNTED,
    "steps": _COUNTED,
    "shorter": (
        "solutions are no longer worked out: luck, or a reward for something else, is cheaper than work",
        f"{_HOLD}; reward steps (data.rewards.process, data.prm); shorter problems first",
    ),
    "lucky": (
        "answers are rewarded whatever stands before them; nothing holds the policy, or problems are too hard for it",
        f"{_HOLD}, and a smaller learning rate; reward steps (data.rewards.process, data.prm); shorter problems first; "
        "`prm regime` measures which",
    ),
    "score_gap": (
        "the policy has found what the PRM takes for right",
        f"{_HOLD} (0.6 where the PRM is the only reward); train the PRM on these solutions; a smaller process_weight",
    ),
    "outcome_drop": (
        "training has gone past its best: too large a step, or a reward that is not the outcome",
        f"{_HOLD}; a smaller learning rate; rollback: true keeps the best weights",
    ),
    "kl": ("the policy is far from the reference", f"{_HOLD}; a smaller learning rate"),
}
"""Likely cause and remedy by guard."""


@dataclass(frozen=True)
class GuardLimits:
    """How far figures of the rollouts may drift from their baseline. None switches a guard off.

    Attributes:
        step_length: tokens a step: largest factor up or down, above 1.
        steps: steps a solution: largest factor up or down, above 1.
        shorter: tokens a solution: largest fall, as a share of the baseline, in (0, 1). A policy that is paid for
            lucky answers stops working them out.
        lucky: largest share of right answers that were not worked out (a step is wrong, or steps are missing), in
            (0, 1), where the task can check steps.
        score_gap: largest rise of (lowest step score by the PRM) - (right by the verifier), mean over the same
            solutions; above 0. Needs `data.rewards.outcome`, whose weight may be 0.
        outcome_drop: largest fall of the verifier's mean from its best so far, in (0, 1).
        kl: largest mean log-ratio to the reference by token, in nats, above 0; needs a reference.
    """

    step_length: float | None = 2.0
    steps: float | None = 2.0
    shorter: float | None = 0.25
    lucky: float | None = 0.5
    score_gap: float | None = 0.15
    outcome_drop: float | None = 0.15
    kl: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1.0 if field.name in ("step_length", "steps") else 0.0
            if value is not None and not value > least:
                raise ConfigError(f"reward_guards.limits.{field.name}", value, f"a number above {least:g}, or None")
            if value is not None and field.name in _SHARES and not value < 1.0:
                raise ConfigError(f"reward_guards.limits.{field.name}", value, "a number in (0, 1), or None")


class RewardGuards(Callback):
    """Looks at every iteration's rollouts before they are trained on.

    The baseline of a figure is its mean over the first iterations. A guard that is over its limit in `patience`
    iterations one after the other trips: it warns, naming the optimiser step, the figures, their likely cause and a
    remedy, and again after 2, 4, 8, ... times as many. With `rollback` the
    weights go back to those of the iteration that the verifier liked best among those whose guards were all quiet (the
    last of them, where there is no verifier), and the fit ends. Right answers that were lucky from the start are no
    drift: they are warned of, and nothing goes back.

    Logs `guard/tripped` (how many guards are over their limits now). State, good weights included, is part of the
    checkpoint.

    Args:
        limits: see GuardLimits.
        baseline: iterations that make the baseline, at least 1.
        patience: iterations over a limit before a guard trips, at least 1.
        rollback: go back and stop; False only warns.

    Attributes:
        warnings: (optimiser step, what was over its limit) of every warning, in order.
        good_step: optimiser step of the weights that a rollback goes back to.
    """

    def __init__(
        self,
        limits: GuardLimits = GuardLimits(),
        baseline: int = 3,
        patience: int = 2,
        rollback: bool = False,
    ) -> None:
        for name, value in (("baseline", baseline), ("patience", patience)):
            if value < 1:
                raise ConfigError(f"reward_guards.{name}", value, "an integer of at least 1")
        self.limits, self.baseline, self.patience, self.rollback = limits, baseline, patience, rollback
        self._first: dict[str, list[float]] = {}
        self._over: dict[str, int] = {}
        self._best_outcome = -math.inf
        self._kl = 0.0
        self._good: dict[str, Tensor] | None = None
        self.good_step = 0
        self._good_outcome = -math.inf
        self.warnings: list[tuple[int, str]] = []
        self._stopped = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch.report is None:
            return
        figures = self._figures(batch.report)
        over = self._look(figures)
        drift = set(over) - self._from_the_start()
        pl_module.log("guard/tripped", float(len(over)))
        outcome = figures.get("outcome", self._good_outcome)
        if not drift and outcome >= self._good_outcome:
            self._good_outcome = outcome
            self._remember(trainer, pl_module)
        tripped = [name for name in over if _is_due(self._over[name], self.patience)]
        if not tripped:
            return
        said = "; ".join(over[name] for name in tripped)
        self.warnings.append((trainer.global_step, said))
        advice = "".join(f"\n  {name}: {_ADVICE[name][0]}. Remedy: {_ADVICE[name][1]}." for name in tripped)
        logger.warning("reward guards at optimiser step %d: %s%s", trainer.global_step, said, advice)
        if self.rollback and self._good is not None and drift & set(tripped):
            logger.warning(
                "reward guards: going back to the weights of optimiser step %d, and stopping", self.good_step
            )
            self._stopped = trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "train/kl" in trainer.callback_metrics:
            self._kl = float(trainer.callback_metrics["train/kl"])
        if self._stopped:  # a callback cannot keep the batch at hand from being trained on: it is undone
            self._go_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": self._first,
            "over": self._over,
            "best_outcome": self._best_outcome,
            "kl": self._kl,
            "good": self._good,
            "good_step": self.good_step,
            "good_outcome": self._good_outcome,
            "warnings": self.warnings,
            "stopped": self._stopped,
            "limits": asdict(self.limits),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self._over = state_dict["first"], state_dict["over"]
        self._best_outcome, self._kl = state_dict["best_outcome"], state_dict["kl"]
        self._good, self.good_step = state_dict["good"], state_dict["good_step"]
        self._good_outcome = state_dict["good_outcome"]
        self._stopped, self.warnings = state_dict["stopped"], [tuple(entry) for entry in state_dict["warnings"]]

    def _figures(self, report: dict[str, float]) -> dict[str, float]:
        found = {name: report[f"rollout/{name}"] for name in (*_BASED, "outcome", "lucky")
                 if f"rollout/{name}" in report}  # fmt: skip
        return {**found, "kl": self._kl}

    def _look(self, figures: dict[str, float]) -> dict[str, str]:
        """What is over its limit, in words; none while the baseline is being made."""
        complete = True
        for name in _BASED:
            known = self._first.setdefault(name, [])
            if name in figures and len(known) < self.baseline:
                known.append(figures[name])
                complete &= name == "lucky"  # there may be no right answer for long
        outcome = figures.get("outcome")
        if outcome is not None:
            self._best_outcome = max(self._best_outcome, outcome)
        over = {} if not complete else self._over_limits(figures)
        self._over = {name: self._over.get(name, 0) + 1 for name in over}
        return over

    def _from_the_start(self) -> set[str]:
        """Guards over whose limit the baseline was already."""
        known, limit = self._first.get("lucky"), self.limits.lucky
        return {"lucky"} if known and limit is not None and _mean(known) > limit else set()

    def _over_limits(self, figures: dict[str, float]) -> dict[str, str]:
        limits, over = self.limits, self._over_baselines(figures)
        if limits.lucky is not None and figures.get("lucky", 0.0) > limits.lucky:
            over["lucky"] = f"{figures['lucky']:.0%} of the right answers were not worked out, limit {limits.lucky:.0%}"
        drop = self._best_outcome - figures.get("outcome", self._best_outcome)
        if limits.outcome_drop is not None and drop > limits.outcome_drop:
            over["outcome_drop"] = f"outcome {figures['outcome']:.3f}, best {self._best_outcome:.3f}"
        if limits.kl is not None and figures["kl"] > limits.kl:
            over["kl"] = f"kl {figures['kl']:.3f}, limit {limits.kl:.3f}"
        return over

    def _over_baselines(self, figures: dict[str, float]) -> dict[str, str]:
        over: dict[str, str] = {}
        usual = {name: _mean(known) for name, known in self._first.items() if known and name in figures}
        factors = {name: max(figures[name], 1e-9) / max(usual[name], 1e-9) for name in usual}

        def words(name: str) -> str:
            return f"{name} {figures[name]:.3g}, {factors[name]:.2f} times the baseline {usual[name]:.3g}"

        for name in ("step_length", "steps"):
            limit = getattr(self.limits, name)
            if limit is not None and name in usual and not 1 / limit <= factors[name] <= limit:
                over[name] = words(name)
        shorter, gap = self.limits.shorter, self.limits.score_gap
        if shorter is not None and "length" in usual and factors["length"] < 1.0 - shorter:
            over["shorter"] = words("length")
        if gap is not None and "score_gap" in usual and figures["score_gap"] - usual["score_gap"] > gap:
            over["score_gap"] = f"score_gap {figures['score_gap']:.3f}, baseline {usual['score_gap']:.3f}"
        return over

    def _remember(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep the weights that sampled this iteration."""
        self.good_step = trainer.global_step
        if self.rollback:
            self._good = {n: p.detach().cpu().clone() for n, p in module.named_parameters() if p.requires_grad}

    def _go_back(self, module: LightningModule) -> None:
        assert self._good is not None
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in self._good:
                    parameter.copy_(self._good[name])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _is_due(count: int, patience: int) -> bool:
    """True in iteration 1, 2, 4, 8, ... times `patience` of those over a limit one after the other."""
    times, rest = divmod(count, patience)
    return rest == 0 and times & (times - 1) == 0 and times > 0
