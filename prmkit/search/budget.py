"""The one accountant of what a problem costs: every call to the engine and the scorer of a search goes through it.

Work that is thrown away later is counted like any other. Limits on generated tokens, samples and engine calls are
kept exactly: requests go to the engine in waves, and a wave holds only what is paid for even if every sample becomes as
long as it may. What a wave did not use pays for the next one; when not one whole sample is paid for, a last one is cut
to what is left. The other limits stop the next wave, never the one under way, so the scoring of one round may pass
them.

A problem's waves depend on its own requests and replies only, never on which of them the engine answered first.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from prmkit.errors import ConfigError, DataError
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Completion, GenerationRequest, StepScores, Usage
from prmkit.seeding import derive_seed

__all__ = ["Budget", "BudgetLimits"]

R = TypeVar("R")


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
        limits = {field.name: getattr(self.limits, field.name) for field in fields(self.limits)}
        seconds = limits.pop("seconds")
        if any(limit is not None and getattr(self._spent, name) >= limit for name, limit in limits.items()):
            return True
        return seconds is not None and self._clock() - self._start >= seconds

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be generated; None without a limit."""
        limit = self.limits.generated_tokens
        return None if limit is None else max(0, limit - self._spent.generated_tokens)

    def samples_left(self, wanted: int) -> int:
        """How many of `wanted` samples may still be asked for; 0 when the budget is exhausted."""
        if self.exhausted:
            return 0
        limit = self.limits.samples
        return wanted if limit is None else min(wanted, limit - self._spent.samples)

    async def generate(self, engine: Engine, request: GenerationRequest) -> list[Completion]:
        """`generate_all` for a single request."""
        (completions,) = await self.generate_all(engine, [request])
        return completions

    async def generate_all(
        self, engine: Engine, requests: Sequence[GenerationRequest], keep: int = 0
    ) -> list[list[Completion]]:
        """Completions of requests that run together, counted, and as many as the limits pay for.

        Args:
            engine: writes them.
            requests: in order of precedence, when not all can be paid for.
            keep: tokens that are kept back for a sample to come, and with them that sample and its call; no sample is
                cut for them. 0 keeps nothing.

        Returns:
            At most `n` completions for every request; fewer only when the budget is exhausted, or what is left of it
            kept back. Samples of a later wave have a seed of their own, and the last one may be cut ("length") by the
            limit on tokens.

        Raises:
            DataError: the engine did not give what was asked for.
            Exception: the first error of the engine, after all requests of the wave have ended.
        """
        found: list[list[Completion]] = [[] for _ in requests]
        wave = 0
        while granted := self._grant(requests, [len(completions) for completions in found], wave, keep):
            replies = await _all(self._request(engine, request) for _, request in granted)
            for (number, _), completions in zip(granted, replies, strict=True):
                found[number] += completions
            wave += 1
        return found

    async def score(self, scorer: StepScorer, question: str, steps: Sequence[str]) -> StepScores:
        """`scorer.score`, counted. DataError when there is not one score in [0, 1] for every step."""
        scores = await scorer.score(question, steps)
        if len(scores.values) != len(steps) or not all(0.0 <= value <= 1.0 for value in scores.values):
            raise DataError(f"the scorer gave {scores.values} for {len(steps)} steps; expected one in [0, 1] for each")
        self._spent += Usage(scored_tokens=scores.encoded_tokens, scorer_calls=1)
        return scores

    async def score_all(self, scorer: StepScorer, question: str, traces: Sequence[Sequence[str]]) -> list[StepScores]:
        """`score` for every trace, together. Raises the first error after all calls have ended."""
        return await _all(self.score(scorer, question, steps) for steps in traces)

    def _grant(
        self, requests: Sequence[GenerationRequest], got: Sequence[int], wave: int, keep: int
    ) -> list[tuple[int, GenerationRequest]]:
        """The next wave: numbers of requests, and the part of each that is paid for in the worst case."""
        missing = [number for number, request in enumerate(requests) if got[number] < request.n]
        if not missing or self.exhausted:
            return []
        tokens = self._left("generated_tokens") - keep
        samples = self._left("samples") - (keep > 0)
        calls = self._left("engine_calls") - (keep > 0)
        granted: list[tuple[int, GenerationRequest]] = []
        for number in missing:
            request = _of_wave(requests[number], wave)
            longest = request.params.max_tokens
            n = int(min(request.n - got[number], samples, tokens // longest))
            if n > 0 and len(granted) < calls:
                granted.append((number, replace(request, n=n)))
                samples -= n
                tokens -= n * longest
        if granted or keep:
            return granted
        last = _of_wave(requests[missing[0]], wave)  # not one whole sample is paid for: what is left goes into one
        return [(missing[0], replace(last, n=1, params=replace(last.params, max_tokens=int(tokens))))]

    def _left(self, name: str) -> float:
        """What is left of a quantity; infinite without a limit."""
        limit = getattr(self.limits, name)
        return math.inf if limit is None else limit - getattr(self._spent, name)

    async def _request(self, engine: Engine, request: GenerationRequest) -> list[Completion]:
        completions = await engine.generate(request)
        if len(completions) != request.n:
            raise DataError(f"the engine was asked for {request.n} samples and gave {len(completions)}")
        self._spent += Usage(
            generated_tokens=sum(len(completion.token_ids) for completion in completions),
            engine_calls=1,
            samples=request.n,
        )
        return completions


def _of_wave(request: GenerationRequest, wave: int) -> GenerationRequest:
    """The request with the seed of a wave; the first wave keeps the request's own."""
    return request if wave == 0 else replace(request, seed=derive_seed(request.seed, "wave", wave))


async def _all(calls: Iterable[Awaitable[R]]) -> list[R]:
    """Results in order. An error is raised when all calls have ended, so that what they cost is counted."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    done: list[R] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
