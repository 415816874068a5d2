"""GSM8K, MATH, MATH-500, BIG-Bench-Hard, any JSON-lines file, any hub dataset: where each finds its records and how its
answers are judged.

`data` names a file, or a folder with the file names listed in each function; None loads the set by name from the hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prmkit.errors import ConfigError, DataError
from prmkit.grading import DEFAULT_EXTRACTORS, ExactGrader, MathGrader, extract_answer, get_extractors
from prmkit.grading.extract import extract_boxed, extract_hashes
from prmkit.protocols import Grader
from prmkit.records import Problem
from prmkit.tasks.records import Fields, RecordTask, Source, hub_source, json_source, jsonl_source

__all__ = ["bbh", "gsm8k", "hub", "jsonl", "math", "math500"]

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
MATH_TRAIN_FILE = "train_problems_answers.json"
MATH_TEST_FILE = "math500.jsonl"
BBH_EXTRACTORS = ("boxed", "answer_is", "final_equation")

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def gsm8k(data: str | None = None) -> RecordTask:
    """GSM8K: `question` and `answer`, whose last line is `#### n`. Files: train.jsonl, test.jsonl.

    Solutions lose their calculator annotations (`<<1+1=2>>`) and keep their last line.
    """
    if data is None:
        sources = {split: hub_source("openai/gsm8k", split, ("main",)) for split in ("train", "test")}
    else:
        sources = _jsonl_sources(data, ("train", "test"))

    def convert(problem: Problem, where: str) -> Problem:
        answer = extract_hashes(problem.answer)
        if answer is None:
            raise DataError(f"{where}: the answer has no last line '#### n'")
        return replace(problem, answer=answer, solution=_ANNOTATION.sub("", problem.answer))

    grader = MathGrader(extractors=("hashes", "boxed", "answer_is", "last_number"))
    return RecordTask("gsm8k", sources, Fields(), grader, convert=convert)


def math500(data: str | None = None) -> RecordTask:
    """MATH-500, split test. File: math500.jsonl. A test set: not to be trained on."""
    if data is None:
        source = hub_source("HuggingFaceH4/MATH-500", "test")
    else:
        path = Path(data)
        source = jsonl_source(path / MATH_TEST_FILE if path.is_dir() else path)
    fields = Fields("problem", "answer", "solution", "unique_id", "level")
    return RecordTask("math500", {"test": source}, fields, MathGrader())


def math(data: str | None = None) -> RecordTask:
    """MATH's 7,500 training problems, split train. File: train_problems_answers.json. For testing there is `math500`.

    Problems with an empty answer are skipped, with a warning that counts them.
    """
    if data is not None:
        path = Path(data)
        source = jsonl_source(path / MATH_TRAIN_FILE if path.is_dir() else path)
        return RecordTask("math", {"train": source}, Fields("problem", "final_answer"), MathGrader(), skip_empty=True)

    def convert(problem: Problem, _where: str) -> Problem:
        return replace(problem, answer=extract_boxed(problem.answer) or "")

    source = hub_source("EleutherAI/hendrycks_math", "train", MATH_SUBJECTS)
    fields = Fields("problem", "solution", "solution", None, "level")
    return RecordTask("math", {"train": source}, fields, MathGrader(), convert=convert, skip_empty=True)


def bbh(
    data: str | None = None,
    subset: str = "multistep_arithmetic_two",
    extractors: Sequence[str] = BBH_EXTRACTORS,
) -> RecordTask:
    """A subset of BIG-Bench-Hard, split test. Files: <subset>.json with `examples` of `input` and `target`.

    Benchmark data, never to be trained on.

    Args:
        data: a file, a folder, or None for the hub.
        subset: e.g. "multistep_arithmetic_two".
        extractors: how answers are found; by default `\\boxed{}`, "the answer is", and a last line `= answer`.
    """
    if data is None:
        source = hub_source("SaylorTwift/bbh", "test", (subset,))
    else:
        path = Path(data)
        source = json_source(path / f"{subset}.json" if path.is_dir() else path, "examples")
    return RecordTask("bbh", {"test": source}, Fields("input", "target"), MathGrader(extractors=extractors))


def jsonl(
    data: str | None = None,
    question_field: str = "question",
    answer_field: str = "answer",
    solution_field: str | None = "solution",
    id_field: str | None = None,
    level_field: str | None = None,
    grader: str = "math",
    extractors: Sequence[str] = DEFAULT_EXTRACTORS,
    tolerance: float = 0.0,
) -> RecordTask:
    """Any JSON-lines file, or a folder of them. Splits are named after the files: train.jsonl holds split train.

    Args:
        data: the file or folder; required.
        question_field, answer_field: names of fields that every record has.
        solution_field: name of a field that records may have; None ignores it.
        id_field: name of a field with an id unique within its split; None numbers the records.
        level_field: name of a field with a difficulty label; None when there is none.
        grader: "math" (equivalence of expressions) or "exact" (equality of text).
        extractors: names of `prmkit.grading.EXTRACTORS`, tried in order.
        tolerance: relative difference allowed between numbers of which one has a decimal point, in [0, 1); 0 compares
            them exactly. Of grader "math" only.
    """
    if data is None:
        raise ConfigError("task.data", None, "a .jsonl file or a folder of them")
    fields = Fields(question_field, answer_field, solution_field, id_field, level_field)
    return RecordTask("jsonl", _jsonl_sources(data), fields, _grader(grader, extractors, tolerance))


def hub(
    data: str | None = None,
    config: str | None = None,
    splits: Sequence[str] = ("train", "test"),
    question_field: str = "question",
    answer_field: str = "answer",
    solution_field: str | None = "solution",
    id_field: str | None = None,
    level_field: str | None = None,
    grader: str = "math",
    extractors: Sequence[str] = DEFAULT_EXTRACTORS,
    tolerance: float = 0.0,
    streaming: bool = True,
    revision: str | None = None,
) -> RecordTask:
    """Any dataset that `datasets.load_dataset` can load: a hub name or a local folder.

    Args:
        data: the dataset's name; required.
        config: its configuration; None for the default one.
        splits: names of its splits; one is loaded when its problems are first asked for.
        streaming: read rows as they are asked for, instead of downloading the whole set first.
        revision: commit, tag or branch on the hub; None for the newest.

    The other arguments are those of `jsonl`.
    """
    if data is None:
        raise ConfigError("task.data", None, "the name of a hub dataset, e.g. 'openai/gsm8k'")
    fields = Fields(question_field, answer_field, solution_field, id_field, level_field)
    options = {"streaming": streaming, "revision": revision}
    sources = {split: hub_source(data, split, (config,), **options) for split in splits}
    return RecordTask("hub", sources, fields, _grader(grader, extractors, tolerance))


def _grader(kind: str, extractors: Sequence[str], tolerance: float) -> Grader:
    if kind == "math":
        return MathGrader(extractors=extractors, tolerance=tolerance)
    if kind == "exact":
        if tolerance:
            raise ConfigError("task.tolerance", tolerance, "0 with grader exact", "Take task.grader math.")
        get_extractors(extractors)
        names = tuple(extractors)
        return ExactGrader(lambda text: extract_answer(text, names))
    raise ConfigError("task.grader", kind, "math | exact")


def _jsonl_sources(data: str, names: Sequence[str] | None = None) -> dict[str, Source]:
    """A source for every file: the one file named, or the .jsonl files of a folder (those of `names` when given)."""
    path = Path(data)
    if path.is_file():
        return {path.stem: jsonl_source(path)}
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    files = sorted(file for file in path.glob("*.jsonl") if names is None or file.stem in names)
    if not files:
        wanted = "*.jsonl" if names is None else " or ".join(f"{name}.jsonl" for name in names)
        raise DataError(f"{path}: no file {wanted} in this folder")
    return {file.stem: jsonl_source(file) for file in files}
