"""A second opinion on solutions: where does a judge, who sees no labels, find the first wrong step?

A judge is a PRM (any StepScorer), or a model prompted to check the steps (any Engine). Its verdicts stand in a file
beside the records, under a key of question and steps, so that `curate.keep_agreed` can compare them with Monte-Carlo
labels (arXiv 2501.07301, section 3.1.3) without a record being rewritten.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR
from prmkit.chunks import ChunkedOutput
from prmkit.errors import ConfigError, DataError, EngineLostError, PrmkitError
from prmkit.items import Items
from prmkit.json_objects import read_objects, shown
from prmkit.seeding import derive_seed
from prmkit.types import Engine, GenerationRequest, SamplingParams, StepScorer

__all__ = [
    "EngineJudge",
    "Judge",
    "JudgePrompt",
    "Opinion",
    "ScorerJudge",
    "Verdict",
    "load_verdicts",
    "run_judge",
    "solution_items",
    "solution_key",
    "verdicts_path",
]

# What may go wrong with one solution alone, as in prmkit.annotation.runner.
_ISOLATED = (PrmkitError, ValueError, OSError)


def solution_key(record: StepLabels) -> str:
    """Identity of a solution: a hash of question and steps, the same whatever its labels."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (record.question, *record.steps):
        digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says of a solution.

    Attributes:
        first_error: index of the first wrong step, NO_ERROR (-1) for none, None when the judge gave no usable answer.
        reply: the words or scores it comes from, for people.
    """

    first_error: int | None
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An opinion on file.

    Attributes:
        key: `solution_key` of the record.
        judge: who says so.
        first_error, reply: see Opinion.
    """

    key: str
    judge: str
    first_error: int | None
    reply: str = ""


class Judge(Protocol):
    """Finds the first wrong step. Neither labels nor the gold answer are shown to it."""

    @property
    def name(self) -> str: ...

    async def judge(self, question: str, steps: Sequence[str]) -> Opinion: ...


class ScorerJudge:
    """A PRM as judge: the first step that it scores at most `threshold` is wrong.

    Args:
        scorer: the PRM.
        name: for the verdicts.
        threshold: in [0, 1).
    """

    def __init__(self, scorer: StepScorer, name: str, threshold: float = 0.5) -> None:
        if not 0.0 <= threshold < 1.0:
            raise ConfigError("judge.threshold", threshold, "a number in [0, 1)")
        self.name = name
        self._scorer, self._threshold = scorer, threshold

    async def judge(self, question: str, steps: Sequence[str]) -> Opinion:
        scores = (await self._scorer.score(question, steps)).values
        wrong = next((index for index, score in enumerate(scores) if score <= self._threshold), NO_ERROR)
        return Opinion(wrong, " ".join(f"{score:.3f}" for score in scores))


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """The words put to a model that judges.

    Attributes:
        template: the request; `{question}`, `{steps}` and `{answer}` are filled in.
        step: one step of `{steps}`; `{i}` is its number, from 1.
        answer: what the reply's last line must begin with, before the number.
    """

    template: str = (
        "Below are a problem and a solution in numbered steps. Check the steps in their order, each against the "
        "problem and against the steps before it, and find the first one with a mistake: a wrong calculation, a false "
        "statement, a misread problem, or a conclusion that does not follow. What merely builds on an earlier mistake "
        "is not the first.\n\n"
        "Problem:\n{question}\n\n"
        "Solution:\n{steps}\n\n"
        "Say what you checked. Then end with one line, and nothing behind it:\n"
        "{answer} N\n"
        "where N is the number of the first wrong step, or 0 if every step is right."
    )
    step: str = "[{i}] {step}"
    answer: str = "First wrong step:"

    def __post_init__(self) -> None:
        for name, needed in (("template", ("question", "steps")), ("step", ("i", "step"))):
            for place in needed:
                if f"{{{place}}}" not in getattr(self, name):
                    raise ConfigError(f"judge.prompt.{name}", getattr(self, name)[:60], f"text with {{{place}}} in it")
        if not self.answer.strip():
            raise ConfigError("judge.prompt.answer", self.answer, "text that is not blank")

    def render(self, question: str, steps: Sequence[str]) -> str:
        """The request for one solution."""
        listed = "\n".join(_filled(self.step, i=str(i), step=step) for i, step in enumerate(steps, start=1))
        return _filled(self.template, question=question, steps=listed, answer=self.answer)

    def parse(self, reply: str, n_steps: int) -> int | None:
        """Index of the first wrong step, or NO_ERROR. None unless the last line is the answer and names a step."""
        lines = reply.strip().splitlines()
        match = re.fullmatch(re.escape(self.answer) + r"\s*(\d{1,9})", lines[-1].strip()) if lines else None
        if match is None or int(match[1]) > n_steps:
            return None
        return int(match[1]) - 1 if int(match[1]) > 0 else NO_ERROR


class EngineJudge:
    """A model prompted as judge. The engine's step format is that of a model which answers requests, e.g. a chat one.

    Args:
        engine: the model.
        name: for the verdicts.
        prompt: what it is asked.
        sampling: how it answers; greedily as it stands. A reply that the limit cuts off counts as none.
        seed: of its samples.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        prompt: JudgePrompt = JudgePrompt(),
        sampling: SamplingParams = SamplingParams(max_tokens=2048, temperature=0.0),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.name = name
        self._engine, self._prompt, self._sampling, self._seed = engine, prompt, sampling, seed

    async def judge(self, question: str, steps: Sequence[str]) -> Opinion:
        request = self._prompt.render(question, steps)
        ids = tuple(self._engine.format.prompt_ids(request))
        seed = derive_seed(self._seed, "judge", request)
        (completion,) = await self._engine.generate(GenerationRequest(ids, 1, seed, self._sampling))
        finished = completion.finish_reason == "stop"
        return Opinion(self._prompt.parse(completion.text, len(steps)) if finished else None, completion.text)


def verdicts_path(records: str | Path) -> Path:
    """Where the verdicts on a file of records stand, as JSON lines. Not *.jsonl: a folder's records are all *.jsonl."""
    path = Path(records)
    return path.with_name(f"{path.name}.verdicts")


def load_verdicts(path: str | Path) -> dict[str, Verdict]:
    """Verdicts by key; the last one on a solution holds. DataError (file:line) for a malformed line."""
    verdicts: dict[str, Verdict] = {}
    for where, line in read_objects(path):
        error, reply = line.get("first_error"), line.get("reply", "")
        if not isinstance(line.get("key"), str) or not isinstance(line.get("judge"), str):
            raise DataError(f"{where}: got fields {shown(sorted(line))}; accepted: a verdict, with key and judge")
        if error is not None and (type(error) is not int or error < NO_ERROR):
            raise DataError(f"{where}: first_error: got {shown(error)}; accepted: an index, -1 for none, or null")
        if not isinstance(reply, str):
            raise DataError(f"{where}: reply: got {shown(reply)}; accepted: a string")
        verdicts[line["key"]] = Verdict(line["key"], line["judge"], error, reply)
    return verdicts


def run_judge(
    records: Sequence[StepLabels],
    judge: Judge,
    output: ChunkedOutput,
    in_flight: int = 100,
    on_verdict: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Judge every distinct solution once; verdicts are appended in the records' order. A killed run goes on.

    Args:
        records: the same in every attempt.
        judge: who judges.
        output: where verdicts go.
        in_flight: solutions judged at once, and the unit of resuming; at least 1.
        on_verdict: called with the number of verdicts so far.

    Returns:
        The output's state: `verdicts`, `unparsable` among them, and `failures` (key and error of solutions that
        have no verdict).

    Raises:
        DataError: every solution of the first chunk failed; the message carries the first failure.
    """
    if in_flight < 1:
        raise ConfigError("judge.in_flight", in_flight, "an integer of at least 1")
    if not output.complete:
        asyncio.run(_judge_chunks(records, judge, output, in_flight, on_verdict or (lambda _: None)))
    return output.state


async def _judge_chunks(
    records: Sequence[StepLabels], judge: Judge, output: ChunkedOutput, size: int, on_verdict: Callable[[int], None]
) -> None:
    state: dict[str, Any] = {"verdicts": 0, "unparsable": 0, "failures": [], **output.state}
    for number, chunk in enumerate(_chunks(records, size)):
        if number < output.chunks:
            continue
        results = await asyncio.gather(*(_opinion(record, judge) for _, record in chunk))
        failures = [
            {"key": key, "error": result}
            for (key, _), result in zip(chunk, results, strict=True)
            if isinstance(result, str)
        ]
        if number == 0 and len(failures) == len(chunk):
            raise DataError(f"judging all of the first {len(chunk)} solutions failed; {failures[0]['error']}")
        verdicts = [
            Verdict(key, judge.name, result.first_error, result.reply)
            for (key, _), result in zip(chunk, results, strict=True)
            if isinstance(result, Opinion)
        ]
        state = {
            "verdicts": state["verdicts"] + len(verdicts),
            "unparsable": state["unparsable"] + sum(verdict.first_error is None for verdict in verdicts),
            "failures": state["failures"] + failures,
        }
        output.append([asdict(verdict) for verdict in verdicts], state)
        on_verdict(state["verdicts"])
    output.finish(state)


async def _opinion(record: StepLabels, judge: Judge) -> Opinion | str:
    """The opinion, or why there is none."""
    try:
        return await judge.judge(record.question, record.steps)
    except EngineLostError:
        raise
    except _ISOLATED as error:
        return f"{type(error).__name__}: {error}"


def solution_items(records: Sequence[StepLabels], chunk: int) -> Items:
    """The distinct solutions that are judged, by question and steps: their labels are not shown to a judge.

    Args:
        records: as in `run_judge`.
        chunk: its `in_flight`.
    """
    return Items(tuple(key for part in _chunks(records, chunk) for key, _ in part), chunk, "solutions")


def _chunks(records: Sequence[StepLabels], size: int) -> Iterator[list[tuple[str, StepLabels]]]:
    """Distinct solutions with their keys, some at a time; those without steps are passed over."""
    seen: set[str] = set()
    chunk: list[tuple[str, StepLabels]] = []
    for record in records:
        key = solution_key(record)
        if key in seen or not record.steps:
            continue
        seen.add(key)
        chunk.append((key, record))
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _filled(template: str, **values: str) -> str:
    """The template with its places filled in one pass: what is filled in may itself look like a place."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
