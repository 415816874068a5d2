"""A policy whose every probability is known, over characters: for tests of search, annotation and evaluation."""

import random
from collections.abc import Callable

import pytest

from prmkit.grading.exact import ExactGrader
from prmkit.steps import STEP_FORMATS
from prmkit.tasks.vocabulary import character_tokenizer
from prmkit.types import Completion, Problem


class TreePolicy:
    """Draws step after step from `next_steps(steps so far) -> {step: probability}`; no next step ends the solution.

    Implements `prmkit.types.Engine`. Sample i depends on (prompt, seed, i) only. `requests` keeps all that was asked.
    """

    def __init__(self, next_steps: Callable[[tuple[str, ...]], dict[str, float]], weight_version: int = 0):
        self.format = STEP_FORMATS["plain"].bind(character_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789+-*=?. \n"))
        self.weight_version = weight_version
        self.next_steps = next_steps
        self.requests = []

    async def generate(self, request):
        self.requests.append(request)
        text = self.format.decode(request.prompt_ids)
        assert text.endswith("\n"), f"a prefix that does not end with a step: {text!r}"
        prefix = tuple(text[:-1].split("\n")[1:])
        return [self._sample(prefix, request, i) for i in range(request.n)]

    def _sample(self, prefix, request, i):
        rng = random.Random(f"{request.prompt_ids} {request.seed} {i}")
        steps = prefix
        while options := self.next_steps(steps):
            if request.params.temperature == 0:
                choice = max(options, key=options.get)
            else:
                choice = rng.choices(list(options), weights=list(options.values()))[0]
            steps = (*steps, choice)
        text = "".join(step + "\n" for step in steps[len(prefix) :])
        ids = (*self.format.encode_piece(text), self.format.eos_id)
        cut = ids[: request.params.max_tokens]
        finish = "stop" if len(cut) == len(ids) else "length"
        return Completion(cut, (-1.0,) * len(cut), self.format.decode(cut), finish, None, self.weight_version)


@pytest.fixture
def tree_policy():
    return TreePolicy


@pytest.fixture
def last_step_grader():
    """The answer is what follows `=` in the last step."""
    return ExactGrader(lambda text: text.rpartition("=")[2].strip() or None if "=" in text else None)


@pytest.fixture
def coin_problem():
    return Problem("p0", "q", "1")
