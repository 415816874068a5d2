"""Sources: rows of raw fields that can be had by number. What the fields mean is the reader's matter (`readers.py`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from prmkit.annotation.formats import RecordFormat
from prmkit.errors import ConfigError, DataError
from prmkit.io import expand_paths
from prmkit.json_objects import one_object_a_line, parse_json_line, read_spans, skip_mark
from prmkit.seeding import derive_seed
from prmkit.tasks import get_task
from prmkit.types import Problem, Task, VerifiableTask

__all__ = ["HubSource", "JsonlSource", "Raw", "Source", "SourceConfig", "TaskSource", "open_source"]

Raw = Mapping[str, Any]
Sizes = npt.NDArray[np.int64]
SourceKind = Literal["jsonl", "task", "hub"]

_CHUNK = 1 << 22
_LOOKS = 64  # rows of an endless split that stand for all
_INK = np.array([not bytes([byte]).isspace() for byte in range(256)])  # [256] bytes that make a line not blank


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from.

    Attributes:
        kind: "jsonl": files of JSON objects, one a line, in a list, or one after another; "task": a task of
            `prmkit.tasks` (demonstrations of a built-in one, gold solutions of others); "hub": a data set of the
            `datasets` library.
        path: "jsonl": a file, folder (its `*.jsonl`) or glob pattern, or a list of those. "task": file or folder of a
            task that reads one. "hub": data files for the builder `name` ("json", "parquet"), or of the data set
            `name` ("owner/set") where it holds others too. None: none.
        name: task name, or hub data set name. Only with kind "task" and "hub", which need it.
        config: hub configuration, e.g. "main"; None for the data set's default.
        split: split of a task or hub data set.
        offset: first row used, from 0.
        count: rows used; None is all that follow. Built-in tasks are endless and need a number, and so do streams
            without weight whose length the hub does not know.
        seed: of the demonstrations of a built-in task.
        options: arguments of the task, e.g. its difficulty.
        streaming: "hub" only: read the data set as a stream, without storing it. Streams are mixed with streams only.
        shuffle_buffer: rows of a stream that are shuffled (and curated) together, at least 1; 1 keeps its order.
        format: "jsonl" and "hub", for step labels: format of the records; "auto" looks at the first one.
        malformed: for step labels: objects at most that may be left out because they do not fit the format, at least 0;
            each is named in the log. One more ends the run, as the first does with 0.
        question_field, solution_field: names of the fields, for SFT from "jsonl" and "hub".
        weight: share of an epoch's rows, relative to the other sources' weights, above 0; streams with weights need
            `epoch_rows` of the data module. None, for all sources: every row once an epoch.
        label: name of the source in row ids and messages; None makes one from path or name.
    """

    kind: SourceKind = "jsonl"
    path: str | list[str] | None = None
    name: str | None = None
    config: str | None = None
    split: str = "train"
    offset: int = 0
    count: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    streaming: bool = False
    shuffle_buffer: int = 1024
    format: RecordFormat = "auto"
    malformed: int = 0
    question_field: str = "question"
    solution_field: str = "solution"
    weight: float | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(SourceKind):
            raise ConfigError("source.kind", self.kind, " | ".join(get_args(SourceKind)))
        if self.format not in get_args(RecordFormat):
            raise ConfigError("source.format", self.format, " | ".join(get_args(RecordFormat)))
        if self.kind == "jsonl" and not self.path:
            raise ConfigError("source.path", self.path, "a file, folder or pattern, with kind jsonl")
        if (self.kind == "jsonl") != (self.name is None):
            raise ConfigError(
                "source.name", self.name, "a task or data set name with kind task or hub, null with jsonl"
            )
        if self.offset < 0:
            raise ConfigError("source.offset", self.offset, "an integer of at least 0")
        if self.count is not None and self.count < 1:
            raise ConfigError("source.count", self.count, "an integer of at least 1, or null")
        if self.malformed < 0:
            raise ConfigError("source.malformed", self.malformed, "an integer of at least 0")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError("source.weight", self.weight, "a number above 0, or null")
        if self.streaming and self.kind != "hub":
            raise ConfigError("source.streaming", True, "false, unless source.kind is hub")
        if self.shuffle_buffer < 1:
            raise ConfigError("source.shuffle_buffer", self.shuffle_buffer, "an integer of at least 1")

    @property
    def title(self) -> str:
        """Name in row ids and messages."""
        if self.label is not None:
            return self.label
        if self.kind == "jsonl":
            first = self.path if isinstance(self.path, str) else (self.path or [""])[0]
            return Path(first).stem or first
        return f"{self.name}/{self.split}"


class Source(Protocol):
    """Rows by number. Safe to use in forked and spawned worker processes."""

    def __len__(self) -> int: ...

    def raw(self, index: int) -> tuple[Raw, str]:
        """Fields of a row, and where it is (file:line), for messages."""
        ...

    def sizes(self) -> Sizes | None:
        """[N] sizes in some unit, where they cost nothing to know."""
        ...

    def content(self) -> str:
        """A hash of the rows, or of what they come from: equal where all rows are."""
        ...


class JsonlSource:
    """Objects of JSON files, through an index of where they stand; blank lines are skipped.

    The index of a file of lines takes 24 bytes a line and is built at the speed of reading; a line is parsed when it is
    asked for, so that a malformed one is found then (DataError, file:line). Files whose objects go over lines, or stand
    in a list, are parsed once to find them.

    Args:
        paths: see `prmkit.io.expand_paths`.
        offset, count: the rows used.
    """

    def __init__(self, paths: str | Sequence[str], offset: int = 0, count: int | None = None) -> None:
        self.files = expand_paths(paths)
        self._by_line = [one_object_a_line(file) for file in self.files]
        digest = hashlib.blake2b(digest_size=16)
        parts = [
            (_index_lines if by_line else _index_spans)(file, digest)
            for file, by_line in zip(self.files, self._by_line, strict=True)
        ]
        stop = None if count is None else offset + count
        sizes = [len(part) for part in parts]
        self._first = np.cumsum([0, *sizes]) - offset  # [files + 1] row number of each file's first object
        self._file = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)[offset:stop]
        self._start, self._size, self._line = np.concatenate(parts).T[:, offset:stop]
        self._handles: dict[int, FileIO] = {}
        self._content = f"{digest.hexdigest()}+{offset}"

    def __len__(self) -> int:
        return len(self._start)

    def raw(self, index: int) -> tuple[Raw, str]:
        number = int(self._file[index])
        handle = self._handles.get(number)
        if handle is None:
            handle = self._handles[number] = FileIO(self.files[number])
        # pread has no file position of its own to share, so that forked workers can use the same handle.
        line = os.pread(handle.fileno(), int(self._size[index]), int(self._start[index]))
        where = self.where(index)
        return parse_json_line(line, where), where

    def where(self, index: int) -> str:
        number = int(self._file[index])
        place = f"{self.files[number]}:{int(self._line[index])}"
        return place if self._by_line[number] else f"{place}: record {index - int(self._first[number]) + 1}"

    def sizes(self) -> Sizes:
        """Bytes of each object."""
        return self._size

    def content(self) -> str:
        """A hash of all bytes of the files, with the first row used."""
        return self._content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}


def _index_lines(file: Path, digest: hashlib.blake2b) -> Sizes:
    """[N, 3] offset, bytes and line number of the lines that are not blank. The file goes into the digest."""
    inked, carried = [np.empty(0, np.bool_)], False
    with file.open("rb") as stream:
        place = skip_mark(stream)
        bounds = [np.array([place], np.int64)]
        while block := stream.read(_CHUNK):
            digest.update(block)
            chunk = np.frombuffer(block, np.uint8)
            ends = np.flatnonzero(chunk == ord("\n")) + 1
            # A line is blank when all its bytes are; it may begin in an earlier chunk.
            starts = np.concatenate([[0], ends[ends < len(chunk)]])
            tops = np.logical_or.reduceat(_INK[chunk], starts)
            tops[0] |= carried
            carried = bool(tops[-1]) if len(tops) > len(ends) else False
            inked.append(tops[: len(ends)])
            bounds.append(ends + place)
            place += len(chunk)
    bound, ink = np.concatenate(bounds), np.concatenate(inked)
    if bound[-1] < place:  # the last line has no end
        bound, ink = np.append(bound, place), np.append(ink, carried)
    digest.update(place.to_bytes(8, "little"))
    table = np.stack([bound[:-1], np.diff(bound), np.arange(1, len(bound))], axis=1)
    return table[ink]


def _index_spans(file: Path, digest: hashlib.blake2b) -> Sizes:
    """[N, 3] offset, bytes and line number of objects that go over lines. The objects go into the digest."""
    rows = []
    with FileIO(file) as handle:
        for span in read_spans(file):
            rows.append((span.start, span.size, span.line))
            digest.update(os.pread(handle.fileno(), span.size, span.start))
    digest.update(len(rows).to_bytes(8, "little"))
    return np.array(rows, np.int64).reshape(-1, 3)


class TaskSource:
    """Questions and solutions of a task: teachers' demonstrations of a built-in task, gold solutions of others.

    Row i of a built-in task is a pure function of (split, offset + i, seed).

    Args:
        task: from `prmkit.tasks.get_task`.
        split, offset, count, seed: see SourceConfig.
    """

    def __init__(self, task: Task, split: str, offset: int = 0, count: int | None = None, seed: int = 0) -> None:
        if split not in task.splits:
            raise ConfigError("source.split", split, " | ".join(task.splits))
        self.split, self.offset, self.seed = split, offset, seed
        self._teacher = task if isinstance(task, VerifiableTask) else None
        if self._teacher is not None and count is None:
            raise ConfigError("source.count", None, f"a number of rows: the splits of {task.name} are endless")
        self._problems: Sequence[Problem] = ()
        if self._teacher is None:
            found = task.problems(split, limit=count, offset=offset)
            self._problems = [problem for problem in found if problem.solution is not None]
            if not self._problems:
                raise DataError(f"{task.name}/{split}: none of its {len(found)} problems has a solution to learn from")
        self._count = count if self._teacher is not None and count is not None else len(self._problems)

    def __len__(self) -> int:
        return self._count

    def content(self) -> str:
        """A hash of all gold solutions; of a built-in task of some rows, which give away its options."""
        if self._teacher is None:
            rows: Iterable[int] = range(len(self))
        else:
            rows = np.unique(np.linspace(0, len(self) - 1, _LOOKS).astype(np.int64)).tolist()
        digest = hashlib.blake2b(digest_size=16)
        for index in rows:
            digest.update(json.dumps(self.raw(index)).encode())
        return digest.hexdigest()

    def raw(self, index: int) -> tuple[Raw, str]:
        if self._teacher is None:
            problem = self._problems[index]
            return {"question": problem.question, "solution": problem.solution}, problem.id
        problem = self._teacher.problem(self.split, self.offset + index)
        solution = self._teacher.demonstration(problem, derive_seed("demonstration", self.seed, problem.id))
        return {"question": problem.question, "solution": solution}, problem.id

    def sizes(self) -> None:
        return None


class HubSource:
    """Rows of a stored data set of the `datasets` library."""

    def __init__(self, dataset: Any, title: str, offset: int = 0, count: int | None = None) -> None:
        stop = len(dataset) if count is None else min(len(dataset), offset + count)
        self._dataset, self._title, self._offset = dataset, title, offset
        self._count = max(stop - offset, 0)

    def __len__(self) -> int:
        return self._count

    def raw(self, index: int) -> tuple[Raw, str]:
        number = self._offset + index
        return self._dataset[number], f"{self._title}:{number}"

    def sizes(self) -> None:
        return None

    def content(self) -> str:
        """A hash of the rows used, as Arrow lays them out."""
        rows = self._dataset.select(range(self._offset, self._offset + self._count)).with_format("arrow")
        digest = hashlib.blake2b(digest_size=16)
        for table in rows.iter(batch_size=1000):
            for batch in table.to_batches():
                digest.update(batch.serialize())
        return digest.hexdigest()


def local_files(config: SourceConfig) -> list[Path]:
    """Data files of a hub source that lie on this machine."""
    return [] if config.path is None or "/" in (config.name or "") else expand_paths(config.path)


def load_hub(config: SourceConfig) -> Any:
    """A `datasets` data set, stored or streamed; DataError with the library's own message when it cannot be had."""
    import datasets  # takes a second, and only hub sources need it

    files: str | list[str] | None = config.path
    if local := local_files(config):
        files = [str(file) for file in local]
    try:
        return datasets.load_dataset(
            config.name, config.config, split=config.split, data_files=files, streaming=config.streaming
        )
    except (ValueError, FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{config.title}: the data set cannot be loaded: {error}") from error


def open_source(config: SourceConfig) -> Source:
    """The source that a config names. Streams are opened by `streams.py`.

    Raises:
        DataError: missing files, no rows.
        ConfigError: an unknown task or split.
    """
    source: Source
    match config.kind:
        case "jsonl":
            assert config.path is not None
            source = JsonlSource(config.path, config.offset, config.count)
        case "task":
            assert config.name is not None
            if isinstance(config.path, list):
                raise ConfigError("source.path", config.path, "one file or folder, with kind task")
            task = get_task(config.name, config.path, **config.options)
            source = TaskSource(task, config.split, config.offset, config.count, config.seed)
        case "hub":
            source = HubSource(load_hub(config), config.title, config.offset, config.count)
    if len(source) == 0:
        raise DataError(f"{config.path or config.title}: no rows (offset {config.offset}, count {config.count})")
    return source
