"""Monte-Carlo values of prefixes: the share of k rollouts from a prefix that end in a right answer.

Every prefix has exactly k rollouts, so that "any right" means the same everywhere. A rollout from a prefix that happens
to pass through a longer one (the same token ids) is, from there on, a rollout from the longer one: it was drawn without
regard to the solution that is being judged. Such rollouts are taken over and only the missing ones are sampled. The
solutions that are annotated are never taken as evidence: they were picked for how they ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from prmkit.search.budget import Budget
from prmkit.search.sampling import prefix_ids
from prmkit.seeding import derive_seed
from prmkit.types import Engine, GenerationRequest, Grader, Problem, SamplingParams, Step

__all__ = ["AnswerJudge", "Estimate", "Estimator", "Rollout"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was written behind a prefix, and whether it ended in a right answer (cut-off ones did not)."""

    token_ids: tuple[int, ...]
    right: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """k rollouts from one prefix; `inherited` of them were sampled from a shorter prefix."""

    rollouts: tuple[Rollout, ...]
    inherited: int = 0

    @property
    def value(self) -> float:
        """Share of right rollouts, in [0, 1]."""
        return sum(rollout.right for rollout in self.rollouts) / len(self.rollouts)


class AnswerJudge:
    """Grades solutions of one problem; each distinct answer is graded once."""

    def __init__(self, problem: Problem, grader: Grader) -> None:
        self._problem = problem
        self._grader = grader
        self._right: dict[str | None, bool] = {None: False}

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Is the final answer of each solution text right?"""
        answers = [self._grader.extract(text) for text in texts]
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._right]
        if new:
            grades = self._grader.grade([(answer, self._problem.answer) for answer in new])
            self._right.update(zip(new, (grade.correct for grade in grades), strict=True))
        return [self._right[answer] for answer in answers]


class Estimator:
    """Values of the prefixes of one problem. Equal prefixes are estimated once, however many traces share them.

    Args:
        problem: whose prefixes.
        engine: the policy.
        judge: of its answers.
        rollouts: k, at least 1.
        sampling: how rollouts are sampled.
        seed: of the run; the seed of a prefix is derived from it, the problem's id and the prefix's token ids.
        budget: pays for everything.
        reuse: take over rollouts that pass through a longer prefix.

    Attributes:
        estimated: prefixes estimated so far.
        inherited: rollouts taken over from shorter prefixes so far.
    """

    def __init__(
        self,
        problem: Problem,
        engine: Engine,
        judge: AnswerJudge,
        rollouts: int,
        sampling: SamplingParams,
        seed: int,
        budget: Budget,
        reuse: bool = True,
    ) -> None:
        self._problem = problem
        self._engine = engine
        self._judge = judge
        self._k = rollouts
        self._sampling = sampling
        self._seed = seed
        self._budget = budget
        self._reuse = reuse
        self._known: dict[tuple[int, ...], asyncio.Task[Estimate]] = {}
        self.estimated = 0
        self.inherited = 0

    async def estimate(self, prefix: Sequence[Step]) -> Estimate:
        """k rollouts from a prefix. With reuse, its own prefixes' rollouts are awaited if they were asked for."""
        ids = tuple(token for step in prefix for token in step.token_ids)
        task = self._known.get(ids)
        if task is None:
            task = self._known[ids] = asyncio.ensure_future(self._sample(tuple(prefix), ids))
        return await task

    async def _sample(self, prefix: tuple[Step, ...], ids: tuple[int, ...]) -> Estimate:
        inherited = await self._inherit(prefix) if self._reuse else []
        self.estimated += 1
        self.inherited += len(inherited)
        missing = self._k - len(inherited)
        if missing == 0:
            return Estimate(tuple(inherited), len(inherited))
        prompt = prefix_ids(self._problem.question, prefix, self._engine.format)
        seed = derive_seed(self._seed, "rollout", self._problem.id, *ids)
        request = GenerationRequest(prompt, missing, seed, self._sampling)
        completions = await self._budget.generate(self._engine, request)
        finished = list(dict.fromkeys(c.token_ids for c in completions if c.finish_reason == "stop"))
        texts = [self._engine.format.decode((*ids, *tail)) for tail in finished]
        right = dict(zip(finished, self._judge.right(texts), strict=True))
        fresh = [Rollout(c.token_ids, c.finish_reason == "stop" and right[c.token_ids]) for c in completions]
        return Estimate((*inherited, *fresh), len(inherited))

    async def _inherit(self, prefix: tuple[Step, ...]) -> list[Rollout]:
        """Rollouts of the prefix without its last step that write just this step next."""
        parent = self._known.get(tuple(token for step in prefix[:-1] for token in step.token_ids))
        if parent is None:
            return []
        step = prefix[-1].token_ids
        passing = (rollout for rollout in (await parent).rollouts if rollout.token_ids[: len(step)] == step)
        return [Rollout(rollout.token_ids[len(step) :], rollout.right) for rollout in passing]
