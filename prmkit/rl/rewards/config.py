"""The configuration of a mixture, and the one place that builds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from prmkit.errors import ConfigError
from prmkit.protocols import Grader, StepScorer
from prmkit.rl.rewards.mixture import RewardMixture, WeightedPart
from prmkit.rl.rewards.outcome import (
    FormatConfig,
    FormatReward,
    LengthConfig,
    LengthReward,
    OutcomeConfig,
    OutcomeReward,
)
from prmkit.rl.rewards.process import ProcessConfig, ProcessReward
from prmkit.rl.rewards.tokens import ImplicitConfig, ImplicitReward, KLConfig, KLReward

__all__ = ["RewardsConfig", "build_rewards"]


@dataclass(frozen=True)
class RewardsConfig:
    """The parts of a mixture; None leaves a part out. Every part's weight is in its own configuration.

    Attributes:
        outcome: is the answer right?
        process: a PRM's scores of the steps.
        implicit: log-ratio of an implicit PRM, for every token.
        kl: penalty for leaving the reference policy, for every token.
        length: penalty for overlong solutions.
        format: does the solution have the form asked for?
    """

    outcome: OutcomeConfig | None = field(default_factory=OutcomeConfig)
    process: ProcessConfig | None = None
    implicit: ImplicitConfig | None = None
    kl: KLConfig | None = None
    length: LengthConfig | None = None
    format: FormatConfig | None = None

    def __post_init__(self) -> None:
        parts = (self.outcome, self.process, self.implicit, self.kl, self.length, self.format)
        if all(part is None for part in parts):
            raise ConfigError("rewards", "no part", "at least one of outcome, process, implicit, kl, length, format")


def build_rewards(
    config: RewardsConfig, grader: Grader, scorer: StepScorer | None = None, separator: str = "\n"
) -> RewardMixture:
    """The mixture of a configuration, its parts named as the fields are.

    Args:
        config: see RewardsConfig.
        grader: for outcome and format.
        scorer: for process; None when traces bring their scores.
        separator: joins steps to the text that answers are extracted from.
    """
    parts: dict[str, WeightedPart] = {}
    if config.outcome is not None:
        parts["outcome"] = WeightedPart(OutcomeReward(grader, separator, config.outcome), config.outcome.weight)
    if config.process is not None:
        parts["process"] = WeightedPart(ProcessReward(scorer, config.process), config.process.weight)
    if config.implicit is not None:
        parts["implicit"] = WeightedPart(ImplicitReward(config.implicit), config.implicit.weight)
    if config.kl is not None:
        parts["kl"] = WeightedPart(KLReward(config.kl), config.kl.weight)
    if config.length is not None:
        parts["length"] = WeightedPart(LengthReward(config.length), config.length.weight)
    if config.format is not None:
        parts["format"] = WeightedPart(FormatReward(grader, separator, config.format), config.format.weight)
    return RewardMixture(parts)
