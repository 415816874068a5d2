"""The factor of process rewards over a fit: a number, a schedule, or a rule that follows the outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prmkit.errors import ConfigError
from prmkit.rewards.group_outcomes import GroupCounts

__all__ = ["FOLLOWS", "ChangingWeight", "Follow", "ProcessWeight"]

Follow = Literal["linear", "drop", "silent", "unsolved"]
FOLLOWS: tuple[Follow, ...] = get_args(Follow)
_SCHEDULES = ("linear", "drop")


@dataclass(frozen=True)
class ProcessWeight:
    """A factor that changes: end + (start - end) x, with x in [0, 1] taken at the first update of an iteration.

    Attributes:
        follow: what x is at optimiser step u, counted from 0:
            "linear": 1 - u / updates, from there on 0;
            "drop": 1 for u below `updates`, from there on 0;
            "silent": the share of groups without an outcome signal, whose solutions are all right or all wrong;
            "unsolved": the share of groups whose solutions are all wrong.
            Shares are over the groups of all processes, those that dynamic sampling drops included.
        start: weight at x = 1, at least 0.
        end: weight at x = 0, at least 0.
        updates: optimiser steps of "linear" and "drop", at least 1; None with the others.
        smoothing: share of the past in the smoothed x of "silent" and "unsolved", in [0, 1): x becomes
            smoothing x + (1 - smoothing) share; the first iteration's x is its share. 0 follows each iteration.
    """

    follow: Follow
    start: float = 1.0
    end: float = 0.0
    updates: int | None = None
    smoothing: float = 0.5

    def __post_init__(self) -> None:
        where = "model.process_weight"
        if self.follow not in FOLLOWS:
            raise ConfigError(f"{where}.follow", self.follow, " | ".join(FOLLOWS))
        for name in ("start", "end"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{where}.{name}", getattr(self, name), "a number of at least 0")
        if not 0.0 <= self.smoothing < 1.0:
            raise ConfigError(f"{where}.smoothing", self.smoothing, "a number in [0, 1)")
        if self.follows_outcomes and self.updates is not None:
            raise ConfigError(f"{where}.updates", self.updates, f"null with {where}.follow {self.follow}")
        if not self.follows_outcomes and (self.updates is None or self.updates < 1):
            accepted = f"an integer of at least 1 with {where}.follow {self.follow}"
            raise ConfigError(f"{where}.updates", self.updates, accepted)

    @property
    def follows_outcomes(self) -> bool:
        """True if the weight depends on what the policy solves."""
        return self.follow not in _SCHEDULES

    def at(self, x: float) -> float:
        """The weight at x."""
        return self.end + (self.start - self.end) * x


class ChangingWeight:
    """The weight of process rewards in a fit, as it is now. Its state belongs in checkpoints.

    Args:
        setting: the weight, or how it changes.

    Attributes:
        now: the weight of the present iteration.
        share: the smoothed share that "silent" and "unsolved" follow; None before the first iteration.

    Raises:
        ConfigError: a number below 0, or one that is not finite.
    """

    def __init__(self, setting: float | ProcessWeight) -> None:
        if not isinstance(setting, ProcessWeight) and not 0.0 <= setting < math.inf:
            raise ConfigError("model.process_weight", setting, "a number of at least 0, a schedule or a rule")
        self.setting = setting
        self.now = setting.start if isinstance(setting, ProcessWeight) else setting
        self.share: float | None = None

    @property
    def changes(self) -> bool:
        """True if it is no number."""
        return isinstance(self.setting, ProcessWeight)

    @property
    def follows_outcomes(self) -> bool:
        """See ProcessWeight."""
        return isinstance(self.setting, ProcessWeight) and self.setting.follows_outcomes

    def begin(self, update: int, groups: GroupCounts) -> None:
        """Take the weight of the iteration that begins.

        Args:
            update: optimiser steps so far.
            groups: of the iteration, over all processes. Without any that was judged a share stays as it was.
        """
        setting = self.setting
        if not isinstance(setting, ProcessWeight):
            return
        match setting.follow:
            case "linear":
                self.now = setting.at(max(0.0, 1.0 - update / (setting.updates or 1)))
            case "drop":
                self.now = setting.at(float(update < (setting.updates or 1)))
            case "silent":
                self._follow(setting, groups.all_wrong + groups.all_right, groups.judged)
            case "unsolved":
                self._follow(setting, groups.all_wrong, groups.judged)

    def _follow(self, setting: ProcessWeight, count: int, of: int) -> None:
        if of > 0:
            found, past = count / of, setting.smoothing
            self.share = found if self.share is None else past * self.share + (1.0 - past) * found
            self.now = setting.at(self.share)

    def state_dict(self) -> dict[str, Any]:
        return {"now": self.now, "share": self.share, "follow": getattr(self.setting, "follow", None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. A number in the config counts, whatever the state says, and a rule that follows
        another share begins with its own."""
        if isinstance(self.setting, ProcessWeight):
            self.now = state["now"]
            self.share = state["share"] if state["follow"] == self.setting.follow else None
