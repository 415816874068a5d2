"""A JSON-lines file that grows chunk by chunk, so that a killed run goes on and ends byte for byte as if undisturbed.

Beside `<out>` stands `<out>.meta.json` with the settings that decide the content, the number of whole chunks, and the
bytes they take. A chunk is appended first and acknowledged in the meta file second (atomically); whatever lies behind
the acknowledged bytes when a file is opened again belongs to an unfinished chunk and is cut off. A companion file,
where there is one, grows with the same chunks and is acknowledged with them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from prmkit.errors import ConfigError, DataError, PrmkitError
from prmkit.io import read_json, write_json
from prmkit.items import Items
from prmkit.ownership import check_outputs

__all__ = ["ChunkedOutput", "encode_lines", "meta_path"]

_SCHEMA = 1
_OWN = ("schema", "complete", "progress", "settings", "items", "before_last")


def meta_path(path: str | Path) -> Path:
    """Where the settings and the progress of an output are kept."""
    path = Path(path)
    return path.with_name(path.name + ".meta.json")


def encode_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """JSON lines of records. NaN is a ValueError."""
    return "".join(
        json.dumps(r, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for r in records
    ).encode()


class ChunkedOutput:
    """Opens an output for writing, or for going on where its last whole chunk ended. A context manager.

    Args:
        path: the JSON-lines file.
        settings: everything that decides the content, as JSON values; an existing output must have been made with the
            same.
        overwrite: begin anew, whatever an earlier run has left.
        companion: a second JSON-lines file, for records that belong to the chunks but not into the first.
        items: what the chunks are made from. An existing output must have been made from the same, or from the first
            of them: then it is extended, and a last chunk that was not full is made again. None checks nothing.

    Attributes:
        chunks: whole chunks in the file.
        lines: lines in the file.
        state: what the caller gave with the last chunk, `{}` before the first: running totals, say. Its keys stand in
            the meta file beside `schema`, `complete`, `progress` and `settings`, which they may not repeat.
        complete: `finish` was called, and there are no further items.
        extended_from: items that an output which is extended was made from; None when it is not.

    Raises:
        ConfigError: the output exists with other settings, the first of which is named, or with more items; or one of
            the files is there without its meta file: somebody else wrote it.
        DataError: it exists with items of other content, is shorter than its meta file says, or is being written by
            another process.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        companion: str | Path | None = None,
        items: Items | None = None,
    ) -> None:
        self.path = Path(path)
        self.companion = None if companion is None else Path(companion)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        known = not overwrite and meta_path(self.path).exists()
        meta = read_json(meta_path(self.path)) if known else {}
        if known:
            self._check(meta)
        check_outputs("output", self.path, self._files(), meta_path(self.path))
        self.complete = bool(meta.get("complete", False))
        self.extended_from: int | None = None
        self._items = None if items is None else items.to_json()
        self._before_last = meta.get("before_last")
        state = {name: value for name, value in meta.items() if name not in _OWN}
        self._take(meta.get("progress", {}), state)
        self._file = self._open(self.path, self._bytes)
        self._beside = None if self.companion is None else self._open(self.companion, self._companion_bytes)
        if known and items is not None:
            self._extend(items, meta.get("items"))
        self._save(self.state)
        for appended, size in ((self._file, self._bytes), (self._beside, self._companion_bytes)):
            if appended is not None:
                appended.truncate(size)  # after the meta file, which may acknowledge less, never more, than there is

    def _take(self, progress: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Be where a progress says."""
        self.chunks = int(progress.get("chunks", 0))
        self.lines = int(progress.get("lines", 0))
        self.state: dict[str, Any] = dict(state)
        self._bytes = int(progress.get("bytes", 0))
        self._companion_bytes = int(progress.get("companion_bytes", 0))

    def _extend(self, items: Items, held: Mapping[str, Any] | None) -> None:
        """Check the items, and go back behind the last full chunk when there are more than there were."""
        try:
            kept = items.kept_chunks(held, self.path)
        except PrmkitError:
            self.close()
            raise
        if held is not None and held["count"] < len(items.keys):
            self.extended_from, self.complete = held["count"], False
        if self.chunks > kept:
            before = self._before_last or {}
            self._take(before.get("progress", {}), before.get("state", {}))
            self._before_last = None

    def _files(self) -> list[Path]:
        return [self.path] if self.companion is None else [self.path, self.companion]

    def _open(self, path: Path, acknowledged: int) -> Any:
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise DataError(f"{path}: another process is writing it") from None
        size = os.fstat(file.fileno()).st_size
        if size < acknowledged:
            file.close()
            raise DataError(
                f"{path}: {size} bytes, but {meta_path(self.path).name} acknowledges {acknowledged}; the file was "
                f"cut or replaced. Restore it, or begin anew with overwrite."
            )
        return file

    def _check(self, meta: Mapping[str, Any]) -> None:
        if meta.get("schema") != _SCHEMA:
            raise DataError(f"{meta_path(self.path)}: schema {meta.get('schema')!r}; this version reads {_SCHEMA}")
        old, new = _flat(meta["settings"]), _flat(self.settings)
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise ConfigError(
                    name,
                    new.get(name),
                    f"{old.get(name)!r}, which {self.path} was made with",
                    "Give another output path, or begin anew with --overwrite true.",
                )

    def append(
        self,
        records: Sequence[Mapping[str, Any]],
        state: Mapping[str, Any],
        beside: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Add a whole chunk (it may be empty), then acknowledge it together with the state. NaN is a ValueError.

        Args:
            records: of the file.
            state: see `ChunkedOutput.state`.
            beside: records of the companion file; only where there is one (ValueError).
        """
        if beside and self._beside is None:
            raise ValueError("records for a companion file, but the output has none")
        data, data_beside = encode_lines(records), encode_lines(beside)  # a ValueError comes before anything is written
        if self._items is not None:
            self._before_last = {"progress": self._progress(), "state": self.state}
        self._bytes += _write(self._file, data)
        if self._beside is not None:
            self._companion_bytes += _write(self._beside, data_beside)
        self.chunks += 1
        self.lines += len(records)
        self._save(state)

    def finish(self, state: Mapping[str, Any]) -> None:
        """Mark the output complete, with its last state."""
        self.complete = True
        self._save(state)

    def _save(self, state: Mapping[str, Any]) -> None:
        if repeated := set(_OWN) & set(state):
            raise ValueError(f"the state may not hold {sorted(repeated)}")
        self.state = dict(state)
        meta = {"schema": _SCHEMA, "complete": self.complete, "progress": self._progress(), "settings": self.settings}
        own = {"items": self._items, "before_last": self._before_last}
        write_json(meta_path(self.path), meta | {name: value for name, value in own.items() if value} | self.state)

    def _progress(self) -> dict[str, int]:
        progress = {"chunks": self.chunks, "lines": self.lines, "bytes": self._bytes}
        return progress if self.companion is None else progress | {"companion_bytes": self._companion_bytes}

    def close(self) -> None:
        self._file.close()
        if self._beside is not None:
            self._beside.close()

    def __enter__(self) -> ChunkedOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _write(file: Any, data: bytes) -> int:
    """Append bytes and wait until they are on the disk; returns how many."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())
    return len(data)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted path."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }
