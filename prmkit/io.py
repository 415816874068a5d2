"""Files that are whole or absent: atomic writes, and JSON lines that survive a kill.

A JSON-lines file written here may end in half a line when its writer was killed; `repair_jsonl` cuts that off before
the writer goes on. Reading is `prmkit.json_objects`, whose functions are offered here as well.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from prmkit.errors import DataError
from prmkit.json_objects import parse_json, parse_json_line, read_jsonl, read_objects
from prmkit.ownership import real_path, remove_file, rename

__all__ = [
    "JsonlWriter",
    "expand_paths",
    "open_atomic",
    "parse_json_line",
    "read_json",
    "read_jsonl",
    "read_objects",
    "repair_jsonl",
    "write_atomic",
    "write_json",
]


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` when the block ends: temporary file, fsync, rename.

    An exception in the block leaves what was there before. A link stays, and the file that it names is replaced.
    """
    path = real_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        rename(Path(temporary), path)
    except BaseException:
        remove_file(Path(temporary))
        raise


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically. NaN and infinity are refused (ValueError): they are not JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; DataError names the file and the place when it is missing or malformed."""
    path = Path(path)
    try:
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


def expand_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files that a path names: a file itself, a folder's `*.jsonl` files, or what a glob pattern finds, sorted.

    Several paths give their files in the order given. DataError names the path that gives none.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        place = Path(path)
        if place.is_dir():
            found = sorted(place.glob("*.jsonl"))
            if not found:
                raise DataError(f"{path}: no *.jsonl in this folder; name other files, or a pattern such as *.json")
        elif place.is_file():
            found = [place]
        else:
            found = _matches(place)
        if not found:
            raise DataError(f"{path}: no such file")
        files += found
    return files


def _matches(pattern: Path) -> list[Path]:
    """Files that fit a pattern, which may be absolute."""
    fixed = 0
    while fixed < len(pattern.parts) and not set("*?[") & set(pattern.parts[fixed]):
        fixed += 1
    if fixed == len(pattern.parts):
        return []
    found = Path(*pattern.parts[:fixed]).glob(str(Path(*pattern.parts[fixed:])))
    return sorted(name for name in found if name.is_file())


def repair_jsonl(path: str | Path) -> int:
    """Cut off an unfinished last line (no newline at its end). Returns the bytes removed; 0 for a missing file."""
    path = Path(path)
    if not path.exists():
        return 0
    size = path.stat().st_size
    with path.open("rb+") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
    return size - end


class JsonlWriter:
    """Appends JSON lines, each with one write call and flushed to the system, after repairing a torn last line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        repair_jsonl(self.path)
        self._file = self.path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
