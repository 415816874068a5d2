"""Tasks whose problems are records of files or hub datasets: reading as far as asked, field names, errors with places.

A *source* yields (place, record) pairs; the place is `file:line` or the like and starts the message of every error
about the record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from prmkit.errors import ConfigError, DataError, MissingDependencyError
from prmkit.formats.presets import get_step_format
from prmkit.formats.spec import StepFormat
from prmkit.io import read_json
from prmkit.json_objects import located, read_objects, shown
from prmkit.protocols import Grader
from prmkit.records import Problem

__all__ = ["Fields", "Record", "RecordTask", "Source", "hub_source", "json_source", "jsonl_source"]

_LOG = logging.getLogger(__name__)

Record = tuple[str, Mapping[str, Any]]
Source = Callable[[], Iterable[Record]]


@dataclass(frozen=True)
class Fields:
    """Names of a record's fields.

    Attributes:
        question: the question; required in every record.
        answer: the final answer, a text or a number; required in every record.
        solution: a whole solution; None, or absent from a record, when there is none.
        id: an id unique within the split; None counts records.
        level: difficulty label; None when there is none.
    """

    question: str = "question"
    answer: str = "answer"
    solution: str | None = None
    id: str | None = None
    level: str | None = None


def jsonl_source(path: Path) -> Source:
    """Records of a file of JSON objects (one a line, in a list, or one after another), by their place in it."""
    return lambda: read_objects(path)


def json_source(path: Path, key: str) -> Source:
    """Records of a JSON file that holds an object with a list of objects under `key`."""

    def records() -> Iterator[Record]:
        value = read_json(path)
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise DataError(f"{path}: expected a JSON object with a list of objects in the field {key!r}")
        for number, record in enumerate(value[key], start=1):
            if not isinstance(record, dict):
                raise DataError(f"{path}: entry {number}: expected an object, got {type(record).__name__}")
            yield f"{path}: entry {number}", record

    return records


def hub_source(name: str, split: str, configs: Sequence[str | None] = (None,), **options: Any) -> Source:
    """Records of a dataset that `datasets.load_dataset` can load, streamed unless options say otherwise; several
    configurations one after another.

    Raises DataError when it cannot be loaded, with the reason `datasets` gives.
    """

    def records() -> Iterator[Record]:
        try:
            import datasets
        except ModuleNotFoundError:
            raise MissingDependencyError("hub datasets need `datasets`: pip install 'datasets>=4.0'") from None
        for config in configs:
            where = f"{name}[{config}]/{split}" if config else f"{name}/{split}"
            try:
                rows = datasets.load_dataset(name, config, split=split, **{"streaming": True, **options})
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                remedy = "Give a local copy with `data`, or the name of a dataset, its configuration and split."
                raise DataError(f"{where}: cannot load this dataset: {error}. {remedy}") from error
            for number, row in enumerate(rows):
                yield f"{where}: row {number}", row

    return records


class RecordTask:
    """A task over sources (see `prmkit.protocols.Task`). Records are read as far as asked and kept.

    Args:
        name: the task's name.
        sources: one for every split.
        fields: names of the records' fields.
        grader: extracts and compares answers.
        convert: what to do to a raw problem, given its place; None keeps it.
        skip_empty: skip records with an empty answer, with a warning that counts them, instead of refusing them.
    """

    step_format: StepFormat = get_step_format("plain")

    def __init__(
        self,
        name: str,
        sources: Mapping[str, Source],
        fields: Fields,
        grader: Grader,
        *,
        convert: Callable[[Problem, str], Problem] | None = None,
        skip_empty: bool = False,
    ) -> None:
        self.name = name
        self.splits = tuple(sources)
        self._sources = dict(sources)
        self._fields = fields
        self._grader = grader
        self._convert = convert
        self._skip_empty = skip_empty
        self._kept: dict[str, list[Problem]] = {}
        self._open: dict[str, Iterator[Problem]] = {}

    @property
    def grader(self) -> Grader:
        return self._grader

    def problems(self, split: str, limit: int | None = None, offset: int = 0) -> Sequence[Problem]:
        """Problems number offset ... offset + limit - 1 of a split, fewer where it ends; None gives all from offset.

        Raises ConfigError for an unknown split, DataError for a bad record, a missing file and an empty split.
        """
        if split not in self._sources:
            raise ConfigError("task.split", split, " | ".join(self.splits))
        if offset < 0 or (limit is not None and limit < 0):
            raise ConfigError("task.limit, offset", (limit, offset), "integers of at least 0")
        end = None if limit is None else offset + limit
        return self._read(split, end)[offset:end]

    def _read(self, split: str, end: int | None) -> list[Problem]:
        """At least the first `end` problems of a split, all for None."""
        kept = self._kept.setdefault(split, [])
        if split not in self._open:
            self._open[split] = self._problems(split)
        try:
            while end is None or len(kept) < end:
                kept.append(next(self._open[split]))
        except StopIteration:
            if not kept:
                raise DataError(f"{self.name}: split {split!r} holds no problems") from None
        except BaseException:
            del self._kept[split], self._open[split]  # a finished generator would look like the end of the data
            raise
        return kept

    def _problems(self, split: str) -> Iterator[Problem]:
        seen: set[str] = set()
        skipped = 0
        for number, (where, record) in enumerate(self._sources[split]()):
            if self._skip_empty and record.get(self._fields.answer, "") is None:
                skipped += 1
                continue
            with located(where):
                problem = self._problem(split, number, where, record)
            if not problem.answer:
                if not self._skip_empty:
                    raise DataError(f"{where}: the answer in field {self._fields.answer!r} is empty")
                skipped += 1
                continue
            if problem.id in seen:
                raise DataError(f"{where}: the id {problem.id!r} appears twice")
            seen.add(problem.id)
            yield problem
        if skipped:
            _LOG.warning(
                "%s/%s: skipped %d of %d records, whose answers are empty", self.name, split, skipped, number + 1
            )

    def _problem(self, split: str, number: int, where: str, record: Mapping[str, Any]) -> Problem:
        fields = self._fields
        source = f"{self.name}/{split}"
        question = _required(record, fields.question, where)
        if not question:
            raise DataError(f"{where}: the question in field {fields.question!r} is empty")
        name = _required(record, fields.id, where) if fields.id else str(number)
        problem = Problem(
            f"{source}/{name}",
            question,
            _required(record, fields.answer, where),
            _optional(record, fields.solution, where),
            _optional(record, fields.level, where),
            source,
        )
        return self._convert(problem, where) if self._convert else problem


def _required(record: Mapping[str, Any], field: str, where: str) -> str:
    value = _optional(record, field, where)
    if value is None and field in record:
        raise DataError(f"{where}: field {field!r} is null; every record needs one. Take such records out of the file.")
    if value is None:
        raise DataError(f"{where}: no field {field!r}; the record has: {', '.join(record)[:200] or 'no fields'}")
    return value.strip()


def _optional(record: Mapping[str, Any], field: str | None, where: str) -> str | None:
    """A field as text; None where it is missing or null."""
    value = record.get(field) if field else None
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not (number or isinstance(value, str)):
        raise DataError(f"{where}: field {field!r} must be a text or a number, got {shown(value)}")
    return str(value)
