"""The weighted mixture of parts, every part's own values kept for the logs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prmkit.errors import ConfigError, DataError
from prmkit.rl.rewards.records import Reward, RewardInput, RewardPart

__all__ = ["BatchRewards", "RewardMixture", "RewardSum", "WeightedPart"]


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """A part of a mixture.

    Attributes:
        part: where the reward comes from.
        weight: factor, finite; 0 computes and logs the part without using it.
        nan_is_missing: a NaN means "no reward"; False refuses it.
    """

    part: RewardPart
    weight: float = 1.0
    nan_is_missing: bool = False


@dataclass(frozen=True, slots=True)
class RewardSum:
    """Sum over traces of a part's total reward, and how many traces it is over. Adds up over batches and ranks."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: RewardSum) -> RewardSum:
        return RewardSum(self.total + other.total, self.count + other.count)


@dataclass(frozen=True, slots=True)
class BatchRewards:
    """Rewards of a batch of B traces.

    Attributes:
        rewards: [B] weighted sum of the parts; None is "no reward": such a trace leaves the baseline and is not trained
            on.
        parts: by name, [B] rewards before weighting; None where the part had none.
        aborted: traces whose generation failed: they are not judged at all.
    """

    rewards: tuple[Reward | None, ...]
    parts: Mapping[str, tuple[Reward | None, ...]]
    aborted: int = 0

    @property
    def row_mask(self) -> tuple[bool, ...]:
        """[B] True where the trace has a reward."""
        return tuple(reward is not None for reward in self.rewards)

    @property
    def missing(self) -> dict[str, int]:
        """Traces that a part had no reward for, by name; aborted traces are counted in `aborted` alone."""
        return {name: sum(value is None for value in values) - self.aborted for name, values in self.parts.items()}

    @property
    def sums(self) -> dict[str, RewardSum]:
        """Every part's total reward before weighting, and "reward" for the mixture, over the traces that have one."""
        rows = {**self.parts, "reward": self.rewards}
        totals = {name: [value.total for value in values if value is not None] for name, values in rows.items()}
        return {name: RewardSum(math.fsum(values), len(values)) for name, values in totals.items()}


class RewardMixture:
    """Weighted sum of parts. Call it with a batch.

    Args:
        parts: by name, in the order of the logs; at least one. "reward" is taken by the mixture itself.

    Raises:
        ConfigError: no part, a weight that is not finite, or the name "reward".
    """

    def __init__(self, parts: Mapping[str, WeightedPart]) -> None:
        if not parts:
            raise ConfigError("rewards", {}, "at least one part")
        if "reward" in parts:
            raise ConfigError("rewards.reward", parts["reward"], "another name; `reward` is the mixture's own")
        for name, weighted in parts.items():
            if not math.isfinite(weighted.weight):
                raise ConfigError(f"rewards.{name}.weight", weighted.weight, "a finite number")
        self.parts = dict(parts)

    async def __call__(self, batch: Sequence[RewardInput]) -> BatchRewards:
        """Rewards of a batch. Parts are asked at the same time; traces that were aborted are not shown to them.

        A trace has no reward when it was aborted, or when a part with a weight other than 0 has none for it.

        Raises:
            DataError: a part gives NaN or infinity (unless NaN is declared missing), not one reward a trace, or rewards
                that do not fit the trace's steps or tokens.
        """
        judged = [item for item in batch if item.trace.finish != "abort"]
        answers = await asyncio.gather(*(weighted.part(judged) for weighted in self.parts.values()))
        parts: dict[str, tuple[Reward | None, ...]] = {}
        for (name, weighted), values in zip(self.parts.items(), answers, strict=True):
            if len(values) != len(judged):
                raise DataError(f"rewards.{name}: {len(values)} rewards for {len(judged)} traces")
            checked = iter(_checked(name, weighted, item, value) for item, value in zip(judged, values, strict=True))
            parts[name] = tuple(None if item.trace.finish == "abort" else next(checked) for item in batch)
        rewards = tuple(
            None if item.trace.finish == "abort" else self._mixed({name: parts[name][row] for name in parts})
            for row, item in enumerate(batch)
        )
        return BatchRewards(rewards, parts, len(batch) - len(judged))

    def _mixed(self, row: Mapping[str, Reward | None]) -> Reward | None:
        total = Reward()
        for name, weighted in self.parts.items():
            value = row[name]
            if weighted.weight == 0.0:
                continue
            if value is None:
                return None
            total = total + value.scaled(weighted.weight)
        return total


def _checked(name: str, weighted: WeightedPart, item: RewardInput, value: Reward | None) -> Reward | None:
    if value is None:
        return None
    for what, got, wanted in (
        ("step", len(value.steps), len(item.trace.steps)),
        ("token", len(value.tokens), item.trace.n_tokens),
    ):
        if got not in (0, wanted):
            raise DataError(
                f"rewards.{name}: {got} {what} rewards for a trace of problem {item.problem.id} with {wanted} {what}s"
            )
    numbers = (value.outcome, *value.steps, *value.tokens)
    if all(map(math.isfinite, numbers)):
        return value
    if weighted.nan_is_missing and not any(map(math.isinf, numbers)):
        return None
    bad = next(number for number in numbers if not math.isfinite(number))
    raise DataError(
        f"rewards.{name}: {bad} for a trace of problem {item.problem.id}. A reward is a finite number; a part that can "
        "fail returns None, or is declared with nan_is_missing"
    )
