"""Rollouts for policy optimisation: from prompts to sampled solutions with rewards, a group of solutions a prompt.

Sampling is from the full distribution (top-p 1, top-k off): importance weights of truncated sampling would need the
kept set. A group depends on (seed, number of the prompt) and the weights only, so that neither batching nor the number
of processes changes it. Tensors, advantages and losses are made elsewhere; nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prmkit.errors import ConfigError
from prmkit.rewards import GroupCounts, Reward, RewardInput, RewardMixture, RewardsConfig, build_rewards, count_groups
from prmkit.seeding import derive_seed
from prmkit.tasks.luck import is_worked_out
from prmkit.types import (
    Completion,
    Engine,
    GenerationRequest,
    Grader,
    Problem,
    SamplingParams,
    StepScorer,
    StepScores,
    Trace,
    VerifiableTask,
)

__all__ = [
    "DynamicSampling",
    "Group",
    "Judge",
    "Rollout",
    "TokenScores",
    "group_outcomes",
    "has_signal",
    "lucky_sums",
    "roll_out",
    "rollout_sums",
    "sample_group",
]

_SAME = 1e-6  # as in prmkit.advantages.groups: rewards closer than this, relative to their size, are the same


@dataclass(frozen=True)
class DynamicSampling:
    """Keep groups that can teach something, and sample others for the rest (DAPO, arXiv 2503.14476, section 3.2).

    Attributes:
        part: part of the reward that decides; a group is dropped when all its members have the same of it.
        low, high: a group is dropped, too, when the mean of the part lies outside [low, high] (PRIME, arXiv 2502.01456:
            .2 and .8 of the outcome). None sets no bound.
        oversample: groups sampled for one that is missing, at least 1; more saves waves and wastes samples.
        max_waves: waves of sampling an iteration, at least 1. An iteration that is not full after them goes on with
            what it has, and says so.
    """

    part: str = "outcome"
    low: float | None = None
    high: float | None = None
    oversample: float = 1.25
    max_waves: int = 4

    def __post_init__(self) -> None:
        if not self.oversample >= 1.0:
            raise ConfigError("dynamic_sampling.oversample", self.oversample, "a number of at least 1")
        if self.max_waves < 1:
            raise ConfigError("dynamic_sampling.max_waves", self.max_waves, "an integer of at least 1")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError("dynamic_sampling.low", self.low, f"a number up to dynamic_sampling.high {self.high}")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled solution, and later its reward.

    Attributes:
        problem: what was to be solved.
        group: number of the prompt in the stream of prompts; the solutions of one prompt share it.
        prompt_ids: the prompt.
        token_ids: what the policy wrote, end of sequence included. The trace's steps hold the same ids, unless nothing
            but blanks was written: then there are no steps, and the ids are here only.
        logprobs: of token_ids, by the engine, under the distribution sampled from.
        trace: the solution in steps; with scores where a PRM was asked.
        reward: weighted sum of the parts; None is "no reward", and also the state before judging.
        parts: total reward of each part before weighting, by name; None where the part had none.
    """

    problem: Problem
    group: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    trace: Trace
    reward: Reward | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)


Group = tuple[Rollout, ...]
TokenScores = Callable[[Sequence[Rollout]], Mapping[str, Sequence[tuple[float, ...]]]]
"""[T] log-probabilities of every token that a rollout's policy wrote, for each rollout, by field of RewardInput."""


async def sample_group(
    problem: Problem, number: int, engine: Engine, size: int, sampling: SamplingParams, seed: int
) -> Group:
    """Solutions of one problem, in sample order.

    Args:
        problem: what to solve.
        number: of the prompt in the stream of prompts, from 0.
        engine: the policy.
        size: solutions, at least 1.
        sampling: top_p 1 and top_k 0, unless it is greedy.
        seed: of the run.

    Raises:
        ConfigError: truncated sampling, or a prompt that does not fit into the model's context.
    """
    if sampling.temperature > 0 and (sampling.top_p != 1.0 or sampling.top_k != 0):
        raise ConfigError(
            "rollouts.sampling.top_p, top_k",
            (sampling.top_p, sampling.top_k),
            "1 and 0: importance weights need the full distribution",
        )
    prompt = engine.format.prompt_ids(problem.question)
    request = GenerationRequest(prompt, size, derive_seed("rollout", seed, number), sampling)
    return tuple(_rollout(problem, number, prompt, completion, engine) for completion in await engine.generate(request))


def _rollout(problem: Problem, number: int, prompt: tuple[int, ...], completion: Completion, engine: Engine) -> Rollout:
    steps = engine.format.split_ids(completion.token_ids, completion.logprobs)
    trace = Trace(problem.id, steps, completion.finish_reason, weight_version=completion.weight_version)
    return Rollout(problem, number, prompt, completion.token_ids, completion.logprobs, trace)


class _Remembering:
    """A scorer that keeps what it was told, so that traces can carry their scores."""

    def __init__(self, scorer: StepScorer) -> None:
        self._scorer = scorer
        self.known: dict[tuple[str, tuple[str, ...]], StepScores] = {}

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        scores = await self._scorer.score(question, steps)
        self.known[question, tuple(steps)] = scores
        return scores


class Judge:
    """Gives rollouts their rewards, and their traces the PRM's scores. Call it with the rollouts of one wave.

    Args:
        config: parts of the reward.
        grader: judges answers.
        scorer: the PRM; needed for the part `process`.
        separator: joins steps to the text that answers are extracted from.
        token_scores: needed for the parts `kl` (gives reference_logprobs) and `implicit` (gives prm_logprobs and
            prm_reference_logprobs).

    Raises:
        ConfigError: a part without what it needs.
    """

    def __init__(
        self,
        config: RewardsConfig,
        grader: Grader,
        scorer: StepScorer | None = None,
        separator: str = "\n",
        token_scores: TokenScores | None = None,
    ) -> None:
        if config.process is not None and scorer is None:
            raise ConfigError("rewards.process", config.process, "None without a PRM", "Name one in data.prm.path.")
        if config.kl is not None and token_scores is None:
            raise ConfigError("rewards.kl", config.kl, "None without a reference policy")
        if config.implicit is not None and token_scores is None:
            raise ConfigError("rewards.implicit", config.implicit, "None without an implicit PRM")
        self._scorer = None if scorer is None else _Remembering(scorer)
        self._mixture: RewardMixture = build_rewards(config, grader, self._scorer, separator)
        wanted = config.kl is not None or config.implicit is not None
        self._token_scores = token_scores if wanted else None

    async def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with their rewards, in order.

        Raises:
            DataError: a reward that is not a finite number (see `RewardMixture`).
        """
        inputs = [RewardInput(rollout.problem, rollout.trace) for rollout in rollouts]
        if self._token_scores is not None:
            for name, rows in self._token_scores(rollouts).items():
                inputs = [
                    # Ids of a trace without steps are no tokens of the trace.
                    _with_field(item, name, tuple(values) if item.trace.steps else ())
                    for item, values in zip(inputs, rows, strict=True)
                ]
        judged = await self._mixture(inputs)
        found = []
        for row, (rollout, reward) in enumerate(zip(rollouts, judged.rewards, strict=True)):
            parts = {name: _total(values[row]) for name, values in judged.parts.items()}
            found.append(replace(rollout, reward=reward, parts=parts, trace=self._scored(rollout)))
        if self._scorer is not None:
            self._scorer.known.clear()
        return found

    def _scored(self, rollout: Rollout) -> Trace:
        if self._scorer is None:
            return rollout.trace
        steps = tuple(step.text for step in rollout.trace.steps)
        return replace(rollout.trace, scores=self._scorer.known.get((rollout.problem.question, steps)))


def _with_field(item: RewardInput, name: str, values: tuple[float, ...]) -> RewardInput:
    changes: dict[str, Any] = {name: values}
    return replace(item, **changes)


def _total(reward: Reward | None) -> float | None:
    return None if reward is None else reward.total


async def roll_out(
    prompts: Sequence[tuple[int, Problem]],
    engine: Engine,
    judge: Judge,
    size: int,
    sampling: SamplingParams,
    seed: int,
    on_group: Callable[[], None] = lambda: None,
) -> list[Group]:
    """Groups for (number, problem) prompts, in order, sampled together and judged together. See `sample_group`.

    `on_group` is called when a group is sampled.
    """

    async def sampled(number: int, problem: Problem) -> Group:
        group = await sample_group(problem, number, engine, size, sampling, seed)
        on_group()
        return group

    groups = await asyncio.gather(*(sampled(number, problem) for number, problem in prompts))
    judged = iter(await judge([rollout for group in groups for rollout in group]))
    return [tuple(next(judged) for _ in group) for group in groups]


def has_signal(group: Sequence[Rollout], config: DynamicSampling) -> bool:
    """Would dynamic sampling keep this group? Rollouts without a reward are no members.

    Raises:
        ConfigError: the reward has no part of that name.
    """
    totals: list[float] = []
    for rollout in group:
        if config.part not in rollout.parts:
            raise ConfigError("dynamic_sampling.part", config.part, " | ".join(rollout.parts))
        value = rollout.parts[config.part]
        if rollout.reward is not None and value is not None:
            totals.append(value)
    if len(totals) < 2:
        return False
    low, high = min(totals), max(totals)
    mean = math.fsum(totals) / len(totals)
    inside = (config.low is None or mean >= config.low) and (config.high is None or mean <= config.high)
    return inside and high - low > _SAME * max(1.0, abs(low), abs(high))


def group_outcomes(groups: Iterable[Group], right: float) -> GroupCounts:
    """Count judged groups by their outcomes; `right` is what the part `outcome` gives a right answer."""
    verdicts = [[rollout.parts.get("outcome") for rollout in group] for group in groups]
    return count_groups([value == right for value in group if value is not None] for group in verdicts)


def lucky_sums(rollouts: Iterable[Rollout], right: float, task: VerifiableTask) -> tuple[float, int]:
    """Right answers that were not worked out, and all right answers (see `is_worked_out`)."""
    found = [rollout for rollout in rollouts if rollout.parts.get("outcome") == right]
    steps = [[step.text for step in rollout.trace.steps] for rollout in found]
    lucky = sum(not is_worked_out(task, r.problem, texts) for r, texts in zip(found, steps, strict=True))
    return float(lucky), len(found)


def rollout_sums(rollouts: Iterable[Rollout]) -> dict[str, tuple[float, int]]:
    """Figures of rollouts as (sum, count), which add up over processes.

    `reward` and every part by its name; `length` (tokens) and `steps` a solution; `step_length` (tokens a step);
    `truncated` and `missing` (no reward) as shares; where a PRM scored, `score` (mean over traces of their lowest step
    score) and `score_gap` (that minus whether the verifier found the answer right, where there is an outcome).
    """
    sums: dict[str, list[float]] = {}

    def add(name: str, value: float, count: int = 1) -> None:
        entry = sums.setdefault(name, [0.0, 0])
        entry[0] += value
        entry[1] += count

    for rollout in rollouts:
        if rollout.reward is not None:
            add("reward", rollout.reward.total)
        for name, value in rollout.parts.items():
            add(name, value or 0.0, int(value is not None))
        add("length", len(rollout.token_ids))
        add("steps", len(rollout.trace.steps))
        add("step_length", rollout.trace.n_tokens, len(rollout.trace.steps))
        add("truncated", rollout.trace.finish == "length")
        add("missing", rollout.reward is None)
        scores = rollout.trace.scores
        if scores is not None and scores.values:
            add("score", min(scores.values))
            outcome = rollout.parts.get("outcome")
            if outcome is not None:
                add("score_gap", min(scores.values) - outcome)
    return {name: (total, int(count)) for name, (total, count) in sums.items()}
