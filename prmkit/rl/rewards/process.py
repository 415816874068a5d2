"""Process rewards from the scores of a PRM: one reward a step."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prmkit.errors import ConfigError, DataError
from prmkit.protocols import StepScorer
from prmkit.rl.rewards.records import Reward, RewardInput

__all__ = ["PROCESS_FORMS", "ProcessConfig", "ProcessForm", "ProcessReward", "step_rewards"]

ProcessForm = Literal["raw", "centred", "progress", "min", "last"]
PROCESS_FORMS: tuple[ProcessForm, ...] = get_args(ProcessForm)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessConfig:
    """Reward of the steps.

    Attributes:
        weight: factor in the mixture; 0 only logs. GRPO normalises the advantages of steps: where nothing else rewards
            steps, this factor is lost there, and `model.process_weight` is the one that counts.
        form: from scores p_1 .. p_S to rewards r_1 .. r_S:
            "raw": r_s = p_s;
            "centred": r_s = 2 p_s - 1 = p(+) - p(-);
            "progress": r_s = p_s - p_(s-1), the change along the trace (PAV, arXiv 2410.08146), p_0 = `start`;
            "min": r_s = softmax(-c / temperature)_s c_s with c = 2 p - 1, whose sum is close to the smallest c
            (PURE, arXiv 2504.15275);
            "last": r_S = p_S, all others 0.
        temperature: of "min", above 0; smaller is closer to the minimum.
        start: p_0 of "progress", in [0, 1]: the score before the first step.
    """

    weight: float = 1.0
    form: ProcessForm = "raw"
    temperature: float = 0.1
    start: float = 0.5

    def __post_init__(self) -> None:
        if self.form not in PROCESS_FORMS:
            raise ConfigError("rewards.process.form", self.form, " | ".join(PROCESS_FORMS))
        if not self.temperature > 0.0:
            raise ConfigError("rewards.process.temperature", self.temperature, "a number above 0")
        if not 0.0 <= self.start <= 1.0:
            raise ConfigError("rewards.process.start", self.start, "a number in [0, 1]")


def step_rewards(scores: Sequence[float], config: ProcessConfig) -> tuple[float, ...]:
    """Rewards of the steps of one trace, [S], from its scores, [S] in [0, 1]. See ProcessConfig."""
    if not scores:
        return ()
    centred = [2.0 * score - 1.0 for score in scores]
    match config.form:
        case "raw":
            return tuple(scores)
        case "centred":
            return tuple(centred)
        case "progress":
            before = (config.start, *scores[:-1])
            return tuple(score - previous for score, previous in zip(scores, before, strict=True))
        case "last":
            return (*(0.0,) * (len(scores) - 1), scores[-1])
        case "min":
            low = min(centred)
            shares = [math.exp((low - value) / config.temperature) for value in centred]
            return tuple(share / sum(shares) * value for share, value in zip(shares, centred, strict=True))


@dataclass(frozen=True, slots=True)
class ProcessReward:
    """Rewards of steps from a PRM's scores. A solution that was cut off is scored as far as it goes.

    A trace without steps is rewarded as if its only step had score 0, on its last token: writing nothing must not be
    the way around a PRM. A scorer that fails for a trace with an OSError (a server out of reach, a time-out) gives no
    reward for it; other errors go up.

    Attributes:
        scorer: asked for traces that bring no scores, once for each distinct (question, steps); None asks nobody.
        config: see ProcessConfig.
    """

    scorer: StepScorer | None = None
    config: ProcessConfig = ProcessConfig()

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        """See RewardPart.

        Raises:
            DataError: a trace without scores and no scorer; scores that do not fit the steps.
        """
        needed = dict.fromkeys(self._key(item) for item in batch if item.trace.scores is None and item.trace.steps)
        answers = await asyncio.gather(*(self._score(*key) for key in needed))
        known = dict(zip(needed, answers, strict=True))
        return [self._reward(item, known) for item in batch]

    def _reward(
        self, item: RewardInput, known: dict[tuple[str, tuple[str, ...]], tuple[float, ...] | None]
    ) -> Reward | None:
        if not item.trace.steps:
            return Reward(outcome=sum(step_rewards((0.0,), self.config)))
        own = item.trace.scores
        scores = known[self._key(item)] if own is None else own.values
        if scores is None:
            return None
        if len(scores) != len(item.trace.steps):
            raise DataError(
                f"problem {item.problem.id}: {len(scores)} scores for {len(item.trace.steps)} steps; "
                "a PRM's score is wanted for every step"
            )
        return Reward(steps=step_rewards(scores, self.config))

    async def _score(self, question: str, steps: tuple[str, ...]) -> tuple[float, ...] | None:
        if self.scorer is None:
            raise DataError("rewards.process: a trace has no scores and there is no scorer; hand one in")
        try:
            return (await self.scorer.score(question, steps)).values
        except OSError as error:
            logger.warning("no process reward for a trace of %d steps: %s: %s", len(steps), type(error).__name__, error)
            return None

    @staticmethod
    def _key(item: RewardInput) -> tuple[str, tuple[str, ...]]:
        return item.problem.question, item.step_texts
