"""The one accountant of what a problem costs: every call to the engine and the scorer of a search goes through it.

Work that is thrown away later is counted like any other. A limit stops the next call, never the one under way, so a
limit on tokens is passed by one call at most; the limit on samples is kept exactly by asking `samples_left` first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from prmkit.errors import ConfigError, DataError
from prmkit.types import Completion, Engine, GenerationRequest, StepScorer, StepScores, Usage

__all__ = ["Budget", "BudgetLimits"]


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """What may be spent on one problem; None leaves a quantity unlimited. Units as in `Usage`.

    Attributes:
        generated_tokens: tokens sampled by the policy.
        scored_tokens: tokens encoded by the PRM.
        engine_calls: requests made to the engine.
        scorer_calls: requests made to the scorer.
        samples: completions asked of the engine.
        seconds: wall-clock time since the budget was made; the one limit that is not reproducible.
    """

    generated_tokens: int | None = None
    scored_tokens: int | None = None
    engine_calls: int | None = None
    scorer_calls: int | None = None
    samples: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and value < 0:
                raise ConfigError(f"budget.{limit.name}", value, "a number of at least 0, or null for no limit")


class Budget:
    """Spends on behalf of one problem and knows what is left.

    Args:
        limits: what may be spent.
        clock: seconds from any origin; replaced in tests.
    """

    def __init__(self, limits: BudgetLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or BudgetLimits()
        self._clock = clock
        self._start = clock()
        self._spent = Usage()

    @property
    def spent(self) -> Usage:
        """All that was spent so far; `seconds` runs since the budget was made."""
        return self._spent + Usage(seconds=self._clock() - self._start)

    @property
    def exhausted(self) -> bool:
        """True when any limit is reached: then no further call should be made."""
        spent = self.spent
        return any(
            limit is not None and getattr(spent, name) >= limit
            for name, limit in ((field.name, getattr(self.limits, field.name)) for field in fields(self.limits))
        )

    def samples_left(self, wanted: int) -> int:
        """How many of `wanted` samples may still be asked for; 0 when the budget is exhausted."""
        if self.exhausted:
            return 0
        limit = self.limits.samples
        return wanted if limit is None else min(wanted, limit - self._spent.samples)

    async def generate(self, engine: Engine, request: GenerationRequest) -> list[Completion]:
        """`engine.generate`, counted. DataError when the engine did not give what was asked for."""
        completions = await engine.generate(request)
        if len(completions) != request.n:
            raise DataError(f"the engine was asked for {request.n} samples and gave {len(completions)}")
        self._spent += Usage(
            generated_tokens=sum(len(completion.token_ids) for completion in completions),
            engine_calls=1,
            samples=request.n,
        )
        return completions

    async def score(self, scorer: StepScorer, question: str, steps: Sequence[str]) -> StepScores:
        """`scorer.score`, counted. DataError when there is not one score in [0, 1] for every step."""
        scores = await scorer.score(question, steps)
        if len(scores.values) != len(steps) or not all(0.0 <= value <= 1.0 for value in scores.values):
            raise DataError(f"the scorer gave {scores.values} for {len(steps)} steps; expected one in [0, 1] for each")
        self._spent += Usage(scored_tokens=scores.encoded_tokens, scorer_calls=1)
        return scores
