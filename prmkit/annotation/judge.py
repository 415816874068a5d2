"""A second opinion on solutions: where does a judge, who sees no labels, find the first wrong step?

A judge is a PRM (any StepScorer), or a model prompted to check the steps (any Engine). Its verdicts stand in a file
beside the records, under a key of question and steps, so that `curate.keep_agreed` can compare them with Monte-Carlo
labels (arXiv 2501.07301, section 3.1.3) without a record being rewritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR
from prmkit.errors import ConfigError, DataError
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.jobs.items import Items
from prmkit.jobs.runner import Failure, Part, Work, isolated, run
from prmkit.json_objects import read_objects, shown
from prmkit.protocols import Engine, StepScorer
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.seeding import derive_seed

__all__ = [
    "EngineJudge",
    "Judge",
    "JudgePrompt",
    "Opinion",
    "ScorerJudge",
    "Verdict",
    "judge_work",
    "load_verdicts",
    "run_judge",
    "solution_items",
    "solution_key",
    "verdicts_path",
]


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


def judge_work(
    records: Sequence[StepLabels], judge: Judge, in_flight: int = 100, on_verdict: Callable[[], None] | None = None
) -> Work[tuple[str, StepLabels], Opinion | Failure]:
    """The judging of every distinct solution once, for `prmkit.jobs.runner`; verdicts in the records' order.

    The state holds `verdicts`, `unparsable` among them, and `failures` (key and error of solutions that have no
    verdict).

    Args:
        records: the same in every attempt; those without steps are passed over.
        judge: who judges.
        in_flight: solutions judged at once, and the unit of resuming; at least 1.
        on_verdict: called whenever a solution is done.
    """
    if in_flight < 1:
        raise ConfigError("judge.in_flight", in_flight, "an integer of at least 1")

    async def one(item: tuple[str, StepLabels]) -> Opinion | Failure:
        result = await isolated(judge.judge(item[1].question, item[1].steps))
        if on_verdict is not None:
            on_verdict()
        return result

    def part(items: Sequence[tuple[str, StepLabels]], results: Sequence[Opinion | Failure]) -> Part:
        pairs = [(key, result) for (key, _), result in zip(items, results, strict=True)]
        verdicts = [Verdict(key, judge.name, r.first_error, r.reply) for key, r in pairs if isinstance(r, Opinion)]
        failures = [{"key": key, "error": r.error} for key, r in pairs if isinstance(r, Failure)]
        return Part([asdict(verdict) for verdict in verdicts], state=_state(verdicts, failures))

    return Work(
        _distinct(records),
        one,
        part,
        lambda _, result: result.error if isinstance(result, Failure) else None,
        in_flight,
        in_flight,
        "solutions",
        start=_state([], []),
    )


def run_judge(
    records: Sequence[StepLabels],
    judge: Judge,
    output: ChunkedOutput,
    in_flight: int = 100,
    on_verdict: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Judge what the output does not hold yet: `judge_work`, by this process alone; returns the state."""
    return run(judge_work(records, judge, in_flight, on_verdict), output)


def _state(verdicts: Sequence[Verdict], failures: list[dict[str, str]]) -> dict[str, Any]:
    unparsable = sum(verdict.first_error is None for verdict in verdicts)
    return {"verdicts": len(verdicts), "unparsable": unparsable, "failures": failures}


def solution_items(records: Sequence[StepLabels], chunk: int) -> Items:
    """The distinct solutions that are judged, by question and steps: their labels are not shown to a judge.

    Args:
        records: as in `run_judge`.
        chunk: its `in_flight`.
    """
    return Items(tuple(key for key, _ in _distinct(records)), chunk, "solutions")


def _distinct(records: Sequence[StepLabels]) -> list[tuple[str, StepLabels]]:
    """Distinct solutions with their keys, by first appearance; those without steps are passed over."""
    found: dict[str, StepLabels] = {}
    for record in records:
        if record.steps:
            found.setdefault(solution_key(record), record)
    return list(found.items())


def _filled(template: str, **values: str) -> str:
    """The template with its places filled in one pass: what is filled in may itself look like a place."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
