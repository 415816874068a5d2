"""The reasoning MDP: one definition of state, action, transition, end and reward, for rollouts, search and environment.

A state is a problem and the steps written so far. An action is one `Step`. The transition is deterministic: the step is
appended. A solution ends by itself (end of sequence, or a step that states the answer) or is cut off (too many steps or
tokens, an aborted generation). Policies, scorers and graders are no part of it; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from prmkit.errors import ConfigError, DataError
from prmkit.protocols import Grader
from prmkit.records import FinishReason, Problem, Step, Trace

__all__ = ["EndReason", "Episode", "ReasoningMDP", "RewardHook", "State", "Transition", "outcome_reward"]

EndReason = Literal["stop", "answer", "max_steps", "max_tokens", "abort"]
_FINISH: dict[EndReason, FinishReason] = {
    "stop": "stop",
    "answer": "stop",
    "max_steps": "length",
    "max_tokens": "length",
    "abort": "abort",
}
_END: dict[FinishReason, EndReason] = {"stop": "stop", "length": "max_tokens", "abort": "abort"}


@dataclass(frozen=True, slots=True)
class State:
    """A problem and the steps so far.

    Attributes:
        problem: what is to be solved.
        steps: written so far, in order; the first state has none.
        end: why the solution is over; None while it goes on. "stop": end of sequence; "answer": the last step states
            the answer; "max_steps", "max_tokens": a limit cut it; "abort": generation failed.
    """

    problem: Problem
    steps: tuple[Step, ...] = ()
    end: EndReason | None = None

    @property
    def finished(self) -> bool:
        """No action can be taken."""
        return self.end is not None

    @property
    def terminated(self) -> bool:
        """The policy ended the solution itself: its value from here on is 0."""
        return self.end in ("stop", "answer")

    @property
    def truncated(self) -> bool:
        """Something else cut the solution off: its value from here on is unknown, and may be bootstrapped."""
        return self.finished and not self.terminated

    @property
    def n_tokens(self) -> int:
        """Tokens written so far; steps that came as text only count nothing."""
        return sum(len(step.token_ids) for step in self.steps)

    def trace(self, weight_version: int = 0) -> Trace:
        """The finished solution as a trace, answer and scores left out.

        Raises:
            DataError: the solution still goes on.
        """
        if self.end is None:
            raise DataError(f"problem {self.problem.id}: the solution still goes on; only a finished one is a trace")
        return Trace(self.problem.id, self.steps, _FINISH[self.end], weight_version=weight_version)


RewardHook = Callable[[State, Step, State], float | None]
"""Reward of (state, action, next state); None is "no reward", which is not 0: a grader failed, say. Deterministic."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One move.

    Attributes:
        state, action, next_state: before, what was done, after.
        reward: from the hook; None is "no reward".
    """

    state: State
    action: Step
    next_state: State
    reward: float | None


@dataclass(frozen=True, slots=True)
class Episode:
    """A solution as moves.

    Attributes:
        transitions: in order; none for a completion without steps, which then has no reward either.
        final: the state it ended in.
    """

    transitions: tuple[Transition, ...]
    final: State


@dataclass(frozen=True, slots=True)
class ReasoningMDP:
    """The rules. Several ends at once are named in the order stop, answer, max_tokens, max_steps.

    Attributes:
        max_steps: steps after which a solution is cut off, at least 1; None sets no limit.
        max_tokens: tokens at which a solution is cut off, at least 1; the step that reaches it is kept whole. None
            sets no limit. With a limit every step must carry token ids.
        end_ids: a step whose last token is one of these ends the solution; none where steps come as text only.
        is_answer: does this step's text state the final answer? None: no step ends a solution by its text.
        reward: reward of a move; None gives 0 everywhere.
    """

    max_steps: int | None = None
    max_tokens: int | None = None
    end_ids: Collection[int] = ()
    is_answer: Callable[[str], bool] | None = None
    reward: RewardHook | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"mdp.{name}", value, "an integer of at least 1, or None for no limit")

    def initial(self, problem: Problem) -> State:
        """The state before the first step."""
        return State(problem)

    def step(self, state: State, action: Step) -> Transition:
        """What follows from an action.

        A blank action with the end-of-sequence id, or without any ids, ends the solution: its ids join the last step,
        as in `BoundStepFormat.split_ids`.

        Raises:
            DataError: the state is finished; a blank step that ends nothing; a step without ids under `max_tokens`.
        """
        return self._move(state, action, None)

    def replay(self, problem: Problem, steps: Iterable[Step], finish: FinishReason) -> Episode:
        """A whole completion as moves.

        Steps behind the end (behind one that states the answer, say) are no actions of this MDP and are left out.

        Args:
            problem: what was solved.
            steps: of the completion, as `BoundStepFormat.split_ids` gives them.
            finish: how its generation ended; decides the end where none of the rules does.
        """
        state = self.initial(problem)
        transitions: list[Transition] = []
        actions = tuple(steps)
        for number, action in enumerate(actions, start=1):
            move = self._move(state, action, _END[finish] if number == len(actions) else None)
            transitions.append(move)
            state = move.next_state
            if state.finished:
                break
        return Episode(tuple(transitions), state if state.finished else replace(state, end=_END[finish]))

    def _move(self, state: State, action: Step, otherwise: EndReason | None) -> Transition:
        where = f"problem {state.problem.id}, step {len(state.steps) + 1}"
        if state.end is not None:
            raise DataError(f"{where}: the solution is over ({state.end}); start again from `initial`")
        at_eos = bool(action.token_ids) and action.token_ids[-1] in self.end_ids
        if action.text.strip():
            if self.max_tokens is not None and not action.token_ids:
                raise DataError(f"{where}: the step has no token ids, which mdp.max_tokens counts; encode it first")
            steps = (*state.steps, action)
        elif at_eos or not action.token_ids:
            at_eos, steps = True, _join_tail(state.steps, action)
        else:
            raise DataError(f"{where}: a blank step that ends nothing; join it to the next, as split_ids does")
        after = State(state.problem, steps)
        after = replace(after, end="stop" if at_eos else self._end(after) or otherwise)
        reward = 0.0 if self.reward is None else self.reward(state, action, after)
        return Transition(state, action, after, reward)

    def _end(self, state: State) -> EndReason | None:
        if self.is_answer is not None and self.is_answer(state.steps[-1].text):
            return "answer"
        if self.max_tokens is not None and state.n_tokens >= self.max_tokens:
            return "max_tokens"
        if self.max_steps is not None and len(state.steps) >= self.max_steps:
            return "max_steps"
        return None


def _join_tail(steps: tuple[Step, ...], tail: Step) -> tuple[Step, ...]:
    if not steps:
        return ()
    last = steps[-1]
    joined = replace(last, token_ids=last.token_ids + tail.token_ids, logprobs=last.logprobs + tail.logprobs)
    return (*steps[:-1], joined)


def outcome_reward(grader: Grader, separator: str = "\n") -> RewardHook:
    """A hook that grades the answer at the end: 1 right, 0 wrong or cut off, None when the grader ran out of time.

    Moves before the end get 0.

    Args:
        grader: extracts and compares answers.
        separator: joins steps to the text that answers are extracted from.
    """

    def reward(_: State, __: Step, after: State) -> float | None:
        if not after.terminated:
            return 0.0
        answer = grader.extract(separator.join(step.text for step in after.steps))
        (grade,) = grader.grade([(answer, after.problem.answer)])
        return None if grade.timed_out else float(grade.correct)

    return reward
