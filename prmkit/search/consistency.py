"""Answers of solutions while they are searched for, and whether a second model comes to the same ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import Engine, Grader
from prmkit.records import GenerationRequest, Problem
from prmkit.search.budget import Budget
from prmkit.search.explorer import StepwiseParams
from prmkit.search.sampling import solution_text
from prmkit.search.tree import Node
from prmkit.seeding import derive_seed

__all__ = ["Answers", "disagreeing"]


class Answers:
    """Answers of solution texts, every distinct solution read once.

    Args:
        grader: extracts and compares.
        fmt: joins steps.
    """

    def __init__(self, grader: Grader, fmt: BoundStepFormat) -> None:
        self._grader = grader
        self._format = fmt
        self._known: dict[tuple[str, ...], str | None] = {}
        self._classes: dict[tuple[str | None, ...], dict[str | None, int]] = {}

    def of(self, steps: tuple[str, ...]) -> str | None:
        """The final answer of a solution; None when there is none."""
        if steps not in self._known:
            self._known[steps] = self._grader.extract(solution_text(steps, self._format))
        return self._known[steps]

    def classes(self, ends: Sequence[Node]) -> list[int]:
        """Equivalence classes of the answers of solutions, as `Grader.group` numbers them."""
        return self.same([self.of(node.texts()) for node in ends])

    def same(self, answers: Sequence[str | None]) -> list[int]:
        """`Grader.group`, asked about every set of distinct answers once."""
        known = tuple(dict.fromkeys(answers))
        if known not in self._classes:
            self._classes[known] = dict(zip(known, self._grader.group(known), strict=True))
        return [self._classes[known][answer] for answer in answers]


async def disagreeing(
    problem: Problem,
    ends: Sequence[Node],
    discriminator: Engine,
    answers: Answers,
    params: StepwiseParams,
    mask: tuple[float, float],
    budget: Budget,
) -> set[Node]:
    """Solutions that a second model, shown a part of their steps, ends with another answer (arXiv 2408.06195, 3.3).

    Args:
        problem: what they solve.
        ends: their last nodes.
        discriminator: the second model.
        answers: reads and compares.
        params: how to sample.
        mask: the share of a solution's steps that is shown is drawn evenly between these two, in [0, 1).
        budget: pays; solutions whose completion it does not pay for to the end are left out.
    """
    fmt = discriminator.format
    separator = fmt.spec.policy.separator
    nodes = [node for node in dict.fromkeys(ends) if node.texts()]
    shown = [_shown(problem, node.texts(), params.seed, mask) for node in nodes]
    requests = []
    for steps in shown:
        ids = (*fmt.prompt_ids(problem.question), *(i for step in steps for i in fmt.encode_piece(step + separator)))
        seed = derive_seed(params.seed, "search", "discriminator", problem.id, *ids)
        requests.append(GenerationRequest(ids, 1, seed, params.sampling))
    replies = await budget.generate_all(discriminator, requests)
    refuted = set()
    for node, steps, completions in zip(nodes, shown, replies, strict=True):
        for completion in completions:
            if completion.finish_reason == "stop":
                whole = (*steps, *fmt.split_text(completion.text))
                own, other = answers.same([answers.of(node.texts()), answers.of(whole)])
                if own < 0 or own != other:
                    refuted.add(node)
    return refuted


def _shown(problem: Problem, steps: tuple[str, ...], seed: int, mask: tuple[float, float]) -> tuple[str, ...]:
    """The part of a solution that the second model goes on from: at least the last step is left out."""
    share = random.Random(derive_seed(seed, "mask", problem.id, *steps)).uniform(*mask)
    return steps[: min(int(share * len(steps)), len(steps) - 1)]
