"""What passes through the rewards: the trace to be judged, the reward of one trace, and the protocol of a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prmkit.errors import DataError
from prmkit.records import Problem, Trace

__all__ = ["Reward", "RewardInput", "RewardPart", "step_ends", "token_rewards"]


@dataclass(frozen=True, slots=True)
class RewardInput:
    """A trace to be judged, with what some parts need to know about it.

    Attributes:
        problem: what was solved.
        trace: the solution; its steps carry token ids, and log-probabilities under the policy that wrote them.
        reference_logprobs: [T] log-probability of each token of the trace under the reference policy; () when unknown.
        prm_logprobs: [T] under the implicit PRM; () when unknown.
        prm_reference_logprobs: [T] under the implicit PRM's own reference; () when unknown.
    """

    problem: Problem
    trace: Trace
    reference_logprobs: tuple[float, ...] = ()
    prm_logprobs: tuple[float, ...] = ()
    prm_reference_logprobs: tuple[float, ...] = ()

    @property
    def logprobs(self) -> tuple[float, ...]:
        """[T] log-probability of each token under the policy that wrote it."""
        return tuple(value for step in self.trace.steps for value in step.logprobs)

    @property
    def step_texts(self) -> tuple[str, ...]:
        return tuple(step.text for step in self.trace.steps)


@dataclass(frozen=True, slots=True)
class Reward:
    """Reward of one trace, where it is earned.

    Attributes:
        outcome: for the trace as a whole, earned at its last token.
        steps: [S] for every step, earned at its last token; () is 0 everywhere.
        tokens: [T] for every token; () is 0 everywhere.
    """

    outcome: float = 0.0
    steps: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """Everything added up: what an outcome-level method maximises."""
        return self.outcome + sum(self.steps) + sum(self.tokens)

    def scaled(self, weight: float) -> Reward:
        """Every entry times a weight."""
        return Reward(
            self.outcome * weight,
            tuple(value * weight for value in self.steps),
            tuple(value * weight for value in self.tokens),
        )

    def __add__(self, other: Reward) -> Reward:
        return Reward(self.outcome + other.outcome, _added(self.steps, other.steps), _added(self.tokens, other.tokens))


class RewardPart(Protocol):
    """One source of reward. Sees a whole batch, so that it may batch what it asks of others."""

    async def __call__(self, batch: Sequence[RewardInput]) -> list[Reward | None]:
        """A reward for every trace, in order; None is "no reward" (a grader or scorer failed), which is not 0."""
        ...


def step_ends(trace: Trace) -> tuple[int, ...]:
    """Index, among the trace's tokens, of the last token of each step, [S].

    Raises:
        DataError: a step without token ids.
    """
    ends: list[int] = []
    end = -1
    for number, step in enumerate(trace.steps, start=1):
        if not step.token_ids:
            raise DataError(f"problem {trace.problem_id}, step {number}: no token ids; rewards fall on tokens")
        end += len(step.token_ids)
        ends.append(end)
    return tuple(ends)


def token_rewards(reward: Reward, trace: Trace) -> tuple[float, ...]:
    """Reward at every token of the trace, [T]: token rewards where they are, a step's at its last token, the outcome at
    the last token of all. Their sum is `reward.total`. A trace without tokens has nowhere to put it and gives ().

    Raises:
        DataError: steps or tokens of reward and trace differ in number, or a step has no token ids.
    """
    ends = step_ends(trace)
    placed = list(reward.tokens) if reward.tokens else [0.0] * trace.n_tokens
    _check_length(trace, "tokens", len(placed), trace.n_tokens)
    if reward.steps:
        _check_length(trace, "steps", len(reward.steps), len(ends))
        for end, value in zip(ends, reward.steps, strict=True):
            placed[end] += value
    if placed:
        placed[-1] += reward.outcome
    return tuple(placed)


def _check_length(trace: Trace, what: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise DataError(f"problem {trace.problem_id}: rewards for {got} {what}; the trace has {wanted}")


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))
