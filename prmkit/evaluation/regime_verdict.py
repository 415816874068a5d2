"""Which reward to train with, from the figures of `regime`, and why. All thresholds are in `RegimeThresholds`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prmkit.errors import ConfigError

__all__ = ["CONSTANT_WEIGHT", "FADING_WEIGHT", "RegimeThresholds", "Verdict", "verdict"]

Regime = Literal["unreadable", "weak", "solved", "dense", "sparse", "absent"]
Reward = Literal["nothing", "outcome", "outcome_and_prm", "prm_or_curriculum"]

CONSTANT_WEIGHT = "0.5"
"""`model.process_weight` where outcomes are absent: the PRM decides until the end."""
FADING_WEIGHT = "{follow: unsolved, start: 0.8}"
"""`model.process_weight` where outcomes are sparse: the PRM decides until groups are solved."""


@dataclass(frozen=True)
class RegimeThresholds:
    """Where one reward ends to be the best and another begins. Shares are in [0, 1]; docs/regime.md has the evidence.

    Attributes:
        unusable: share of solutions that are cut off or have no answer from which a policy must learn to write first.
        weak: share of a solution's steps that are right before its first error below which it must learn to work.
        solved: share of right answers from which problems are too easy.
        dense: share of earned solutions from which outcomes alone are best.
        absent: share of earned solutions up to which outcomes reward luck.
        prm_good: AUROC of a PRM from which it may decide where outcomes are absent.
        prm_usable: AUROC below which a PRM is no reward.
        disagreement: share of steps on which PRMs take different sides of 0.5 from which none of them is trusted.
    """

    unusable: float = 0.5
    weak: float = 0.05
    solved: float = 0.95
    dense: float = 0.2
    absent: float = 0.03
    prm_good: float = 0.9
    prm_usable: float = 0.8
    disagreement: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"thresholds.{name}", value, "a number in [0, 1]")
        if not self.absent <= self.dense <= self.solved:
            raise ConfigError(
                "thresholds.dense", self.dense, f"a number in [absent {self.absent}, solved {self.solved}]"
            )
        if self.prm_usable > self.prm_good:
            accepted = f"a number up to thresholds.prm_good {self.prm_good}"
            raise ConfigError("thresholds.prm_usable", self.prm_usable, accepted)


@dataclass(frozen=True)
class Verdict:
    """What to train with.

    Attributes:
        regime: the case in one word.
        reward: what to reward.
        process_weight: value of `model.process_weight`, as YAML; None where no PRM is a reward.
        why: sentences, the most important one first.
    """

    regime: Regime
    reward: Reward
    process_weight: str | None
    why: tuple[str, ...]


def verdict(figures: Mapping[str, Any], thresholds: RegimeThresholds) -> Verdict:
    """The reward for a policy.

    Args:
        figures: of `regime_figures`.
        thresholds: where regimes end.
    """
    limits, right, before = thresholds, figures["pass_at_1"]["mean"], figures["right_before_error"]
    for what in ("truncated", "no_answer"):
        if figures[what] >= limits.unusable:
            words = {"truncated": "are cut off", "no_answer": "have no answer"}[what]
            why = f"{figures[what]:.0%} of the solutions {words} (limit {limits.unusable:.0%})"
            return Verdict("unreadable", "nothing", None, (why, "the policy must learn to write solutions first: SFT"))
    if before is not None and before < limits.weak:
        why = f"{before:.1%} of a solution's steps are right before the first error; {limits.weak:.0%} are needed"
        return Verdict("weak", "nothing", None, (why, "the policy is too weak for any reward: SFT, or easier problems"))
    if right >= limits.solved:
        why = f"{right:.1%} of the answers are right (limit {limits.solved:.0%}): there is nothing left to learn here"
        return Verdict("solved", "nothing", None, (why, "take harder problems"))
    earned = f"{figures['earned']:.1%} of the solutions are right{_meaning(figures)}"
    if figures["earned"] >= limits.dense:
        why = f"{earned}; from {limits.dense:.0%} on outcomes are dense"
        return Verdict("dense", "outcome", None, (why, "a PRM as a second reward costs more than it gives here"))
    return _by_prm(figures, limits, earned)


def _by_prm(figures: Mapping[str, Any], limits: RegimeThresholds, earned: str) -> Verdict:
    """The verdict where outcomes are slow, or say nothing."""
    absent = figures["earned"] <= limits.absent
    regime: Regime = "absent" if absent else "sparse"
    bound = (
        f"up to {limits.absent:.0%} outcomes reward luck" if absent else f"below {limits.dense:.0%} outcomes are sparse"
    )
    usable, words = _judged(figures, limits, absent)
    why = (f"{earned}; {bound}", _groups(figures), words)
    if usable and absent:
        mixed = "where there are problems between easy ones and these, a mix of all does as well without labels"
        return Verdict(regime, "outcome_and_prm", CONSTANT_WEIGHT, (*why, mixed))
    if usable:
        return Verdict(regime, "outcome_and_prm", FADING_WEIGHT, why)
    if absent:
        advice = "outcomes alone stay at chance: label easier problems for a PRM, or train on easier problems first"
        return Verdict(regime, "prm_or_curriculum", None, (*why, advice))
    advice = f"outcomes alone learn slowly; a PRM with AUROC {limits.prm_usable:g} or more needs about half the updates"
    return Verdict(regime, "outcome", None, (*why, advice))


def _groups(figures: Mapping[str, Any]) -> str:
    silent = figures["all_wrong"] + figures["all_right"]
    text = f"{silent:.0%} of the groups have no outcome signal ({figures['all_wrong']:.0%} all wrong)"
    if figures["lucky"] is None:
        return text
    return f"{text}, and {figures['lucky']:.0%} of the right answers are luck"


def _judged(figures: Mapping[str, Any], limits: RegimeThresholds, absent: bool) -> tuple[bool, str]:
    """Whether the PRMs may be a reward, and why."""
    prms, split = figures["prms"], figures["disagreement"]
    if not prms:
        return False, "no PRM was given"
    if split is not None and split >= limits.disagreement:
        return False, f"the PRMs take different sides on {split:.0%} of the steps (limit {limits.disagreement:.0%})"
    of = "on these steps, against truth"
    known = [figure["auroc"] for figure in prms.values() if figure["auroc"] is not None]
    if not known and not absent:  # where right answers are luck, they say nothing of a PRM
        of = "of lowest step scores against answers"
        known = [figure["outcome_auroc"] for figure in prms.values() if figure["outcome_auroc"] is not None]
    if not known:
        agreed = "" if split is None else f", which agree on {1 - split:.0%} of the steps"
        return True, f"nothing here tells how good the PRM is{agreed}: check it on easier problems, and mind the guards"
    found = min(known)
    words = f"the PRM's AUROC {of} is {found:.3f}"
    if found < limits.prm_usable:
        return False, f"{words}; below {limits.prm_usable:g} it is no reward: label problems closer to these"
    if absent and found < limits.prm_good:
        return (
            True,
            f"{words}; below {limits.prm_good:g} it teaches slowly where outcomes are absent: label longer problems",
        )
    return True, words


def _meaning(figures: Mapping[str, Any]) -> str:
    if figures["right_before_error"] is not None:
        return " and worked out"
    return "" if figures["chance"] is None else f" beyond chance ({figures['chance']:.1%})"
