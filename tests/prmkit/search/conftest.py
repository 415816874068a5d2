"""A policy over characters that writes step by step, with every probability known, behind the engines' own driver."""

import random

import pytest

from prmkit.engines.driver import Driver
from prmkit.engines.stops import find_stop
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS
from prmkit.records import Completion
from prmkit.scoring.table import TableScorer
from prmkit.tasks.vocabulary import character_tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-*=?.,:() \n"


class StepPolicy:
    """Draws line after line from `lines(question, lines so far) -> {line: probability}`. No line ends the solution; a
    line that ends with "$" does so too, without a separator. The log-probability of every token is -1.

    Implements `prmkit.protocols.Engine`. `requests` keeps what was asked, `batches` counts pieces of work.
    """

    def __init__(self, lines, weight_version=0):
        self.format = BoundStepFormat(STEP_FORMATS["plain"], character_tokenizer(ALPHABET))
        self.weight_version = weight_version
        self.lines = lines
        self.requests = []
        self.batches = 0
        self._driver = Driver(self)

    async def generate(self, request):
        return await self._driver.submit(request)

    def reset(self):
        pass

    def is_full(self, jobs):
        return False

    def advance(self, jobs):
        self.batches += 1
        for job in jobs:
            self.requests.append(job.payload)
            try:
                job.future.set_result([self._sample(job.payload, i) for i in range(job.payload.n)])
            except ValueError as error:
                job.future.set_exception(error)
        return False

    def _sample(self, request, i):
        question, *lines = self.format.decode(request.prompt_ids).split("\n")
        assert lines.pop() == "", f"a prefix that does not end with a line: {lines}"
        rng = random.Random(f"{request.prompt_ids} {request.seed} {i}")
        text, stops = "", request.params.stop
        while len(text) <= request.params.max_tokens and not any(stop in text for stop in stops):
            options = self.lines(question, tuple(lines))
            if not options:
                break
            if request.params.temperature == 0:
                line = max(options, key=options.get)
            else:
                line = rng.choices(list(options), weights=list(options.values()))[0]
            lines.append(line)
            if line.endswith("$"):
                text += line[:-1]
                break
            text += line + "\n"
        ids = [*self.format.encode_piece(text), self.format.eos_id]
        stop = None
        for end in range(1, len(ids)):
            stop = find_stop(self.format.decode(ids[:end]), request.params.stop)
            if stop is not None:
                ids = ids[:end]
                break
        finish = "stop"
        if len(ids) > request.params.max_tokens:
            ids, finish, stop = ids[: request.params.max_tokens], "length", None
        return Completion(tuple(ids), (-1.0,) * len(ids), self.format.decode(ids), finish, stop, self.weight_version)


@pytest.fixture
def step_policy():
    return StepPolicy


@pytest.fixture
def digit_policy():
    """Three lines of a digit each, then an answer: "=" and their sum, or one more. All digits 1 to 3 are as likely."""

    def lines(question, written):
        if len(written) < 3:
            return {"1": 1.0, "2": 1.0, "3": 1.0}
        total = sum(map(int, written[:3]))
        return {} if len(written) > 3 else {f"={total}": 0.7, f"={total + 1}": 0.3}

    return StepPolicy(lines)


@pytest.fixture
def digit_scorer():
    """Scores a digit d with d / 4, a right sum with 0.9 and a wrong one with 0.2."""

    def score(question, steps):
        if steps[-1].isdigit():
            return int(steps[-1]) / 4
        return 0.9 if steps[-1] == f"={sum(map(int, steps[:-1]))}" else 0.2

    return TableScorer(score)
