"""Chunks of work shared by several processes, on one machine or on several that see the same folder.

A worker holds a chunk by a lock on a file, which the system takes back when the worker dies; a finished chunk is a set
of files, the last of which (its state) appears whole or not at all. So every chunk is done by somebody, none is taken
from a worker that lives, and what a dead worker had begun is done again by another. The folder must be on a file system
whose `flock` reaches all workers (any local one, NFS from version 4 on).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from prmkit.errors import ConfigError
from prmkit.io import read_json, write_atomic, write_json
from prmkit.items import Items
from prmkit.ownership import check_outputs, remove_file

__all__ = ["ClaimFolder"]


class ClaimFolder:
    """The chunks of one run, numbered from 0. A context manager, which lets go of what it holds.

    Args:
        folder: shared by the workers; made when it is not there.
        settings: everything that decides the content, as JSON values; all workers must have the same.
        chunks: how many there are.
        items: what the chunks are made from; None checks nothing. When all chunks of the first of them are done, the
            folder is extended, and a last chunk that was not full is made again.

    Raises:
        ConfigError: the folder belongs to a run with other settings, or with another number of items.
        DataError: it belongs to a run with items of other content.
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], chunks: int, items: Items | None = None
    ) -> None:
        self.folder = Path(folder)
        self.chunks = chunks
        self._held: dict[int, int] = {}
        self._own: set[int] = set()
        self._others: set[int] = set()
        self._looked = 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        own = json.loads(json.dumps({"settings": settings, "chunks": chunks}))
        if items is not None:
            own["items"] = items.to_json()
        with _Lock(self.folder / "settings.lock"):
            path = self.folder / "settings.json"
            if not path.exists():
                others = [file for file in self.folder.iterdir() if file.suffix != ".lock" and file.name[0] != "."]
                check_outputs("output", self.folder, others, path)
                write_json(path, own)
            elif (there := read_json(path)) != own:
                if items is not None and there["settings"] == own["settings"]:
                    self._extend(items, there)
                    write_json(path, own)
                    return
                theirs, ours = there["settings"] | {"chunks": there["chunks"]}, own["settings"] | {"chunks": chunks}
                name = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
                raise ConfigError(
                    name,
                    ours.get(name),
                    f"{theirs.get(name)!r}, with which {self.folder} was begun",
                    "Workers of one run need the same settings; give another output to begin another run.",
                )

    def _extend(self, items: Items, there: Mapping[str, Any]) -> None:
        """Make a finished folder one of more items: what is not full any more is to be done again."""
        delete = f"Give another output, or delete {self.folder} and the output."
        kept, chunks = items.kept_chunks(there.get("items"), self.folder, delete), int(there["chunks"])
        if not all(self.done(chunk) for chunk in range(chunks)):
            raise ConfigError(
                f"number of {items.what}", len(items.keys), f"{there['items']['count']}, until {self.folder} is done",
                "Finish that run first; then a larger one extends it.",
            )  # fmt: skip
        with self.gathering():  # nobody is reading the chunks
            for chunk in range(kept, chunks):
                remove_file(self._path(chunk, "json"))

    def claim(self) -> int | None:
        """The first chunk that is neither done nor held by anybody; None when there is none at the moment."""
        for chunk in range(self.chunks):
            if chunk in self._held or self.done(chunk):
                continue
            handle = os.open(self._path(chunk, "lock"), os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                continue
            if self.done(chunk):  # finished between the look and the lock
                os.close(handle)
                continue
            self._held[chunk] = handle
            return chunk
        return None

    def finish(self, chunk: int, files: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
        """Leave what came of a chunk that this worker holds, and let go of it."""
        for suffix, data in files.items():
            write_atomic(self._path(chunk, suffix), data)
        write_json(self._path(chunk, "json"), state)
        self._own.add(chunk)
        os.close(self._held.pop(chunk))

    def done_by_others(self) -> int:
        """Chunks that others, or earlier runs, have finished, as seen within the last second."""
        if time.monotonic() - self._looked > 1.0:
            unseen = set(range(self.chunks)) - self._own - self._others - self._held.keys()
            self._others |= {chunk for chunk in unseen if self.done(chunk)}
            self._looked = time.monotonic()
        return len(self._others)

    def done(self, chunk: int) -> bool:
        """Has somebody finished it?"""
        return self._path(chunk, "json").exists()

    @property
    def all_done(self) -> bool:
        """Is every chunk finished?"""
        return all(self.done(chunk) for chunk in range(self.chunks))

    def read(self, chunk: int, suffix: str) -> bytes:
        """A file of a finished chunk."""
        return self._path(chunk, suffix).read_bytes()

    def state(self, chunk: int) -> dict[str, Any]:
        """What was given as a finished chunk's state."""
        state: dict[str, Any] = read_json(self._path(chunk, "json"))
        return state

    def gathering(self) -> _Lock:
        """A lock for putting the chunks together: waits until no other worker does."""
        return _Lock(self.folder / "gather.lock")

    def _path(self, chunk: int, suffix: str) -> Path:
        return self.folder / f"{chunk:06d}.{suffix}"

    def __enter__(self) -> ClaimFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


class _Lock:
    """An exclusive lock on a file, waited for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
