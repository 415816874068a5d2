"""When a checkpoint is complete, and which is the newest: rules for files of one process and folders of several.

A checkpoint under its final name (`*.ckpt`) is whole:

- a **file** is written as a hidden neighbour, flushed and renamed; it counts when its index can be read.
- a **folder** holds the shards of several processes. They are written into a hidden neighbour; when all are there and
  flushed, `checkpoint.json` is written with the name and size of every file, and the folder is renamed. It counts when
  that marker is there and every file it names has its size.

So a kill at any moment leaves the checkpoint of before, or the new one. What is in the files is up to their writer.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prmkit.errors import PrmkitError
from prmkit.io import read_json, write_json
from prmkit.ownership import discard, file_sizes, foreign, move, remove_file, replace_folder

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

    Raises:
        ConfigError: a folder of that name holds anything else.
    """
    write_json(temporary / MARKER, {"schema": _SCHEMA, **asdict(info), "files": file_sizes(temporary)})
    for folder in {file.parent for file in _files(temporary)} | {temporary}:
        sync(folder)
    replace_folder(temporary, target, MARKER, "checkpoint", "checkpoint")
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


def steps_taken(path: str | os.PathLike[str], *, weights_only: bool = True) -> int | None:
    """Optimiser steps of the run that wrote a checkpoint, file or folder; None when it is not one, or not whole.

    Raises UnreadableCheckpointError for a file that is whole, but holds values that are not loaded.
    """
    place = Path(path)
    if place.is_dir():
        try:
            return read_sharded(place).global_step
        except (PrmkitError, KeyError, TypeError, ValueError, OSError):
            return None
    return _steps_of_file(place, weights_only)


def newest_checkpoint(
    folders: Iterable[str | os.PathLike[str]], *, resumable: bool = False, weights_only: bool = True
) -> Path | None:
    """The checkpoint (`*.ckpt`, file or folder) written last in these folders that is complete; None for none.

    Written last by modification time, by steps taken where times are equal. One that is not complete is skipped with a
    warning that names it.

    Args:
        folders: where to look; one that does not exist holds none.
        resumable: skip checkpoints of weights only, from which a fit cannot be resumed.
        weights_only: load no file that could run code.

    Raises:
        UnreadableCheckpointError: the newest is whole, but holds values that are not loaded. Skipping it would lose the
            steps since the one before.
    """
    found = {path for folder in folders for path in Path(folder).glob("*.ckpt")}
    written = {path: _written(path) for path in found}
    complete: list[tuple[int, int, Path]] = []
    for path in sorted(found, key=lambda p: written[p], reverse=True):
        if complete and complete[0][0] > written[path]:
            break
        step = steps_taken(path, weights_only=weights_only)
        if step is None:
            warnings.warn(f"{path}: not a complete checkpoint; skipped", stacklevel=2)
        elif resumable and not _is_resumable(path, weights_only):
            warnings.warn(f"{path}: holds weights only, without the state of the fit; skipped", stacklevel=2)
        else:
            complete.append((written[path], step, path))
    if not complete:
        return None
    _, steps, newest = max(complete)
    _warn_of_times(newest, steps, found - {path for _, _, path in complete}, weights_only)
    return newest


def _warn_of_times(newest: Path, steps: int, older: Iterable[Path], weights_only: bool) -> None:
    """Warn where the checkpoint written last is not the furthest: a copy that set new times may be the reason."""
    for path in sorted(older):
        try:
            other = steps_taken(path, weights_only=weights_only)
        except PrmkitError:
            continue
        if other is not None and other > steps:
            text = (
                f"{newest}: written last, after {steps} steps; {path} has {other}. If a copy of the folder changed the "
                f"times, name the other one."
            )
            return warnings.warn(text, stacklevel=3)
    return None


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint, file or folder; a folder loses its name first, so that none is ever seen half removed.

    A folder that holds more than a checkpoint of ours is left as it is, with a warning.
    """
    place = Path(path)
    if not place.is_dir():
        return remove_file(place)
    name = foreign(place, MARKER)
    if name is not None:
        return warnings.warn(f"{place}: not removed, {name} in it is not as prmkit wrote it", stacklevel=2)
    hidden = temporary_name(place, "removed")
    discard(hidden)
    move(place, hidden)
    return discard(hidden)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in a folder; nobody else may be writing there."""
    for leftover in folder.glob(".*.ckpt.*.tmp"):
        discard(leftover)
    for retired in folder.glob(".*.ckpt.*.old"):
        if (folder / f"{retired.name[1:].partition('.ckpt.')[0]}.ckpt").exists():  # else it is the only one left
            discard(retired)


def sync(path: Path) -> None:
    """Flush a file, or a folder, so that names given in it outlive a power cut. On shared file systems only the machine
    that wrote a file can flush it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _written(path: Path) -> int:
    """When a checkpoint was written, in nanoseconds; 0 for one that went away meanwhile."""
    marker = path / MARKER
    try:
        return (marker if marker.is_file() else path).stat().st_mtime_ns
    except OSError:
        return 0


def _steps_of_file(file: Path, weights_only: bool) -> int | None:
    content = _content(file, weights_only)
    if content is None or any(key not in content for key in _REQUIRED):
        return None
    return int(content["global_step"])


def _is_resumable(path: Path, weights_only: bool) -> bool:
    """False for a complete file that holds weights only; folders always hold the state of the fit."""
    content = None if path.is_dir() else _content(path, weights_only)
    return content is None or "lr_schedulers" in content


def _content(file: Path, weights_only: bool) -> dict[str, Any] | None:
    """What a whole file holds, its tensors left on the disk; None for one that is not whole or holds no mapping."""
    if not zipfile.is_zipfile(file):  # a torch file's index stands at its end
        return None
    from prmkit.checkpoints.reading import load_any, load_plain

    load = load_plain if weights_only else load_any
    try:
        content: Any = load(file, mmap=True)
    except (RuntimeError, EOFError, OSError):
        return None
    return content if isinstance(content, dict) else None
