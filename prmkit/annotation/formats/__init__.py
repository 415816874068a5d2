"""Formats of step labels: our own records, and those that step labels are published in (`detection` lists them).

A parser turns one JSON object into the records it holds; a writer turns neighbouring records into native objects.
Steps come without separators, tags and "Step i: " prefixes: putting those in is the step format's matter.

What is written reads back as the same records, except for what a format has no place for:

| format | kept | lost |
|---|---|---|
| prmkit | everything | |
| prm800k | question, answer, steps, right or wrong; unlabelled steps before the last (as a human's completion) | rating 0 (read as right); a human's completion at the end; raters and times |
| math-shepherd | question, steps, right or wrong; one unlabelled end | answer; unlabelled steps (1) |
| math-aps-tree | question, answer, steps, values, tree, every record in its place | value of the bare question; unlabelled steps (2) |
| math-aps | question, answer, steps, values, tree | the same, and records that repeat or begin another; values of a prefix are averaged |
| trl | question, steps, right or wrong | answer; unlabelled steps (1), left out at the end |

(1) A step without a value is written as right where a later one is right (`step_verdicts`), and joined to the next
labelled one otherwise. (2) It is joined to the next labelled one, and left out at the end.

None but our own holds the problem's id, numbers of rollouts, policy, separator, and whether the answer is right
(prm800k and math-shepherd say it in their way). White space between steps is not kept by any.
"""  # noqa: E501 - a table

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from prmkit.annotation.formats import math_aps, math_shepherd, prm800k, stepwise
from prmkit.annotation.formats.detection import SINGLE_RECORD_FORMATS, RecordFormat, detect_format
from prmkit.annotation.formats.parser import RecordParser
from prmkit.annotation.formats.tally import Tally
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError
from prmkit.io import expand_paths, open_atomic
from prmkit.json_objects import located, read_objects

__all__ = [
    "SINGLE_RECORD_FORMATS",
    "RecordFormat",
    "RecordParser",
    "WriteFormat",
    "WriteReport",
    "detect_format",
    "load_records",
    "parse_records",
    "read_math_aps",
    "read_math_shepherd",
    "read_prm800k",
    "write_records",
]

WriteFormat = Literal["prmkit", "prm800k", "math-shepherd", "math-aps", "math-aps-tree", "trl"]


def parse_records(record: Mapping[str, Any], format: str, where: str) -> list[StepLabels]:
    """Records held by one JSON object in a named format ("auto" looks at the object).

    Raises:
        ConfigError: unknown format.
        DataError: the object does not fit the format; `where` (file:line) starts the message.
    """
    _check_format(format)
    return RecordParser(format)(record, where)


def load_records(
    paths: str | Path | Sequence[str | Path],
    format: str = "auto",
    on_line: Callable[[], None] | None = None,
) -> Iterator[StepLabels]:
    """Records of one or several files, in order.

    Args:
        paths: a file, a folder (its `*.jsonl` files), a glob pattern, or a list of those. A file holds JSON lines, a
            list, or objects one after another.
        format: see RecordFormat; "auto" looks at each file's first object.
        on_line: called after every object that was read.

    Raises:
        DataError: missing file, malformed line, or an object that does not fit; the message starts with `file:line`.
    """
    _check_format(format)
    return _records_of(expand_paths(paths), format, on_line or (lambda: None), RecordParser(format))


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
    return _records_with(partial(prm800k.parse, neutral=neutral), Path(path))


def read_math_shepherd(path: str | Path, strip_prefix: bool = True) -> Iterator[StepLabels]:
    """Records of a Math-Shepherd file: `input` with `ки` behind each step, `label` with + or - in its place.

    The question is what stands before "Step 1:". The last label is that of the finished solution, so it says whether
    the final answer is right.

    Args:
        path: the file.
        strip_prefix: take "Step i: " off the steps. The step format "math-shepherd" puts it there by itself
            (`before_step`); keep it only for a format that does not.
    """
    return _records_with(partial(math_shepherd.parse, strip_prefix=strip_prefix), Path(path))


def read_math_aps(path: str | Path) -> Iterator[StepLabels]:
    """Records of a MATH-APS file, flat (`solution_prefix`) or tree (`children`): one a path from root to leaf.

    In the flat form a prefix holds the question as well as all text so far. The question is taken off, and a prefix
    that begins with another one is its continuation: the steps are the differences. Prefixes that occur several
    times have the mean of their values. The value of the bare question has no step to stand at and is left out.
    Rollouts are not in the file; they read 0.
    """
    return _records_with(math_aps.parse, Path(path))


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written, and what the format had no place for.

    Attributes:
        records: records given.
        lines: JSON lines written.
        hardened: values strictly between 0 and 1 written as right or wrong.
        joined_steps: unlabelled steps that became the beginning of the next labelled one.
        dropped_steps: records whose unlabelled end was left out.
        dropped_records: records without a labelled step, left out.
        repeated_records: records left out since they, or a continuation of theirs, are written already.
    """

    records: int
    lines: int
    hardened: int = 0
    joined_steps: int = 0
    dropped_steps: int = 0
    dropped_records: int = 0
    repeated_records: int = 0


def write_records(
    records: Iterable[StepLabels], path: str | Path, format: WriteFormat = "prmkit", threshold: float = 0.0
) -> WriteReport:
    """Write records as JSON lines, one after another; the file appears when it is whole, or stays as it was.

    Formats that put several records into one line (prm800k, math-aps, math-aps-tree) gather neighbours of the same
    question; records of one question that others separate give several lines. A PRM800K line rates every step that
    its records name: a record whose earlier steps are labelled, but not alternatives of earlier records, reads back
    as one record for each of them. See the table above for what else differs.

    Args:
        records: read once.
        path: the file.
        format: of the lines.
        threshold: a step is right when its value is above, in [0, 1); for formats that know right and wrong only.

    Raises:
        ConfigError: unknown format, or threshold out of range.
        DataError: a text that the format cannot hold.
    """
    if format not in get_args(WriteFormat):
        raise ConfigError("format", format, " | ".join(get_args(WriteFormat)))
    if not 0.0 <= threshold < 1.0:
        raise ConfigError("threshold", threshold, "a number in [0, 1)")
    tally = Tally(threshold)
    n_records = n_lines = 0

    def counted() -> Iterator[StepLabels]:
        nonlocal n_records
        for record in records:
            n_records += 1
            yield record

    with open_atomic(path) as file:
        for line in _WRITERS[format](counted(), tally):
            file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
            n_lines += 1
    return WriteReport(
        n_records,
        n_lines,
        tally.hardened,
        tally.joined_steps,
        tally.dropped_steps,
        tally.dropped_records,
        tally.repeated_records,
    )


def _check_format(format: str) -> None:
    if format not in get_args(RecordFormat):
        raise ConfigError("format", format, " | ".join(get_args(RecordFormat)))


def _records_of(
    files: Iterable[Path], format: str, on_line: Callable[[], None], parse: RecordParser
) -> Iterator[StepLabels]:
    for file in files:
        parse.next_source(format)
        for where, record in read_objects(file):
            yield from parse(record, where)
            on_line()


def _records_with(parse: Callable[[Mapping[str, Any], str], list[StepLabels]], file: Path) -> Iterator[StepLabels]:
    for where, record in read_objects(file):
        with located(where):
            records = parse(record, where)
        yield from records


def _own_lines(records: Iterable[StepLabels], _tally: Tally) -> Iterator[dict[str, Any]]:
    return (record.to_json() for record in records)


_WRITERS: dict[str, Callable[[Iterable[StepLabels], Tally], Iterator[dict[str, Any]]]] = {
    "prmkit": _own_lines,
    "prm800k": prm800k.lines,
    "math-shepherd": math_shepherd.lines,
    "math-aps": math_aps.flat_lines,
    "math-aps-tree": math_aps.tree_lines,
    "trl": stepwise.lines,
}
