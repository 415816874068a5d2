"""The rollout worker of a data module: samples with the module's policy, has solutions judged, fills in the rest.

The engine reads the weights of the module that is trained again before every use, so that nothing is sampled from an
older policy. What is asked of the module is in `Learner`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datamodules.experience_ahead import Sampled, SamplingAhead, check_ahead, timed
from datamodules.experience_records import EvalBatch, Experience, Sums, make_experience
from datamodules.prompts import PromptStream
from datamodules.rollout_engines import EngineOptions, RolloutEngine, open_rollout_engine
from datamodules.rollout_signs import RolloutSigns
from prmkit.engines import HFEngine
from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.losses import world_size
from prmkit.models import PRMModel, resolve_folder
from prmkit.rewards import GroupCounts, OutcomeConfig, RewardsConfig
from prmkit.rollouts import (
    DynamicSampling,
    Group,
    Judge,
    Rollout,
    group_outcomes,
    has_signal,
    lucky_sums,
    roll_out,
    rollout_sums,
)
from prmkit.scoring import PRMScorer
from prmkit.scoring.ensemble import PESSIMISMS, EnsembleScorer, Pessimism
from prmkit.seeding import derive_seed
from prmkit.steps import BoundStepFormat, StepFormat, get_step_format
from prmkit.types import Engine, Problem, SamplingParams, StepScorer, Task, VerifiableTask
from prmkit.weights import check_kind

__all__ = ["EngineOptions", "Learner", "PRMSource", "RolloutWorker", "WorkerOptions", "gather"]

logger = logging.getLogger(__name__)


class Learner(Protocol):
    """What the data module asks of a LightningModule that optimises a policy.

    Attributes:
        model: causal language model that is trained.
        bound_format: its step format in its tokenizer's ids.
        group_size: solutions a prompt, at least 1.
        temperature: the policy is softmax(logits / temperature); solutions are sampled from it.
        skips_silent: its gradient comes from advantages alone: rows without any need not be computed. Asked once the
            models are built.
    """

    model: nn.Module
    bound_format: BoundStepFormat
    group_size: int
    temperature: float

    @property
    def device(self) -> torch.device: ...

    @property
    def skips_silent(self) -> bool: ...

    def require_reference(self) -> None:
        """Something needs log-probabilities of the reference policy; called before the models are built."""
        ...

    def require_implicit(self, beta: float) -> None:
        """The rewards hold those of an implicit PRM, of scale beta; called before the models are built."""
        ...

    def reference_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        """[B, T] log-probabilities under the reference where `written` is True, 0 elsewhere; no gradient."""
        ...

    def implicit_logprobs(self, input_ids: Tensor, written: Tensor) -> Tensor:
        """The same under the implicit PRM as it is now."""
        ...

    def check_rewards(self, rewards: RewardsConfig) -> None:
        """Refuse rewards that do not fit the learner's settings (ConfigError); called before the models are built."""
        ...

    def begin_iteration(self, update: int, groups: GroupCounts) -> Sums:
        """An iteration begins, after so many optimiser steps, with these groups on this rank; figures for the logs.
        Collective."""
        ...

    def score_tokens(self, input_ids: Tensor, mask: Tensor, single_update: bool) -> dict[str, Tensor]:
        """Fields of Experience, [B, T] each, that the loss needs from before the first optimiser step of an iteration.

        `single_update`: the iteration has one optimiser step, so that log-probabilities at its beginning are those of
        the forward pass itself.
        """
        ...

    def advantages(self, experience: Any) -> tuple[dict[str, Tensor], Sums]:
        """Fields `advantages` (and `returns`) of an Experience, and figures for the logs. Collective."""
        ...

    def loss_count(self, batch: Any) -> int:
        """Items that a PolicyBatch's policy loss is divided by."""
        ...


@dataclass(frozen=True)
class PRMSource:
    """The process reward model that scores rollouts, or several that score together.

    Attributes:
        path: model folder or hub name; a list of them is an ensemble.
        step_format: preset, file or folder in place of the models' own; None reads their `step_format.json`.
        dtype: type of the weights.
        max_batch_tokens: tokens computed at once at most.
        pessimism: score of a step from those of an ensemble: "min"; "mean-std", the mean less one standard deviation;
            "mean".
    """

    path: str | list[str]
    step_format: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch_tokens: int = 8192
    pessimism: Pessimism = "min"

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("data.prm.path", self.path, "at least one PRM")
        if self.pessimism not in PESSIMISMS:
            raise ConfigError("data.prm.pessimism", self.pessimism, " | ".join(PESSIMISMS))

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all PRMs."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)

    def checked_formats(self, policy: BoundStepFormat) -> tuple[StepFormat, ...]:
        """The step format of every PRM, once it is known to mean the same by a step as the policy's.

        Raises:
            ConfigError: a model is a policy.
            DataError: no such model.
            StepFormatError: a PRM was trained on steps that end otherwise than the policy's.
        """
        return tuple(self._checked_format(path, policy) for path in self.paths)

    def _checked_format(self, path: str, policy: BoundStepFormat) -> StepFormat:
        folder = resolve_folder(path)
        check_kind("data.prm.path", path, folder, "prm")
        spec = StepFormat.load(folder) if self.step_format is None else get_step_format(self.step_format)
        theirs, ours = spec.policy.separator, policy.spec.policy.separator
        if theirs != ours:
            raise StepFormatError(
                f"data.prm.path {path}: its step format {spec.name!r} ends steps with {theirs!r}, the policy's "
                f"({policy.spec.name!r}) with {ours!r}. Take a PRM trained on the policy's steps, or set "
                f"data.prm.step_format when its file is wrong."
            )
        return spec


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Settings of the data module that its worker needs; see there.

    Attributes:
        groups: prompts of this rank in an iteration.
        single_update: the iteration has one optimiser step.
    """

    groups: int
    single_update: bool
    max_tokens: int
    rewards: RewardsConfig
    prm: PRMSource | None
    dynamic: DynamicSampling | None
    engine: EngineOptions
    scoring_tokens: int
    seed: int


class RolloutWorker:
    """Samples, judges, scores. Made once the models are built; every rank has its own.

    Args:
        learner: the module that is trained.
        task: its grader judges answers; where it can check steps, right answers are checked for luck.
        precision: makes the context that the trainer's forward passes run in.
        options: see WorkerOptions.

    Attributes:
        rollouts: of the last iteration on this rank, kept groups only.
        watch: called while an iteration is sampled with the number of groups sampled, and of how many.

    Raises:
        ConfigError: no room for solutions in the model's context.
        DataError, StepFormatError: a PRM that cannot be used.
    """

    def __init__(
        self,
        learner: Learner,
        task: Task,
        precision: Callable[[], AbstractContextManager[Any]],
        options: WorkerOptions,
    ) -> None:
        self._learner, self._task, self._precision, self._options = learner, task, precision, options
        grader = task.grader
        self._signs = RolloutSigns(learner.bound_format, grader)
        self._resources = ExitStack()
        if isinstance(grader, AbstractContextManager):
            self._resources.enter_context(grader)
        context = int(learner.model.config.get_text_config().max_position_embeddings)  # type: ignore[operator,union-attr]
        if options.max_tokens >= context:
            raise ConfigError("data.max_tokens", options.max_tokens, f"less than the model's context of {context} ids")
        self.longest_prompt = context - options.max_tokens
        separator = learner.bound_format.spec.policy.separator
        scorer = None if options.prm is None else self._scorer(options.prm)
        self._judge = Judge(options.rewards, grader, scorer, separator, self._token_scores)
        right = RewardsConfig(OutcomeConfig(truncated="wrong"))
        self._examiner = Judge(right, grader, separator=separator)
        self._engine: RolloutEngine | None = None
        self._group: dist.ProcessGroup | None = None
        self.ahead: SamplingAhead | None = None
        self.rollouts: list[Rollout] = []
        self.watch: Callable[[int, int], None] = lambda _done, _total: None

    def close(self) -> None:
        """End the grader's processes, and the engine."""
        self._resources.close()

    def sample_ahead(self, stream: PromptStream) -> None:
        """From now on sample every iteration but the first while the one before is trained on. Collective."""
        if self._options.engine.kind != "hf":
            raise ConfigError("data.engine.kind", self._options.engine.kind, "hf, with data.ahead")
        check_ahead(self._learner, self._options.rewards)
        if world_size() > 1:  # the thread's collectives must not come between those of training
            self._group = dist.new_group(backend="gloo")
        sample = timed(lambda engine, position: self._waves(engine, stream, position))
        self.ahead = SamplingAhead(self._learner.model, self._new_engine, sample)
        self._resources.callback(self.ahead.close)

    def collect(
        self, stream: PromptStream, position: int, version: int, last: bool = False
    ) -> tuple[Experience, Sums, int]:
        """This rank's experience of an iteration, with advantages. Collective.

        Args:
            stream: prompts, the same on every rank.
            position: number of the first prompt that was not drawn yet.
            version: of the weights; stamped on completions.
            last: no iteration follows that could be sampled ahead.

        Returns:
            The experience, figures over this rank, and the new position.
        """
        start = time.perf_counter()
        sampled = self._sampled(stream, position, version)
        waited = time.perf_counter() - start
        groups, drawn, position = sampled.kept, sampled.drawn, sampled.position
        if self.ahead is not None and not last:
            self.ahead.begin(position, version)
        self.rollouts = [rollout for group in groups for rollout in group]
        self._signs.look([rollout for group in drawn for rollout in group])
        sums = self._sums(sampled)
        if self.ahead is not None:
            sums["waiting_seconds"] = (waited, 1)
            sums["staleness"] = (float(version - sampled.version), 1)
        outcome = self._options.rewards.outcome
        counts = GroupCounts() if outcome is None else group_outcomes(drawn, outcome.right)
        sums |= self._learner.begin_iteration(version, counts)
        experience = make_experience(self.rollouts, self._pad_id, None if outcome is None else outcome.right)
        experience = experience.filled(self._scored(experience))
        filled, found = self._learner.advantages(experience)
        sums["scoring_seconds"] = (time.perf_counter() - start - waited, 1)
        return experience.filled(filled), {**sums, **found}, position

    def _sums(self, sampled: Sampled) -> Sums:
        """Figures of an iteration's samples."""
        rollouts = [rollout for group in sampled.drawn for rollout in group]
        sums = rollout_sums(rollouts)
        sums["dropped"] = (float(len(sampled.drawn) - len(sampled.kept)), len(sampled.drawn))
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        sums["tokens_per_second"] = (tokens * world_size() / sampled.seconds, 1)
        sums["sampling_seconds"] = (sampled.seconds, 1)
        outcome = self._options.rewards.outcome
        if outcome is not None and isinstance(self._task, VerifiableTask):
            sums["lucky"] = lucky_sums(rollouts, outcome.right, self._task)
        return sums

    def evaluate(self, problems: Sequence[Problem], numbers: range, samples: int, temperature: float) -> EvalBatch:
        """Solutions of some problems, judged; a problem whose prompt is too long counts as wrong."""
        engine = self._examined(first=numbers.start == 0)
        fitting = [number for number in numbers if self.fits(problems[number])]
        sampling = SamplingParams(self._options.max_tokens, temperature)
        seed = derive_seed("validation", self._options.seed)
        with torch.inference_mode():
            groups = asyncio.run(
                roll_out([(n, problems[n]) for n in fitting], engine, self._examiner, samples, sampling, seed)
            )
        self._rest()
        rows = [rollout for group in groups for rollout in group]
        missing = (0.0,) * (samples * (len(numbers) - len(fitting)))
        right = [0.0 if rollout.reward is None else rollout.reward.total for rollout in rows]
        return EvalBatch(
            ids=tuple(problems[number].id for number in numbers for _ in range(samples)),
            right=torch.tensor([*right, *missing]),
            length=torch.tensor([*(float(len(rollout.token_ids)) for rollout in rows), *missing]),
            steps=torch.tensor([*(float(len(rollout.trace.steps)) for rollout in rows), *missing]),
            truncated=torch.tensor([*(float(rollout.trace.finish == "length") for rollout in rows), *missing]),
        )

    def fits(self, problem: Problem) -> bool:
        """Does the prompt leave room for a whole solution?"""
        return len(self._learner.bound_format.prompt_ids(problem.question)) <= self.longest_prompt

    @property
    def _pad_id(self) -> int:
        tokenizer = self._learner.bound_format.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def _scorer(self, source: PRMSource) -> StepScorer:
        def load(path: str, spec: StepFormat) -> PRMScorer:
            model = PRMModel.from_pretrained(path, spec, source.dtype, self._learner.device)
            return PRMScorer(model, max_batch_tokens=source.max_batch_tokens)

        formats = source.checked_formats(self._learner.bound_format)
        members = [load(path, spec) for path, spec in zip(source.paths, formats, strict=True)]
        return members[0] if len(members) == 1 else EnsembleScorer(members, source.pessimism)

    def _synced(self, version: int) -> Engine:
        """The engine with the weights as they are now. Collective."""
        if self._engine is None:
            learner = self._learner
            self._engine = open_rollout_engine(
                self._options.engine, learner.model, learner.bound_format, learner.device, version
            )
            self._resources.callback(self._engine.close)
        self._engine.sync(version)
        return self._engine.engine

    def _examined(self, *, first: bool) -> Engine:
        """The engine for a batch of problems. Ranks may have unequal numbers of batches: they get the weights together
        at the first, of which each has one."""
        if first or self._engine is None:
            return self._synced(0 if self._engine is None else self._engine.engine.weight_version)
        self._engine.wake()
        return self._engine.engine

    def _rest(self) -> None:
        assert self._engine is not None
        self._engine.rest()

    def _new_engine(self, version: int) -> HFEngine:
        options = self._options.engine
        return HFEngine(
            self._learner.model,
            self._learner.bound_format,
            max_rows=options.max_rows,
            cache_tokens=options.cache_tokens,
            device=self._learner.device,
            weight_version=version,
        )

    def _sampled(self, stream: PromptStream, position: int, version: int) -> Sampled:
        """Groups of the iteration that begins: sampled ahead where that was begun, else now."""
        found = None if self.ahead is None else self.ahead.take(position)
        if found is not None:
            return found
        sampled = timed(lambda engine, start: self._waves(engine, stream, start))(
            self._synced(version), position, version
        )
        self._rest()
        return sampled

    def _waves(self, engine: Engine, stream: PromptStream, position: int) -> tuple[list[Group], list[Group], int]:
        """Kept groups in the order of prompts, all groups drawn, and the new position."""
        options, rank = self._options, dist.get_rank() if world_size() > 1 else 0
        kept: list[Group] = []
        drawn: list[Group] = []
        for wave in range(1 if options.dynamic is None else options.dynamic.max_waves):
            missing = options.groups - len(kept)
            factor = 1.0 if options.dynamic is None else options.dynamic.oversample
            shares = gather(math.ceil(missing * factor), self._group)
            if not any(shares):
                break
            if wave == 0:  # dealt out one by one, so that an optimiser step's prompts do not depend on the ranks
                numbers = [position + rank + len(shares) * n for n in range(shares[rank])]
            else:
                first = position + sum(shares[:rank])
                numbers = list(range(first, first + shares[rank]))
            position += sum(shares)
            new = self._sample(engine, [(number, stream[number]) for number in numbers])
            drawn += new
            kept += [group for group in new if options.dynamic is None or has_signal(group, options.dynamic)]
            kept = kept[: options.groups]
        if len(kept) < options.groups:
            logger.warning(
                "dynamic sampling: %d of %d groups have a signal after %d waves, %d groups in all; going on with them",
                len(kept), options.groups, wave + 1, len(drawn),
            )  # fmt: skip
        return kept, drawn, position

    def _sample(self, engine: Engine, prompts: list[tuple[int, Problem]]) -> list[Group]:
        sampling = SamplingParams(self._options.max_tokens, self._learner.temperature)
        size, seed = self._learner.group_size, self._options.seed
        done = itertools.count(1)
        ahead = self.ahead is not None  # another thread samples then, beside training

        def on_group() -> None:
            if not ahead:
                self.watch(next(done), len(prompts))

        with torch.inference_mode():
            return asyncio.run(roll_out(prompts, engine, self._judge, size, sampling, seed, on_group))

    def _token_scores(self, rollouts: Sequence[Rollout]) -> dict[str, list[tuple[float, ...]]]:
        """For the parts of the reward that fall on tokens; see `Judge`."""
        rewards, learner = self._options.rewards, self._learner

        def score(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            reference = learner.reference_logprobs(ids, mask)
            found = {} if rewards.kl is None else {"reference_logprobs": reference}
            if rewards.implicit is not None:
                found |= {"prm_logprobs": learner.implicit_logprobs(ids, mask), "prm_reference_logprobs": reference}
            return found

        bare = make_experience(rollouts, self._pad_id)
        place = torch.arange(bare.input_ids.shape[1])
        starts = torch.tensor([len(rollout.prompt_ids) for rollout in rollouts])
        written = bare.attention_mask & (place >= starts[:, None])
        return {
            name: [tuple(row[mask].tolist()) for row, mask in zip(values, written, strict=True)]
            for name, values in self._over_rows(bare, score, written).items()
        }

    def _scored(self, experience: Experience) -> dict[str, Tensor]:
        def score(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return self._learner.score_tokens(ids, mask, self._options.single_update)

        return self._over_rows(experience, score, experience.action_mask)

    def _over_rows(
        self, experience: Experience, score: Callable[[Tensor, Tensor], dict[str, Tensor]], mask: Tensor
    ) -> dict[str, Tensor]:
        """Results of a pass without gradient over all rows, at most `scoring_tokens` padded tokens at once."""
        lengths = experience.attention_mask.sum(1).tolist()
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        device = self._learner.device
        found: dict[str, Tensor] = {}
        start = 0
        if not order:  # a blank row tells which results there are
            blank = torch.full((1, 2), self._pad_id, device=device)
            with torch.no_grad(), self._precision():
                return {name: torch.zeros(mask.shape) for name in score(blank, torch.zeros_like(blank).bool())}
        while start < len(order):
            width = lengths[order[start]]
            rows = order[start : start + max(1, self._options.scoring_tokens // width)]
            start += len(rows)
            with torch.no_grad(), self._precision():
                part = score(experience.input_ids[rows, :width].to(device), mask[rows, :width].to(device))
            if not part:
                return {}
            for name, values in part.items():
                whole = found.setdefault(name, torch.zeros(mask.shape))
                whole[rows, :width] = values.float().cpu()
        return found


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The value of every rank, in order of rank. Collective over the group, None for that of all."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def check_prompts(problems: Sequence[Problem], fits: Callable[[Problem], bool], longest: int) -> list[Problem]:
    """Problems whose prompt leaves room for a solution; warns of the others with numbers. DataError for none."""
    fitting = [problem for problem in problems if fits(problem)]
    excluded = len(problems) - len(fitting)
    if not fitting:
        raise DataError(
            f"data.prompts: all {excluded} prompts are longer than {longest} ids, the model's context less "
            f"data.max_tokens. Lower data.max_tokens, or take other problems."
        )
    if excluded:
        first = next(problem.id for problem in problems if not fits(problem))
        logger.warning(
            "prompts: %d of %d left out: longer than %d ids, the model's context less max_tokens (for example %s)",
            excluded, len(problems), longest, first,
        )  # fmt: skip
    return fitting
