"""A scorer made of several: pessimistic where they disagree. No model, no torch.

A search keeps what scores high, so that among many candidates it ends with those whose score is too high by mistake.
PRMs that were trained apart seldom make the same mistake: what all of them call right is right more often (worst-case
and uncertainty-weighted optimisation of Coste et al., arXiv 2310.02743, of step scores in place of rewards).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from prmkit.errors import ConfigError, DataError
from prmkit.protocols import StepScorer
from prmkit.records import StepScores

__all__ = ["PESSIMISMS", "EnsembleScorer", "Pessimism", "pessimistic"]

Pessimism = Literal["mean", "mean-std", "min"]
PESSIMISMS: tuple[Pessimism, ...] = get_args(Pessimism)


def pessimistic(scores: Sequence[float], how: Pessimism) -> float:
    """One score of a step from those of several PRMs, in [0, 1].

    Args:
        scores: one a PRM, in [0, 1]; at least one.
        how: "mean"; "mean-std", the mean less one standard deviation (of the scores as they are, not of a population
            behind them), at least 0; "min".

    Raises:
        ConfigError: another `how`.
    """
    match how:
        case "min":
            return min(scores)
        case "mean" | "mean-std":
            mean = min(max(math.fsum(scores) / len(scores), min(scores)), max(scores))  # rounding stays inside
            if how == "mean":
                return mean
            spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
            return max(0.0, mean - spread)
        case _:
            raise ConfigError("pessimism", how, " | ".join(PESSIMISMS))


class EnsembleScorer:
    """Several scorers as one; implements `prmkit.protocols.StepScorer`.

    Args:
        members: the scorers; at least one. They may be of any kind and of different step formats.
        pessimism: see `pessimistic`.

    Attributes:
        members, pessimism: as given.

    Raises:
        ConfigError: no members, or an unknown way.
    """

    def __init__(self, members: Sequence[StepScorer], pessimism: Pessimism = "min") -> None:
        if not members:
            raise ConfigError("ensemble.members", [], "at least one scorer")
        if pessimism not in PESSIMISMS:
            raise ConfigError("pessimism", pessimism, " | ".join(PESSIMISMS))
        self.members = tuple(members)
        self.pessimism: Pessimism = pessimism

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step; `encoded_tokens` are those of all members.

        Raises:
            DataError: members gave different numbers of scores.
            Exception: the first error of a member, after all have answered.
        """
        calls = (member.score(question, steps) for member in self.members)
        replies = await asyncio.gather(*calls, return_exceptions=True)
        scores: list[StepScores] = []
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
            scores.append(reply)
        counts = [len(each.values) for each in scores]
        if len(set(counts)) > 1:
            raise DataError(f"the members of an ensemble gave {counts} scores for {len(steps)} steps")
        values = zip(*(each.values for each in scores), strict=True)
        return StepScores(
            tuple(pessimistic(step, self.pessimism) for step in values),
            encoded_tokens=sum(each.encoded_tokens for each in scores),
        )

    def wrapped(self, wrap: Callable[[StepScorer], StepScorer]) -> EnsembleScorer:
        """The same ensemble, of wrapped members."""
        return EnsembleScorer([wrap(member) for member in self.members], self.pessimism)
