"""A scorer that looks scores up: for tests, documentation and dry runs. No model, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from prmkit.errors import ConfigError
from prmkit.records import StepScores

__all__ = ["TableScorer"]


class TableScorer:
    """Scores from a table.

    Args:
        table: maps a step's text to its score, or is called with (question, steps up to and including the one scored).
        default: score of steps that a mapping does not name; None refuses them.
        tokens_per_step: `encoded_tokens` reported for every step that was not seen before under the same steps.

    Raises:
        ConfigError: from `score`, for a step without a score, or a score outside [0, 1].
    """

    def __init__(
        self,
        table: Mapping[str, float] | Callable[[str, tuple[str, ...]], float],
        default: float | None = None,
        *,
        tokens_per_step: int = 1,
    ) -> None:
        self._table = table
        self._default = default
        self._tokens_per_step = tokens_per_step
        self._seen: set[tuple[str, tuple[str, ...]]] = set()

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step. Yields to the event loop once, as a real scorer does."""
        await asyncio.sleep(0)
        prefixes = [(question, tuple(steps[: end + 1])) for end in range(len(steps))]
        values = tuple(self._look_up(*prefix) for prefix in prefixes)
        new = sum(prefix not in self._seen for prefix in prefixes)
        self._seen.update(prefixes)
        return StepScores(values, encoded_tokens=new * self._tokens_per_step)

    def _look_up(self, question: str, steps: tuple[str, ...]) -> float:
        if callable(self._table):
            value: float | None = self._table(question, steps)
        else:
            value = self._table.get(steps[-1], self._default)
        if value is None:
            raise ConfigError("table", steps[-1], "a step that the table names", "Give a default for all others.")
        if not 0.0 <= value <= 1.0:
            raise ConfigError("table", value, "a score in [0, 1]")
        return float(value)
