"""Readers of step-label files: our own records, PRM800K, Math-Shepherd and MATH-APS (flat and tree).

A parser turns one JSON object into the records it holds; `load_records` runs the right one over files. Steps come
without separators, tags and "Step i: " prefixes: putting those in is the step format's matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import ConfigError, DataError
from prmkit.io import expand_paths, parse_json_line

__all__ = [
    "RecordFormat",
    "detect_format",
    "load_records",
    "parse_records",
    "read_math_aps",
    "read_math_shepherd",
    "read_prm800k",
]

RecordFormat = Literal["auto", "prmkit", "prm800k", "math-shepherd", "math-aps"]

_STEP_TAG = "ки"
_FIRST_STEP = re.compile(r"(?:^|(?<=\s))Step\s*1\s*:")
_STEP_PREFIX = re.compile(r"\s*Step\s*\d+\s*:")


def detect_format(record: Mapping[str, Any], where: str = "record") -> str:
    """Name of the format that a file's first JSON object is in. DataError when it is none of them."""
    if "steps" in record and "values" in record:
        return "prmkit"
    if isinstance(record.get("label"), Mapping) and "steps" in record["label"]:
        return "prm800k"
    if isinstance(record.get("input"), str) and isinstance(record.get("label"), str):
        return "math-shepherd"
    if "reasoning_steps" in record:
        return "math-aps"
    raise DataError(
        f"{where}: fields {sorted(record)} are no known format of step labels; known: "
        f"{', '.join(get_args(RecordFormat)[1:])}"
    )


def parse_records(record: Mapping[str, Any], format: str, where: str) -> list[StepLabels]:
    """Records held by one JSON object in a named format ("auto" looks at the object).

    Raises:
        ConfigError: unknown format.
        DataError: the object does not fit the format; `where` (file:line) starts the message.
    """
    if format not in get_args(RecordFormat):
        raise ConfigError("format", format, " | ".join(get_args(RecordFormat)))
    return _PARSERS[detect_format(record, where) if format == "auto" else format](record, where)


def load_records(paths: str | Path | Sequence[str | Path], format: str = "auto") -> Iterator[StepLabels]:
    """Records of one or several files, in order.

    Args:
        paths: a file, a folder (its `*.jsonl` files), a glob pattern, or a list of those.
        format: see RecordFormat; "auto" looks at each file's first object.

    Raises:
        DataError: missing file, malformed line, or an object that does not fit; the message starts with `file:line`.
    """
    if format not in get_args(RecordFormat):
        raise ConfigError("format", format, " | ".join(get_args(RecordFormat)))
    return _records_of(expand_paths(paths), format)


def read_prm800k(path: str | Path, neutral: float = 1.0) -> Iterator[StepLabels]:
    """Records of a PRM800K file as published: several rated completions a step, one of which was continued.

    Every rated alternative gives one record: the steps that were continued before it, then it. For 1, 3 and 2
    alternatives in three steps that is 1 + 3 + 2 = 6 records. Only the continued completion (chosen, or written by a
    human where none was good enough) leads on to the next step: the labellers rated what follows behind that one
    and no other. Ratings: -1 becomes 0.0, 0 and 1 become 1.0, as PRM800K's own paper counts them
    (arXiv 2305.20050); a human completion has no rating and becomes None.

    Args:
        path: the file.
        neutral: value of rating 0, in [0, 1].
    """
    if not 0.0 <= neutral <= 1.0:
        raise ConfigError("neutral", neutral, "a number in [0, 1]")
    return _records_with(partial(_parse_prm800k, neutral=neutral), [Path(path)])


def read_math_shepherd(path: str | Path, strip_prefix: bool = True) -> Iterator[StepLabels]:
    """Records of a Math-Shepherd file: `input` with `ки` behind each step, `label` with + or - in its place.

    The question is what stands before "Step 1:". The last label is that of the finished solution, so it says whether
    the final answer is right.

    Args:
        path: the file.
        strip_prefix: take "Step i: " off the steps. The step format "math-shepherd" puts it there by itself
            (`before_step`); keep it only for a format that does not.
    """
    return _records_with(partial(_parse_math_shepherd, strip_prefix=strip_prefix), [Path(path)])


def read_math_aps(path: str | Path) -> Iterator[StepLabels]:
    """Records of a MATH-APS file, flat (`solution_prefix`) or tree (`children`): one a path from root to leaf.

    In the flat form a prefix holds the question as well as all text so far. The question is taken off, and a prefix
    that begins with another one is its continuation: the steps are the differences. Prefixes that occur several
    times have the mean of their values. The value of the bare question has no step to stand at and is left out.
    Rollouts are not in the file; they read 0.
    """
    return _records_with(_parse_math_aps, [Path(path)])


def _records_of(files: Iterable[Path], format: str) -> Iterator[StepLabels]:
    for file in files:
        known = format
        for number, record in _numbered(file):
            where = f"{file}:{number}"
            known = detect_format(record, where) if known == "auto" else known
            yield from _PARSERS[known](record, where)


def _records_with(
    parse: Callable[[Mapping[str, Any], str], list[StepLabels]], files: Iterable[Path]
) -> Iterator[StepLabels]:
    for file in files:
        for number, record in _numbered(file):
            yield from parse(record, f"{file}:{number}")


def _numbered(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file; blank lines are skipped."""
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_json_line(line, f"{file}:{number}")


def _parse_prmkit(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    return [StepLabels.from_json(record, where)]


# -- PRM800K --------------------------------------------------------------------------------------------------------


def _parse_prm800k(record: Mapping[str, Any], where: str, neutral: float = 1.0) -> list[StepLabels]:
    question = _get(record, "question", dict, where)
    label = _get(record, "label", dict, where)
    problem = _get(question, "problem", str, f"{where}: question")
    answer = question.get("ground_truth_answer")
    levels = _get(label, "steps", list, f"{where}: label")
    path: list[tuple[str, float | None]] = []
    rows: list[StepLabels] = []
    for number, level in enumerate(levels):
        place = f"{where}: label.steps[{number}]"
        alternatives = [
            _rated(completion, f"{place}.completions[{index}]", neutral)
            for index, completion in enumerate(level.get("completions") or [])
        ]
        chosen = level.get("chosen_completion")
        if chosen is not None and not (isinstance(chosen, int) and 0 <= chosen < len(alternatives)):
            raise DataError(f"{place}.chosen_completion: got {chosen!r}; accepted: null or 0..{len(alternatives) - 1}")
        solved = label.get("finish_reason") == "solution" and number == len(levels) - 1
        for index, alternative in enumerate(alternatives):
            steps, values = zip(*path, alternative, strict=True)
            rows.append(
                StepLabels(
                    problem_id=question_id(problem),
                    question=problem,
                    answer=answer,
                    steps=steps,
                    values=values,
                    rollouts=(0,) * len(steps),
                    source="prm800k",
                    policy="",
                    correct=True if solved and index == chosen else None,
                )
            )
        if chosen is not None:
            path.append(alternatives[chosen])
        elif level.get("human_completion"):
            path.append(_rated(level["human_completion"], f"{place}.human_completion", neutral))
        else:
            break  # nothing was continued: no step behind this one has a known prefix
    return rows


def _rated(completion: Any, where: str, neutral: float) -> tuple[str, float | None]:
    """(text, value) of one completion."""
    text = _get(completion, "text", str, where)
    rating = completion.get("rating")
    values = {None: None, -1: 0.0, 0: neutral, 1: 1.0}
    if isinstance(rating, bool) or rating not in values:
        raise DataError(f"{where}.rating: got {rating!r}; accepted: -1, 0, 1 or null")
    return text, values[rating]


# -- Math-Shepherd --------------------------------------------------------------------------------------------------


def _parse_math_shepherd(record: Mapping[str, Any], where: str, strip_prefix: bool = True) -> list[StepLabels]:
    text = _get(record, "input", str, where)
    label = _get(record, "label", str, where)
    pieces = text.split(_STEP_TAG)
    if len(pieces) < 2:
        raise DataError(f"{where}: input: got no {_STEP_TAG!r}; accepted: text with {_STEP_TAG!r} behind every step")
    question, pieces[0] = _split_question(pieces[0], where)
    values: list[float | None] = list(_tag_values(text, label, where))
    if pieces[-1].strip():
        values.append(None)  # text behind the last tag: a step that nobody labelled
    else:
        pieces.pop()
    steps = tuple((_STEP_PREFIX.sub("", piece, count=1) if strip_prefix else piece).strip() for piece in pieces)
    return [
        StepLabels(
            problem_id=question_id(question),
            question=question,
            answer=None,
            steps=steps,
            values=tuple(values),
            rollouts=(0,) * len(steps),
            source="math-shepherd",
            policy="",
            correct=None if values[-1] is None else values[-1] > 0,
        )
    ]


def _split_question(opening: str, where: str) -> tuple[str, str]:
    """Question and first step. A question may itself speak of a "Step 1:": the last one before the first tag counts."""
    starts = [match.start() for match in _FIRST_STEP.finditer(opening)]
    if not starts:
        raise DataError(f"{where}: input: no 'Step 1:' before the first {_STEP_TAG!r}; it ends the question")
    return opening[: starts[-1]].strip(), opening[starts[-1] :]


def _tag_values(text: str, label: str, where: str) -> Iterator[float]:
    """1.0 or 0.0 for every tag: `label` is `text` with + or - in the place of each tag."""
    place = 0
    for piece in text.split(_STEP_TAG)[:-1]:
        sign = label[place + len(piece) : place + len(piece) + 1]
        if label[place : place + len(piece)] != piece or sign not in ("+", "-"):
            raise DataError(
                f"{where}: label: differs from input at character {place}; accepted: the input with + or - in "
                f"place of each {_STEP_TAG!r}"
            )
        yield float(sign == "+")
        place += len(piece) + 1


# -- MATH-APS -------------------------------------------------------------------------------------------------------


def _parse_math_aps(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    question = _get(record, "question", str, where)
    nodes = record.get("reasoning_steps")
    if isinstance(nodes, list):
        paths = _flat_paths(question, nodes, where)
    elif isinstance(nodes, dict):
        paths = _tree_paths(nodes, f"{where}: reasoning_steps")
    else:
        raise DataError(f"{where}: reasoning_steps: got {nodes!r}; accepted: a list of prefixes, or a tree")
    answer = record.get("final_answer")
    return [
        StepLabels(
            problem_id=question_id(question),
            question=question,
            answer=None if answer is None else str(answer),
            steps=tuple(text for text, _ in path),
            values=tuple(value for _, value in path),
            rollouts=(0,) * len(path),
            source="math-aps",
            policy="",
            tree=record.get("question_id"),
        )
        for path in paths
    ]


def _flat_paths(question: str, nodes: list[Any], where: str) -> Iterator[list[tuple[str, float]]]:
    """Paths to the prefixes that no other one continues, in order of first appearance."""
    values: dict[str, list[float]] = {}
    for number, node in enumerate(nodes):
        place = f"{where}: reasoning_steps[{number}]"
        prefix = _get(node, "solution_prefix", str, place)
        if not prefix.startswith(question):
            raise DataError(
                f"{place}.solution_prefix: got {prefix[:40]!r}...; accepted: text that begins with question"
            )
        values.setdefault(prefix[len(question) :], []).append(_value(node, place))
    # In sorted order every prefix stands before its continuations, and those stand together.
    parents: dict[str, str] = {}
    open_prefixes: list[str] = []
    for prefix in sorted(values):
        while open_prefixes and not prefix.startswith(open_prefixes[-1]):
            open_prefixes.pop()
        parents[prefix] = open_prefixes[-1] if open_prefixes else ""
        open_prefixes.append(prefix)
    continued = {parents[prefix] for prefix in values if prefix}
    for prefix in values:
        if not prefix.strip() or prefix in continued:
            continue
        path: list[tuple[str, float]] = []
        while prefix.strip():
            step = prefix[len(parents[prefix]) :].strip()
            if step:
                path.append((step, sum(values[prefix]) / len(values[prefix])))
            prefix = parents[prefix]
        yield path[::-1]


def _tree_paths(root: Mapping[str, Any], where: str) -> Iterator[list[tuple[str, float]]]:
    """Paths from below the root, whose text is the question, to every leaf, depth first."""
    stack: list[tuple[Any, list[tuple[str, float]], str]] = []
    for number, child in enumerate(root.get("children") or []):
        stack.insert(0, (child, [], f"{where}.children[{number}]"))
    while stack:
        node, above, place = stack.pop()
        step = _get(node, "text", str, place).strip()
        path = [*above, (step, _value(node, place))] if step else above
        children = node.get("children") or []
        if not children and path:
            yield path
        stack += [(child, path, f"{place}.children[{number}]") for number, child in enumerate(children)][::-1]


def _value(node: Mapping[str, Any], where: str) -> float:
    value = node.get("mc_value")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise DataError(f"{where}.mc_value: got {value!r}; accepted: a number in [0, 1]")
    return float(value)


def _get(record: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: got {type(record).__name__}; accepted: an object")
    value = record.get(name)
    if not isinstance(value, kind):
        words = {"str": "a string", "list": "a list", "dict": "an object"}[kind.__name__]
        raise DataError(f"{where}: {name}: got {value!r}; accepted: {words}")
    return value


_PARSERS: dict[str, Callable[[Mapping[str, Any], str], list[StepLabels]]] = {
    "prmkit": _parse_prmkit,
    "prm800k": _parse_prm800k,
    "math-shepherd": _parse_math_shepherd,
    "math-aps": _parse_math_aps,
}
