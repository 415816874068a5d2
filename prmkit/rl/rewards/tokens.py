"""Rewards on every token, from log-probabilities that somebody else computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prmkit.errors import ConfigError, DataError
from prmkit.rl.rewards.records import Reward, RewardInput

__all__ = ["ImplicitConfig", "ImplicitReward", "KLConfig", "KLReward"]

KLForm = Literal["k1", "k2", "k3"]
_KL_FORMS: tuple[KLForm, ...] = get_args(KLForm)
_CLAMP = 20.0  # log-ratios beyond it say "never" already; exp of more overflows


@dataclass(frozen=True)
class ImplicitConfig:
    """Reward of an implicit PRM (PRIME, arXiv 2502.01456, equation 3).

    Attributes:
        weight: factor in the mixture; 0 only logs.
        beta: scale of the log-ratio, above 0.
        per: where it is earned: at every "token", or a "step"'s sum at the step's last token.
    """

    weight: float = 1.0
    beta: float = 0.05
    per: Literal["token", "step"] = "token"

    def __post_init__(self) -> None:
        if not self.beta > 0.0:
            raise ConfigError("rewards.implicit.beta", self.beta, "a number above 0")
        if self.per not in ("token", "step"):
            raise ConfigError("rewards.implicit.per", self.per, "token | step")


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """r_t = beta (log pi_phi(t) - log pi_ref(t)), phi the implicit PRM."""

    config: ImplicitConfig = ImplicitConfig()

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        return [self._reward(item) for item in batch]

    def _reward(self, item: RewardInput) -> Reward:
        model = _per_token(item, "prm_logprobs", item.prm_logprobs)
        reference = _per_token(item, "prm_reference_logprobs", item.prm_reference_logprobs)
        values = tuple(self.config.beta * (a - b) for a, b in zip(model, reference, strict=True))
        if self.config.per == "token":
            return Reward(tokens=values)
        sums: list[float] = []
        start = 0
        for step in item.trace.steps:
            sums.append(math.fsum(values[start : start + len(step.token_ids)]))
            start += len(step.token_ids)
        return Reward(steps=tuple(sums))


@dataclass(frozen=True)
class KLConfig:
    """Penalty for leaving the reference policy, in the reward (as in arXiv 2203.02155, equation 2).

    Attributes:
        weight: the coefficient beta, at least 0; 0 only logs.
        form: estimate from one token, d = log pi - log pi_ref under the policy that wrote it: "k1" is d, "k2" d^2 / 2,
            "k3" exp(-d) - 1 + d.
    """

    weight: float = 0.05
    form: KLForm = "k1"

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ConfigError("rewards.kl.weight", self.weight, "a number of at least 0; the part is negative itself")
        if self.form not in _KL_FORMS:
            raise ConfigError("rewards.kl.form", self.form, " | ".join(_KL_FORMS))


@dataclass(frozen=True, slots=True)
class KLReward:
    """r_t = -(estimate of KL(pi || pi_ref) at token t)."""

    config: KLConfig = KLConfig()

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        return [self._reward(item) for item in batch]

    def _reward(self, item: RewardInput) -> Reward:
        policy = _per_token(item, "logprobs of the trace's steps", item.logprobs)
        reference = _per_token(item, "reference_logprobs", item.reference_logprobs)
        return Reward(tokens=tuple(-self._estimate(a - b) for a, b in zip(policy, reference, strict=True)))

    def _estimate(self, difference: float) -> float:
        match self.config.form:
            case "k1":
                return difference
            case "k2":
                return difference * difference / 2.0
            case "k3":
                return math.exp(min(-difference, _CLAMP)) - 1.0 + difference


def _per_token(item: RewardInput, name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != item.trace.n_tokens:
        raise DataError(
            f"problem {item.problem.id}: {name}: {len(values)} values for {item.trace.n_tokens} tokens; "
            "compute them for every token of the trace before the rewards"
        )
    return values
