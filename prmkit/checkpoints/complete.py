"""When a checkpoint is complete, and which is the newest: rules for files of one process and folders of several.

A checkpoint under its final name (`*.ckpt`) is whole:

- a **file** is written as a hidden neighbour, flushed and renamed; it counts when its index can be read.
- a **folder** holds the shards of several processes. They are written into a hidden neighbour; when all are there and
  flushed, `checkpoint.json` is written with the name and size of every file, and the folder is renamed. It counts when
  that marker is there and every file it names has its size.

So a kill at any moment leaves the checkpoint of before, or the new one. What is in the files is up to their writer.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prmkit.errors import PrmkitError
from prmkit.io import read_json, write_json

__all__ = [
    "MARKER",
    "SHARD_FOLDER",
    "TRAINER_FILE",
    "ShardedCheckpoint",
    "newest_checkpoint",
    "publish_folder",
    "read_sharded",
    "remove_checkpoint",
    "remove_leftovers",
    "steps_taken",
    "sync",
    "temporary_name",
]

MARKER = "checkpoint.json"
SHARD_FOLDER = "shards"
TRAINER_FILE = "trainer.pt"
_SCHEMA = 1
_REQUIRED = ("state_dict", "global_step")
_EXCHANGE, _CURRENT = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


@dataclass(frozen=True, slots=True)
class ShardedCheckpoint:
    """What the marker of a folder says.

    Attributes:
        format: writer of the shards, e.g. "deepspeed".
        stage: ZeRO stage they were written under.
        processes: how many wrote them.
        global_step: optimiser steps taken.
    """

    format: str
    stage: int
    processes: int
    global_step: int


def temporary_name(target: Path, token: str) -> Path:
    """The hidden neighbour into which a checkpoint is written; `token` tells attempts apart."""
    return target.parent / f".{target.name}.{token}.tmp"


def publish_folder(temporary: Path, target: Path, info: ShardedCheckpoint) -> None:
    """Give a folder of flushed shards its marker and its final name; one process does it, once all have written.

    An older checkpoint of that name is replaced: at no moment is there none, where the file system can exchange names.
    """
    files = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
    write_json(temporary / MARKER, {"schema": _SCHEMA, **asdict(info), "files": files})
    for folder in {file.parent for file in _files(temporary)} | {temporary}:
        sync(folder)
    if not target.exists():
        temporary.replace(target)
    elif _exchange(temporary, target):
        _remove(temporary)
    else:
        old = temporary_name(target, "old")
        _remove(old)
        target.replace(old)
        temporary.replace(target)
        _remove(old)
    sync(target.parent)


def read_sharded(folder: str | os.PathLike[str]) -> ShardedCheckpoint:
    """What a folder's marker says, once every file that it names is known to be there whole.

    Raises:
        PrmkitError: no marker, one of another schema, or a file that is missing or has another size.
    """
    path = Path(folder)
    if not (path / MARKER).is_file():
        raise PrmkitError(f"{path}: not a complete checkpoint: it has no {MARKER}, which is written last")
    found = read_json(path / MARKER)
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
        got = found.get("schema") if isinstance(found, dict) else found
        raise PrmkitError(f"{path / MARKER}: schema {got!r}; this version of prmkit reads schema {_SCHEMA}")
    for name, size in found["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            held = f"{file.stat().st_size} bytes" if file.is_file() else "not there"
            raise PrmkitError(f"{path}: not a complete checkpoint: {name} is {held}, and should have {size} bytes")
    return ShardedCheckpoint(*(found[name] for name in ("format", "stage", "processes", "global_step")))


def steps_taken(path: str | os.PathLike[str]) -> int | None:
    """Optimiser steps of the run that wrote a checkpoint, file or folder; None when it is not one, or not whole."""
    place = Path(path)
    if place.is_dir():
        try:
            return read_sharded(place).global_step
        except (PrmkitError, KeyError, TypeError, ValueError, OSError):
            return None
    return _steps_of_file(place)


def newest_checkpoint(folders: Iterable[str | os.PathLike[str]]) -> Path | None:
    """The checkpoint (`*.ckpt`, file or folder) written last in these folders that is complete; None for none.

    Written last by modification time, by steps taken where times are equal. What cannot be read whole is skipped with
    a warning that names it.
    """
    found = {path for folder in folders for path in Path(folder).glob("*.ckpt")}
    written = {path: _written(path) for path in found}
    complete: list[tuple[int, int, Path]] = []
    for path in sorted(found, key=lambda p: written[p], reverse=True):
        if complete and complete[0][0] > written[path]:
            break
        step = steps_taken(path)
        if step is None:
            warnings.warn(f"{path}: not a complete checkpoint; skipped", stacklevel=2)
        else:
            complete.append((written[path], step, path))
    return max(complete)[2] if complete else None


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint, file or folder; a folder loses its name first, so that none is ever seen half removed."""
    place = Path(path)
    if place.is_dir():
        hidden = temporary_name(place, "removed")
        _remove(hidden)
        place.replace(hidden)
        _remove(hidden)
    else:
        place.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder; nobody else may be writing there."""
    for leftover in folder.glob(".*.ckpt.*.tmp"):
        _remove(leftover)


def sync(path: Path) -> None:
    """Flush a file, or a folder, so that names given in it outlive a power cut. On shared file systems only the machine
    that wrote a file can flush it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _written(path: Path) -> int:
    """When a checkpoint was written, in nanoseconds; 0 for one that went away meanwhile."""
    marker = path / MARKER
    try:
        return (marker if marker.is_file() else path).stat().st_mtime_ns
    except OSError:
        return 0


def _steps_of_file(file: Path) -> int | None:
    import torch

    if not zipfile.is_zipfile(file):  # a torch file's index stands at its end
        return None
    try:
        content: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        return None
    if not isinstance(content, dict) or any(key not in content for key in _REQUIRED):
        return None
    return int(content["global_step"])


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_CURRENT, os.fsencode(one), _CURRENT, os.fsencode(other), _EXCHANGE) == 0)
