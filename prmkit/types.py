"""Frozen records that pass between the rooms, and the protocols of the parts that pass them.

Nothing here imports torch. Vocabulary: a *problem* is a question with its gold answer; a *step* is one action of the
policy; a *trace* is a whole (or cut-off) solution of one problem; a *rollout* is a completion sampled from a *prefix*,
which is a problem and its first steps. `score` is a PRM's probability in [0, 1] that a step is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from prmkit.errors import ConfigError

if TYPE_CHECKING:
    from prmkit.steps import BoundStepFormat

__all__ = [
    "Completion",
    "Engine",
    "FinishReason",
    "GenerationRequest",
    "Grade",
    "Grader",
    "Problem",
    "SamplingParams",
    "Step",
    "StepScorer",
    "StepScores",
    "Task",
    "Trace",
    "Usage",
    "VerifiableTask",
]

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its gold answer.

    Attributes:
        id: unique within a task and stable over runs.
        question: text shown to the policy, without any prompt template.
        answer: gold final answer.
        solution: gold or teacher solution, steps separated as the task's policy writes them; None when unknown.
        level: difficulty label for breakdowns, e.g. "Level 3"; None when unknown.
        source: task and split it comes from, e.g. "accumulator/test".
    """

    id: str
    question: str
    answer: str
    solution: str | None = None
    level: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a solution.

    Attributes:
        text: the step without its separator.
        token_ids: the policy's own ids, separator tokens included; empty when the step came as text only.
        logprobs: log-probability of each id under the distribution it was sampled from; same length as token_ids,
            or empty when unknown.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StepScores:
    """Scores of the steps of one trace.

    Attributes:
        values: one probability in [0, 1] a step, in order.
        encoded_tokens: tokens the scorer had to encode for this call (prefixes it had seen are not counted again).
    """

    values: tuple[float, ...]
    encoded_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """A solution of one problem.

    Attributes:
        problem_id: the problem it answers.
        steps: in order; may be empty for an empty completion.
        finish: "stop" when the policy ended it (end of sequence), "length" when a limit cut it, "abort" on failure.
        answer: extracted final answer; None when there is none. Only finished traces may vote.
        scores: the PRM's scores, one a step; None when not scored.
        weight_version: version of the policy weights that wrote its last token.
    """

    problem_id: str
    steps: tuple[Step, ...]
    finish: FinishReason
    answer: str | None = None
    scores: StepScores | None = None
    weight_version: int = 0

    @property
    def n_tokens(self) -> int:
        return sum(len(step.token_ids) for step in self.steps)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Attributes:
        max_tokens: tokens to generate at most, per sample; at least 1.
        temperature: 0 is greedy; log-probabilities are of the distribution sampled from.
        top_p: nucleus mass in (0, 1]; 1 samples from the full distribution, which RL needs.
        top_k: keep the k likeliest tokens; 0 keeps all.
        stop: strings that end a sample. The token that completes a stop string is kept in `token_ids`, and `text`
            keeps the stop string too. The end-of-sequence token always ends a sample, is kept in `token_ids`
            and is not part of `text`.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError("sampling.max_tokens", self.max_tokens, "an integer of at least 1")
        if not 0.0 <= self.temperature <= 10.0:
            raise ConfigError("sampling.temperature", self.temperature, "a number in [0, 10]; 0 is greedy")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError("sampling.top_p", self.top_p, "a number in (0, 1]; 1 keeps the full distribution")
        if self.top_k < 0:
            raise ConfigError("sampling.top_k", self.top_k, "an integer of at least 0; 0 keeps all tokens")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prefix to continue n times.

    Attributes:
        prompt_ids: the whole prefix (prompt and steps so far) as token ids; at least one.
        n: samples wanted. Sample i depends only on (prompt_ids, params, seed, i) and the weights, never on what else
            is in the batch.
        seed: stream of randomness for this request.
        params: how to sample.
    """

    prompt_ids: tuple[int, ...]
    n: int = 1
    seed: int = 0
    params: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ConfigError("request.prompt_ids", (), "at least one token id")
        if self.n < 1:
            raise ConfigError("request.n", self.n, "an integer of at least 1")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample.

    Attributes:
        token_ids: generated ids, including the token that completed a stop string or the end-of-sequence token.
        logprobs: log-probability of each id under the distribution sampled from (temperature and truncation applied;
            at temperature 0 under the untempered distribution).
        text: decoded ids, the end-of-sequence token left out, a stop string kept.
        finish_reason: "stop" (a stop string or end of sequence), "length" or "abort".
        stop_reason: the stop string that ended it; None for end of sequence, and for "length" and "abort".
        weight_version: version of the weights that produced it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | None = None
    weight_version: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent, discarded work included. Adds up with `+`.

    Attributes:
        generated_tokens: tokens sampled by the policy.
        scored_tokens: tokens encoded by the PRM.
        engine_calls: requests made to the engine.
        scorer_calls: requests made to the scorer.
        samples: completions asked of the engine.
        seconds: wall-clock time.
    """

    generated_tokens: int = 0
    scored_tokens: int = 0
    engine_calls: int = 0
    scorer_calls: int = 0
    samples: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.generated_tokens + other.generated_tokens,
            self.scored_tokens + other.scored_tokens,
            self.engine_calls + other.engine_calls,
            self.scorer_calls + other.scorer_calls,
            self.samples + other.samples,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Grade:
    """Verdict on one answer.

    Attributes:
        correct: the answer is equivalent to the gold answer.
        timed_out: the comparison was stopped at its time limit; `correct` is then False.
    """

    correct: bool
    timed_out: bool = False


class Grader(Protocol):
    """Extracts final answers and decides whether two are equivalent."""

    def extract(self, text: str) -> str | None:
        """Final answer in a whole solution text, None when there is none."""
        ...

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
        """Verdicts on (answer, gold) pairs, in order. A None answer is wrong."""
        ...

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """Equivalence-class number of every answer, classes numbered by first appearance; -1 for None."""
        ...


class Task(Protocol):
    """Where problems come from, and how answers to them are judged.

    Attributes:
        name: e.g. "accumulator", "gsm8k".
        splits: names accepted by `problems`.
        grader: extracts and compares answers.
    """

    name: str
    splits: tuple[str, ...]

    @property
    def grader(self) -> Grader: ...

    def problems(self, split: str, limit: int | None = None, offset: int = 0) -> Sequence[Problem]:
        """Problems number offset, offset + 1, ... of a split; None gives all (ConfigError for an endless split)."""
        ...


@runtime_checkable
class VerifiableTask(Protocol):
    """A task whose every step can be checked exactly, and whose teachers can demonstrate.

    Splits are endless: problem i of a split is a pure function of (split, i), and splits are disjoint.
    """

    name: str
    splits: tuple[str, ...]

    @property
    def grader(self) -> Grader: ...

    @property
    def chance(self) -> float | None:
        """Share of right answers by guessing; None where answers are open."""
        ...

    def problems(self, split: str, limit: int | None = None, offset: int = 0) -> Sequence[Problem]: ...

    def problem(self, split: str, index: int) -> Problem:
        """Problem number `index` of a split; `solution` holds an exact solution."""
        ...

    def demonstration(self, problem: Problem, seed: int) -> str:
        """A teacher's solution text, mistakes included; the same for the same seed."""
        ...

    def check(self, problem: Problem, steps: Sequence[str]) -> tuple[bool, ...]:
        """For every step: is it right, given the problem and the line before it as written?"""
        ...


@runtime_checkable
class Engine(Protocol):
    """Writes completions. Batching is its own matter; call it from many coroutines at once.

    Attributes:
        format: the policy's step format bound to its tokenizer.
        weight_version: version of the weights now in use.
    """

    @property
    def format(self) -> BoundStepFormat: ...

    @property
    def weight_version(self) -> int: ...

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        """`request.n` completions, in sample order."""
        ...


@runtime_checkable
class StepScorer(Protocol):
    """Scores steps. Batching is its own matter; call it from many coroutines at once."""

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        """One score in [0, 1] for every step, each given the steps before it. No steps give no values."""
        ...
