"""Monte-Carlo values of prefixes: the share of k rollouts from a prefix that end in a right answer.

Every prefix has exactly k rollouts, so that "any right" means the same everywhere. A rollout from a prefix that happens
to pass through a longer one (the same token ids) is, from there on, a rollout from the longer one: such rollouts are
taken over and only the missing ones are sampled. A rollout that was picked for how it ended is no evidence about the
prefixes it is picked to judge, and is left out of them.

Prefixes are estimated in rounds. What a round takes over depends on the rounds before it only, never on which of its
requests the engine answered first, so that a problem's labels do not depend on what else is in work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from prmkit.protocols import Engine, Grader
from prmkit.records import Completion, GenerationRequest, Problem, SamplingParams, Step
from prmkit.search.budget import Budget
from prmkit.seeding import derive_seed

__all__ = ["AnswerJudge", "Estimate", "Estimator", "Rollout", "Sampling", "ids_of"]


def ids_of(steps: Sequence[Step]) -> tuple[int, ...]:
    """Token ids of steps, joined."""
    return tuple(token for step in steps for token in step.token_ids)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A solution written from a prefix on.

    Attributes:
        token_ids: the whole solution's, the prefix included and the prompt not.
        start: length of the prefix it was sampled from, in tokens.
        finished: it came to an end by itself.
        right: it finished, with a right answer.
    """

    token_ids: tuple[int, ...]
    start: int
    finished: bool
    right: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """k rollouts from one prefix; the first `inherited` of them were sampled from shorter prefixes."""

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
        self.answered = 0

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Is the final answer of each solution text right?"""
        answers = [self._grader.extract(text) for text in texts]
        self.answered += sum(answer is not None for answer in answers)
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._right]
        if new:
            grades = self._grader.grade([(answer, self._problem.answer) for answer in new])
            self._right.update(zip(new, (grade.correct for grade in grades), strict=True))
        return [self._right[answer] for answer in answers]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How rollouts of a problem are sampled.

    Attributes:
        k: rollouts behind every value; at least 1.
        params: of each rollout.
        seed: of the run; the seed of a prefix is derived from it, the problem's id and the prefix's token ids.
        reuse: take over rollouts that pass through a longer prefix.
        limit: rollouts sampled at most, those from the bare question included; None is no limit.
    """

    k: int
    params: SamplingParams
    seed: int
    reuse: bool = True
    limit: int | None = None


class Estimator:
    """Values of the prefixes of one problem. Equal prefixes are estimated once, however many solutions share them.

    Args:
        problem: whose prefixes.
        engine: the policy.
        judge: of its answers.
        sampling: how rollouts are sampled.
        budget: pays for everything.

    Attributes:
        estimated: prefixes estimated so far.
        inherited: rollouts taken over from shorter prefixes so far.
        sampled: rollouts sampled so far.
    """

    def __init__(
        self, problem: Problem, engine: Engine, judge: AnswerJudge, sampling: Sampling, budget: Budget
    ) -> None:
        self._problem = problem
        self._engine = engine
        self._judge = judge
        self._sampling = sampling
        self._budget = budget
        self._prompt = engine.format.prompt_ids(problem.question)
        self._known: dict[tuple[int, ...], Estimate] = {}
        self._rollouts: list[Rollout] = []
        self.estimated = 0
        self.inherited = 0
        self.sampled = 0

    @property
    def answered(self) -> int:
        """Texts judged so far that have a final answer."""
        return self._judge.answered

    async def sample_root(self, n: int, params: SamplingParams) -> tuple[Rollout, ...]:
        """n rollouts from the bare question. They are evidence about every prefix they pass through if they were
        sampled as all others are."""
        self.sampled += n
        rollouts = await self._sample((), n, params)
        if params != self._sampling.params:
            return rollouts
        self._rollouts += rollouts
        return rollouts

    async def estimate(
        self, prefixes: Sequence[tuple[int, ...]], without: Sequence[Rollout | None] | None = None
    ) -> list[Estimate | None]:
        """One round: the estimates of prefixes, those that are new sampled at the same time.

        Args:
            prefixes: token ids behind the prompt; equal ones share an estimate.
            without: for each prefix a rollout that is no evidence about it; the first counts where prefixes are equal.

        Returns:
            An estimate for every prefix; None where the limit on rollouts did not allow it.
        """
        avoided = without or [None] * len(prefixes)
        inherited: dict[tuple[int, ...], list[Rollout]] = {}
        for prefix, avoid in zip(prefixes, avoided, strict=True):
            if prefix not in self._known and prefix not in inherited:
                passing = self._passing(prefix, avoid)
                if self._pay(self._sampling.k - len(passing)):
                    inherited[prefix] = passing
        k, params = self._sampling.k, self._sampling.params
        fresh = await asyncio.gather(*(self._sample(p, k - len(old), params) for p, old in inherited.items()))
        for (prefix, old), new in zip(inherited.items(), fresh, strict=True):
            self._known[prefix] = Estimate((*old, *new), len(old))
            self._rollouts += new
            self.estimated += 1
            self.inherited += len(old)
        return [self._known.get(prefix) for prefix in prefixes]

    def right_through(self, prefix: tuple[int, ...]) -> Rollout | None:
        """The first right rollout there is, wherever it was sampled from, that passes through a prefix."""
        n = len(prefix)
        return next((r for r in self._rollouts if r.right and len(r.token_ids) > n and r.token_ids[:n] == prefix), None)

    def _pay(self, rollouts: int) -> bool:
        """Count rollouts that are about to be sampled, unless they go beyond the limit."""
        if self._sampling.limit is not None and self.sampled + rollouts > self._sampling.limit:
            return False
        self.sampled += rollouts
        return True

    def _passing(self, prefix: tuple[int, ...], avoid: Rollout | None) -> list[Rollout]:
        """The first k rollouts that were sampled from a shorter prefix and write this one."""
        if not self._sampling.reuse:
            return []
        n = len(prefix)
        found: list[Rollout] = []
        for rollout in self._rollouts:
            ids = rollout.token_ids
            if rollout.start <= n < len(ids) and ids[:n] == prefix and rollout is not avoid:
                found.append(rollout)
                if len(found) == self._sampling.k:
                    break
        return found

    async def _sample(self, prefix: tuple[int, ...], n: int, params: SamplingParams) -> tuple[Rollout, ...]:
        if n == 0:
            return ()
        seed = derive_seed(self._sampling.seed, "rollout", self._problem.id, *prefix)
        request = GenerationRequest(self._prompt + prefix, n, seed, params)
        return self._graded(prefix, await self._budget.generate(self._engine, request))

    def _graded(self, prefix: tuple[int, ...], completions: Sequence[Completion]) -> tuple[Rollout, ...]:
        """Rollouts from completions; equal ones are read and graded once."""
        finished = list(dict.fromkeys(c.token_ids for c in completions if c.finish_reason == "stop"))
        texts = [self._engine.format.decode((*prefix, *tail)) for tail in finished]
        right = dict(zip(finished, self._judge.right(texts), strict=True))
        return tuple(
            Rollout(
                (*prefix, *c.token_ids),
                len(prefix),
                c.finish_reason == "stop",
                c.finish_reason == "stop" and right[c.token_ids],
            )
            for c in completions
        )
