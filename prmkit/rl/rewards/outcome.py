"""Rewards for a whole solution: is the answer right, is it short enough, does it have the form asked for?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prmkit.errors import ConfigError
from prmkit.protocols import Grader
from prmkit.rl.rewards.records import Reward, RewardInput

__all__ = ["FormatConfig", "FormatReward", "LengthConfig", "LengthReward", "OutcomeConfig", "OutcomeReward"]

Truncated = Literal["wrong", "missing", "grade"]
_TRUNCATED = ("wrong", "missing", "grade")


@dataclass(frozen=True)
class OutcomeConfig:
    """Reward of the final answer.

    Attributes:
        weight: factor in the mixture; 0 only logs.
        right, wrong: reward of a right and of a wrong answer; right > wrong.
        truncated: a solution cut off by a limit is "wrong", has no reward ("missing": DAPO's overlong filtering, arXiv
            2503.14476, section 3.4), or its answer is graded like any other ("grade").
    """

    weight: float = 1.0
    right: float = 1.0
    wrong: float = 0.0
    truncated: Truncated = "wrong"

    def __post_init__(self) -> None:
        if not self.right > self.wrong:
            raise ConfigError("rewards.outcome.right", self.right, f"a number above rewards.outcome.wrong {self.wrong}")
        if self.truncated not in _TRUNCATED:
            raise ConfigError("rewards.outcome.truncated", self.truncated, " | ".join(_TRUNCATED))


@dataclass(frozen=True, slots=True)
class OutcomeReward:
    """`right` for an answer equivalent to the gold one, else `wrong`; None when the grader ran out of time.

    Attributes:
        grader: extracts and compares answers; asked once a batch, for each distinct pair of answer and gold answer.
        separator: joins steps to the text that answers are extracted from; traces with an answer keep theirs.
        config: see OutcomeConfig.
    """

    grader: Grader
    separator: str = "\n"
    config: OutcomeConfig = OutcomeConfig()

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        asked = [self._pair(item) if self._graded(item) else None for item in batch]
        distinct = [pair for pair in dict.fromkeys(asked) if pair is not None]
        grades = dict(zip(distinct, self.grader.grade(distinct), strict=True))
        rewards: list[Reward | None] = []
        for pair in asked:
            if pair is None:
                rewards.append(None if self.config.truncated == "missing" else Reward(self.config.wrong))
            elif grades[pair].timed_out:
                rewards.append(None)
            else:
                rewards.append(Reward(self.config.right if grades[pair].correct else self.config.wrong))
        return rewards

    def _graded(self, item: RewardInput) -> bool:
        return item.trace.finish == "stop" or self.config.truncated == "grade"

    def _pair(self, item: RewardInput) -> tuple[str | None, str]:
        answer = item.trace.answer
        if answer is None:
            answer = self.grader.extract(self.separator.join(item.step_texts))
        return answer, item.problem.answer


@dataclass(frozen=True)
class LengthConfig:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).

    Attributes:
        max_tokens: length L_max from which the whole punishment is due; at least 2.
        buffer: width L_cache, in tokens, of the interval below it over which the punishment grows; 1 .. max_tokens - 1.
        weight: factor in the mixture; 0 only logs.
    """

    max_tokens: int
    buffer: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError("rewards.length.max_tokens", self.max_tokens, "an integer of at least 2")
        if not 1 <= self.buffer < self.max_tokens:
            raise ConfigError("rewards.length.buffer", self.buffer, f"an integer in 1 .. {self.max_tokens - 1}")


@dataclass(frozen=True, slots=True)
class LengthReward:
    """0 up to max_tokens - buffer tokens, from there linearly down to -1 at max_tokens, -1 beyond."""

    config: LengthConfig

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        soft = self.config.max_tokens - self.config.buffer
        return [Reward(-min(max((item.trace.n_tokens - soft) / self.config.buffer, 0.0), 1.0)) for item in batch]


@dataclass(frozen=True)
class FormatConfig:
    """Reward of the form alone.

    Attributes:
        weight: factor in the mixture; 0 only logs.
        answer: an answer must be found in the text.
        step_pattern: regular expression that every step must match as a whole; None asks nothing of steps.
    """

    weight: float = 1.0
    answer: bool = True
    step_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.step_pattern is not None:
            try:
                re.compile(self.step_pattern)
            except re.error as error:
                raise ConfigError(
                    "rewards.format.step_pattern", self.step_pattern, f"a regular expression ({error})"
                ) from None


@dataclass(frozen=True, slots=True)
class FormatReward:
    """1 for a solution that ended by itself, has steps, and has the form asked for; else 0.

    Attributes:
        grader: finds answers.
        separator: joins steps to the text that answers are extracted from.
        config: see FormatConfig.
    """

    grader: Grader
    separator: str = "\n"
    config: FormatConfig = FormatConfig()

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        return [Reward(float(self._fits(item))) for item in batch]

    def _fits(self, item: RewardInput) -> bool:
        steps = item.step_texts
        if item.trace.finish != "stop" or not steps:
            return False
        pattern = self.config.step_pattern
        if pattern is not None and not all(re.fullmatch(pattern, step, re.DOTALL) for step in steps):
            return False
        if not self.config.answer or item.trace.answer is not None:
            return True
        return self.grader.extract(self.separator.join(steps)) is not None
