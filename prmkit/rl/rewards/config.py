"""The configuration of a mixture, and the one place that builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from prmkit.errors import ConfigError, PluginError
from prmkit.plain_values import build_record
from prmkit.plugins import Catalogue
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
from prmkit.rl.rewards.records import RewardPart
from prmkit.rl.rewards.tokens import ImplicitConfig, ImplicitReward, KLConfig, KLReward

__all__ = [
    "REWARDS",
    "RewardContext",
    "RewardKind",
    "RewardsConfig",
    "WeightConfig",
    "build_rewards",
    "register_reward",
]

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a part of a reward may ask.

    Attributes:
        grader: extracts and compares answers.
        scorer: the PRM; None when traces bring their scores, or there is none.
        separator: joins steps to the text that answers are extracted from.
    """

    grader: Grader
    scorer: StepScorer | None = None
    separator: str = "\n"


@dataclass(frozen=True, slots=True)
class RewardKind:
    """A kind of reward.

    Attributes:
        config: class of its settings, `weight` among them.
        make: `(config, context) -> RewardPart`.
    """

    config: type
    make: Callable[[Any, RewardContext], RewardPart]


REWARDS: Catalogue[RewardKind] = Catalogue(
    "reward",
    {
        "outcome": RewardKind(OutcomeConfig, lambda config, at: OutcomeReward(at.grader, at.separator, config)),
        "process": RewardKind(ProcessConfig, lambda config, at: ProcessReward(at.scorer, config)),
        "implicit": RewardKind(ImplicitConfig, lambda config, _: ImplicitReward(config)),
        "kl": RewardKind(KLConfig, lambda config, _: KLReward(config)),
        "length": RewardKind(LengthConfig, lambda config, _: LengthReward(config)),
        "format": RewardKind(FormatConfig, lambda config, at: FormatReward(at.grader, at.separator, config)),
    },
)


@dataclass(frozen=True)
class WeightConfig:
    """Settings of a reward that has no others.

    Attributes:
        weight: factor in the mixture; 0 only logs.
    """

    weight: float = 1.0


def register_reward(name: str, config: type = WeightConfig) -> Callable[[Made], Made]:
    """Register a reward: `data.rewards.NAME: {weight: ..., ...}` of GRPO and PPO.

    Decorates a class or function `(config, context) -> RewardPart`; context is a RewardContext, and a RewardPart is
    called with a batch: `async (batch: Sequence[RewardInput]) -> list[Reward | None]`.

    Args:
        name: the reward's name, in configs and logs.
        config: dataclass of its settings, `weight` among them.

    Raises:
        PluginError: the name is taken, or `config` is no such dataclass.
    """

    def register(make: Made) -> Made:
        if not is_dataclass(config) or "weight" not in {field.name for field in fields(config)}:
            accepted = "a dataclass with a field weight"
            raise PluginError(f"reward {name!r}: config is {config!r}; accepted: {accepted}")
        REWARDS.add(name, RewardKind(config, make), make)
        return make

    return register


@dataclass(frozen=True)
class RewardsConfig:
    """The parts of a mixture; None leaves a part out. Every part's weight is in its own configuration.

    In a config, rewards registered from outside stand beside the others, under their names.

    Attributes:
        outcome: is the answer right?
        process: a PRM's scores of the steps.
        implicit: log-ratio of an implicit PRM, for every token.
        kl: penalty for leaving the reference policy, for every token.
        length: penalty for overlong solutions.
        format: does the solution have the form asked for?
        more: settings of rewards registered from outside, by name.
    """

    catalogue: ClassVar[Catalogue[RewardKind]] = REWARDS

    outcome: OutcomeConfig | None = field(default_factory=OutcomeConfig)
    process: ProcessConfig | None = None
    implicit: ImplicitConfig | None = None
    kl: KLConfig | None = None
    length: LengthConfig | None = None
    format: FormatConfig | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("rewards", "no part", "at least one of outcome, process, implicit, kl, length, format")

    @property
    def parts(self) -> dict[str, Any]:
        """The settings of all parts that there are, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "more"}
        return {name: config for name, config in {**found, **self.more}.items() if config is not None}

    @classmethod
    def of(cls, values: RewardsConfig | Mapping[str, Any]) -> RewardsConfig:
        """The same from settings by the parts' names, as in YAML: `{"process": {"form": "min"}, "mine": {}}`.

        Raises:
            ConfigError: an unknown reward or setting.
        """
        if isinstance(values, RewardsConfig):
            return values
        given: dict[str, Any] = {"more": dict(values.get("more") or {})}
        for key, settings in values.items():
            if key == "more":
                continue
            name = REWARDS.name_of(key, "rewards")
            config = build_record(REWARDS[name].config, settings, f"rewards.{key}")
            (given if name in cls.__dataclass_fields__ else given["more"])[name] = config
        return cls(**given)


def build_rewards(
    config: RewardsConfig, grader: Grader, scorer: StepScorer | None = None, separator: str = "\n"
) -> RewardMixture:
    """The mixture of a configuration, its parts under their names.

    Args:
        config: see RewardsConfig.
        grader: for outcome and format.
        scorer: for process; None when traces bring their scores.
        separator: joins steps to the text that answers are extracted from.

    Raises:
        ConfigError: an unknown reward, or settings of another one.
    """
    context = RewardContext(grader, scorer, separator)
    parts: dict[str, WeightedPart] = {}
    for name, settings in config.parts.items():
        kind = REWARDS.find(name, "rewards")
        if not isinstance(settings, kind.config):
            raise ConfigError(f"rewards.{name}", settings, kind.config.__name__)
        weight: float = getattr(settings, "weight")  # noqa: B009 - of a class from outside
        parts[REWARDS.name_of(name, "rewards")] = WeightedPart(kind.make(settings, context), weight)
    return RewardMixture(parts)
