"""OmegaPRM: first errors by binary search over a tree of rollouts (arXiv 2406.06592, section 3.3).

A wrong solution is cut in the middle: if a rollout from there ends right, the first error comes later, else earlier.
Every prefix probed on the way becomes a state of a tree, with a value and with rollouts of its own; which of the wrong
rollouts in the tree is searched next is decided by

    Q(s, r) + U(s),   Q = alpha^(1 - MC(s)) * beta^(tokens(r) / length),   U = c_puct * sqrt(sum_i N(s_i)) / (1 + N(s)).

A rollout leaves the pool when it is picked. It is not searched when what is known of its prefixes already says where
its first error is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from prmkit.annotation.counts import AnnotationCounts, ProblemLabels, most_frequent
from prmkit.annotation.estimate import AnswerJudge, Estimate, Estimator, Rollout, Sampling, ids_of
from prmkit.annotation.records import StepLabels
from prmkit.annotation.tree import SearchedSolution, SearchTree, TreeState, build_states
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import Engine, Grader
from prmkit.records import Problem, SamplingParams, Step
from prmkit.search.budget import Budget

__all__ = ["SOURCE", "CutKind", "OmegaPRMParams", "annotate_problem", "split_span", "urgency"]

SOURCE = "omegaprm"
CutKind = Literal["steps", "tokens"]


@dataclass(frozen=True, slots=True)
class OmegaPRMParams:
    """How a problem is searched. The defaults are the paper's, but for `searches_at_once`.

    Attributes:
        filter_rollouts: rollouts from the bare question; at least 2. Problems that they solve always or never are left
            out, the others begin their search with them.
        rollouts: k, rollouts behind the value of every other state; at least 1.
        max_searches: binary searches a problem; at least 1.
        max_rollouts: rollouts sampled a problem, the first ones included; null is no limit.
        threshold: a prefix counts as wrong when its value is at most this, in [0, 1). With 0, one right rollout in k
            makes a prefix right; where wrong prefixes are finished right by luck, 1/k mends most of it.
        alpha, beta: in (0, 1]; they weigh the value of a state and the length of a rollout from it.
        length: L, tokens of a rollout that count as one in beta's exponent; at least 1.
        c_puct: at least 0; weighs how seldom a state was picked.
        cut_at: where a solution may be cut: behind its "steps", or in `pieces` equal spans of "tokens".
        pieces: spans of a solution that is cut at "tokens"; at least 2.
        searches_at_once: rollouts of one tree that are searched at the same time; 1 is the paper's order, more keep a
            batch full when few problems are in work.
        reuse_rollouts: take over rollouts from a shorter prefix that pass through a longer one, and sample the rest.
        right_per_problem: distinct right solutions kept as positives, those sampled most often first; null keeps all,
            0 none.
        counterparts: keep with every first error a right solution that is the same up to there. A PRM that sees both
            cannot tell them by how risky a step looks, only by what it says. They cost nothing: the prefix before a
            first error was found to be right by just such rollouts. Where errors can cancel, many of them are right by
            luck.
        sampling: how the first rollouts are sampled.
        rollout_sampling: how the others are sampled; null samples them alike.
        seed: of the run.
    """

    filter_rollouts: int = 32
    rollouts: int = 8
    max_searches: int = 100
    max_rollouts: int | None = None
    threshold: float = 0.0
    alpha: float = 0.5
    beta: float = 0.9
    length: int = 500
    c_puct: float = 0.125
    cut_at: CutKind = "steps"
    pieces: int = 16
    searches_at_once: int = 4
    reuse_rollouts: bool = True
    right_per_problem: int | None = 1
    counterparts: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rollout_sampling: SamplingParams | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("filter_rollouts", "pieces", "rollouts", "max_searches", "length", "searches_at_once")
        for name, value in zip(names, (2, 2, 1, 1, 1, 1), strict=True):
            if getattr(self, name) < value:
                raise ConfigError(f"annotate.{name}", getattr(self, name), f"an integer of at least {value}")
        for name in ("alpha", "beta"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"annotate.{name}", getattr(self, name), "a number in (0, 1]")
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError("annotate.threshold", self.threshold, "a number in [0, 1)")
        if self.c_puct < 0.0:
            raise ConfigError("annotate.c_puct", self.c_puct, "a number of at least 0")
        if self.cut_at not in get_args(CutKind):
            raise ConfigError("annotate.cut_at", self.cut_at, " | ".join(get_args(CutKind)))
        if self.max_rollouts is not None and self.max_rollouts < self.filter_rollouts:
            raise ConfigError(
                "annotate.max_rollouts", self.max_rollouts, "at least filter_rollouts, which it includes, or null"
            )
        if self.right_per_problem is not None and self.right_per_problem < 0:
            raise ConfigError(
                "annotate.right_per_problem", self.right_per_problem, "an integer of at least 0, or null for all"
            )


def urgency(params: OmegaPRMParams, value: float, tokens: int, visits: int, all_visits: int) -> float:
    """Q + U of a rollout (equations 1 and 2).

    Args:
        params: alpha, beta, length and c_puct.
        value: MC of the state it was sampled from, in [0, 1].
        tokens: its length.
        visits: N of that state; `all_visits` is the sum over states.
    """
    q: float = params.alpha ** (1.0 - value) * params.beta ** (tokens / params.length)
    return q + params.c_puct * math.sqrt(all_visits) / (1 + visits)


def split_span(ids: Sequence[int], pieces: int, fmt: BoundStepFormat) -> tuple[Step, ...]:
    """Token ids cut into at most `pieces` spans of one length; the last may be shorter."""
    size = -(-len(ids) // pieces)
    return tuple(
        Step(fmt.decode(ids[begin : begin + size]), tuple(ids[begin : begin + size]))
        for begin in range(0, len(ids), size)
    )


async def annotate_problem(
    problem: Problem, engine: Engine, grader: Grader, params: OmegaPRMParams, policy: str, budget: Budget
) -> ProblemLabels:
    """Search a problem's wrong rollouts for their first errors.

    Records hold the searched solutions, one for each distinct prefix that ends with a first error, and right ones as
    positives. Steps before the first error that were not probed have no value: a longer right prefix vouches for them.

    Args:
        problem: what to solve.
        engine: the policy.
        grader: extracts and grades answers.
        params: see OmegaPRMParams.
        policy: name of the policy, for the records.
        budget: pays for everything.
    """
    return await _Search(problem, engine, grader, params, policy, budget).run()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A wrong rollout in the pool: the pieces of the whole solution, and the state it was sampled from."""

    rollout: Rollout
    pieces: tuple[Step, ...]
    state: tuple[int, ...]


class _Search:
    """One problem's tree while it grows."""

    def __init__(
        self, problem: Problem, engine: Engine, grader: Grader, params: OmegaPRMParams, policy: str, budget: Budget
    ) -> None:
        self._problem = problem
        self._format = engine.format
        self._params = params
        self._policy = policy
        sampling = Sampling(
            params.rollouts,
            params.rollout_sampling or params.sampling,
            params.seed,
            params.reuse_rollouts,
            params.max_rollouts,
        )
        self._estimator = Estimator(problem, engine, AnswerJudge(problem, grader), sampling, budget)
        self._root_params = params.sampling
        self._states: dict[tuple[int, ...], Estimate] = {}
        self._texts: dict[tuple[int, ...], tuple[str, ...]] = {(): ()}
        self._visits: dict[tuple[int, ...], int] = {}
        self._pool: list[_Candidate] = []
        self._seen: set[tuple[int, ...]] = set()
        self._searched: list[tuple[_Candidate, int | None]] = []
        self._repeats = 0

    async def run(self) -> ProblemLabels:
        root = await self._estimator.sample_root(self._params.filter_rollouts, self._root_params)
        self._states[()] = Estimate(root)
        solved = self._states[()].value
        if solved in (0.0, 1.0):
            tree = SearchTree(
                self._problem.id,
                self._problem.question,
                self._problem.answer,
                (TreeState(None, (), sum(r.right for r in root), len(root), 0, 0),),
                (),
                dropped="always" if solved else "never",
            )
            return ProblemLabels((), self._counts(root, ()), tree)
        self._add_candidates(())
        while wave := self._pick():
            if not await self._search(wave):
                break
        wrong, before = self._wrong_records()
        records = (*wrong, *self._right_records(root, before))
        return ProblemLabels(records, self._counts(root, records), self._tree())

    # -- selection --------------------------------------------------------------------------------------------------

    def _add_candidates(self, state: tuple[int, ...]) -> None:
        """Put the wrong rollouts of a state into the pool, if it is solved sometimes. Each solution enters once."""
        estimate = self._states[state]
        if not 0.0 < estimate.value < 1.0:
            return
        for rollout in estimate.rollouts:
            if rollout.right or not rollout.finished or rollout.token_ids in self._seen:
                continue
            self._seen.add(rollout.token_ids)
            pieces = self._split(rollout)
            if pieces:
                self._pool.append(_Candidate(rollout, pieces, state))

    def _split(self, rollout: Rollout) -> tuple[Step, ...]:
        """Pieces of a solution; those of the prefix it was sampled from stay as they were."""
        if self._params.cut_at == "steps":
            return self._format.split_ids(rollout.token_ids)
        prefix, tail = rollout.token_ids[: rollout.start], rollout.token_ids[rollout.start :]
        before: list[Step] = []
        begin = 0
        for cut in sorted(len(ids) for ids in self._texts if ids and prefix[: len(ids)] == ids):
            before.append(Step(self._format.decode(prefix[begin:cut]), prefix[begin:cut]))
            begin = cut
        return (*before, *split_span(tail, self._params.pieces, self._format))

    def _pick(self) -> list[_Candidate]:
        """The most urgent rollouts, out of the pool; those whose first error is known already are dropped."""
        wave: list[_Candidate] = []
        limit = min(self._params.searches_at_once, self._params.max_searches - len(self._searched))
        while self._pool and len(wave) < limit:
            total = sum(self._visits.values())
            best = max(range(len(self._pool)), key=lambda index: self._urgency(self._pool[index], total))
            candidate = self._pool.pop(best)
            if self._known(candidate):
                self._repeats += 1
                continue
            self._visits[candidate.state] = self._visits.get(candidate.state, 0) + 1
            wave.append(candidate)
        return wave

    def _urgency(self, candidate: _Candidate, total: int) -> float:
        tokens = len(candidate.rollout.token_ids) - candidate.rollout.start
        visits = self._visits.get(candidate.state, 0)
        return urgency(self._params, self._states[candidate.state].value, tokens, visits, total)

    # -- binary search ----------------------------------------------------------------------------------------------

    async def _search(self, wave: list[_Candidate]) -> bool:
        """Find the first errors of some rollouts, a probe of each at a time; False when rollouts ran out."""
        order: list[tuple[int, ...]] = []
        while True:
            brackets = [self._bracket(candidate) for candidate in wave]
            open_ = [(c, (low + high) // 2) for c, (low, high) in zip(wave, brackets, strict=True) if high - low > 1]
            if not open_:
                break
            prefixes = [ids_of(candidate.pieces[:middle]) for candidate, middle in open_]
            estimates = await self._estimator.estimate(prefixes, [candidate.rollout for candidate, _ in open_])
            for (candidate, middle), prefix, estimate in zip(open_, prefixes, estimates, strict=True):
                if estimate is not None and prefix not in self._states:
                    self._states[prefix] = estimate
                    self._texts[prefix] = tuple(piece.text for piece in candidate.pieces[:middle])
                    order.append(prefix)
            if None in estimates:
                break
        for candidate in wave:
            low, high = self._bracket(candidate)
            self._searched.append((candidate, high - 1 if high - low == 1 else None))
        for state in order:
            self._add_candidates(state)
        return all(found is not None for _, found in self._searched[-len(wave) :])

    def _known(self, candidate: _Candidate) -> bool:
        """Does it err first where another solution did? (An error in the last piece is always its own.)"""
        low, high = self._bracket(candidate)
        return high - low == 1 and high < len(candidate.pieces)

    def _bracket(self, candidate: _Candidate) -> tuple[int, int]:
        """(pieces known to be right, fewest pieces known to hold an error): the first error lies between them.

        A right prefix overrules a wrong one that it continues: what was found from there, was reached through it.
        """
        low, high = 0, len(candidate.pieces)
        for end, ids in self._prefixes(candidate):
            estimate = self._states.get(ids)
            if estimate is None:
                continue
            if estimate.value > self._params.threshold:
                low, high = end, len(candidate.pieces)
            elif high == len(candidate.pieces):
                high = end
        return low, high

    def _prefixes(self, candidate: _Candidate) -> list[tuple[int, tuple[int, ...]]]:
        """(number of pieces, token ids) of every prefix that is neither empty nor the whole."""
        found: list[tuple[int, tuple[int, ...]]] = []
        length = 0
        for end, piece in enumerate(candidate.pieces[:-1], start=1):
            length += len(piece.token_ids)
            found.append((end, candidate.rollout.token_ids[:length]))
        return found

    # -- what comes of it -------------------------------------------------------------------------------------------

    def _wrong_records(self) -> tuple[list[StepLabels], list[tuple[int, ...]]]:
        """Records, one for each distinct prefix that ends with a first error; and those prefixes without the error."""
        records: list[StepLabels] = []
        before: list[tuple[int, ...]] = []
        emitted: set[tuple[int, ...]] = set()
        for candidate, first_error in self._searched:
            if first_error is None:
                continue
            ends = ids_of(candidate.pieces[: first_error + 1])
            if ends not in emitted:
                emitted.add(ends)
                before.append(ids_of(candidate.pieces[:first_error]))
                records.append(self._record(candidate, first_error))
        return records, before

    def _record(self, candidate: _Candidate, first_error: int) -> StepLabels:
        n = len(candidate.pieces)
        values: list[float | None] = [None] * n
        rollouts = [0] * n
        for end, ids in self._prefixes(candidate)[: first_error + 1]:
            estimate = self._states.get(ids)
            refuted = estimate is not None and end <= first_error and estimate.value <= self._params.threshold
            if estimate is not None and not refuted:
                values[end - 1], rollouts[end - 1] = estimate.value, len(estimate.rollouts)
        if first_error == n - 1:
            values[-1], rollouts[-1] = 0.0, 1  # the grade of the whole
        return self._labels(tuple(piece.text for piece in candidate.pieces), tuple(values), tuple(rollouts), False)

    def _right_records(self, root: Sequence[Rollout], before: Sequence[tuple[int, ...]]) -> list[StepLabels]:
        """Right solutions: the most frequent ones, and one through each of the prefixes."""
        texts = {r.token_ids: self._solution_texts(r) for r in dict.fromkeys(root) if r.finished}
        sampled = [texts[r.token_ids] for r in root if r.finished]
        right = [texts[r.token_ids] for r in root if r.right]
        picked = most_frequent(right, sampled, self._params.right_per_problem)
        if self._params.counterparts:
            through = [self._estimator.right_through(prefix) for prefix in dict.fromkeys(before)]
            picked += [self._solution_texts(rollout) for rollout in through if rollout is not None]
        kept = dict.fromkeys(steps for steps in picked if steps)
        return [self._labels(steps, (1.0,) * len(steps), (1,) * len(steps), True) for steps in kept]

    def _solution_texts(self, rollout: Rollout) -> tuple[str, ...]:
        if self._params.cut_at == "steps":
            return tuple(step.text for step in self._format.split_ids(rollout.token_ids))
        return tuple(step.text for step in split_span(rollout.token_ids, self._params.pieces, self._format))

    def _labels(
        self, steps: tuple[str, ...], values: tuple[float | None, ...], rollouts: tuple[int, ...], correct: bool
    ) -> StepLabels:
        return StepLabels(
            self._problem.id,
            self._problem.question,
            self._problem.answer,
            steps,
            values,
            rollouts,
            source=SOURCE,
            policy=self._policy,
            tree=self._problem.id,
            separator=self._format.spec.policy.separator if self._params.cut_at == "steps" else "",
            correct=correct,
        )

    def _tree(self) -> SearchTree:
        found = {
            ids: TreeState(
                None,
                (),
                sum(r.right for r in estimate.rollouts),
                len(estimate.rollouts),
                estimate.inherited,
                self._visits.get(ids, 0),
            )
            for ids, estimate in self._states.items()
        }
        states, index = build_states(found, self._texts)
        solutions = tuple(
            SearchedSolution(index[c.state], tuple(piece.text for piece in c.pieces), first_error)
            for c, first_error in self._searched
        )
        return SearchTree(self._problem.id, self._problem.question, self._problem.answer, states, solutions)

    def _counts(self, root: Sequence[Rollout], records: Sequence[StepLabels]) -> AnnotationCounts:
        labelled: set[tuple[int, ...]] = set()
        for candidate, _ in self._searched:
            low, high = self._bracket(candidate)
            labelled.update(ids for end, ids in self._prefixes(candidate) if end <= low or end == high)
        return AnnotationCounts(
            problems=1,
            solved=int(any(rollout.right for rollout in root)),
            solutions=len(root),
            right=sum(rollout.right for rollout in root),
            cut_off=sum(not rollout.finished for rollout in root),
            records=len(records),
            values=sum(value is not None for record in records for value in record.values),
            labels=len(labelled),
            prefixes=self._estimator.estimated,
            rollouts=self._estimator.sampled - len(root),
            inherited=self._estimator.inherited,
            searches=len(self._searched),
            repeats=self._repeats,
            answered=self._estimator.answered,
        )
