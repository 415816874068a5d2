"""The one rule for replacing and removing: only what prmkit wrote itself, or what holds nothing.

A folder is ours when its marker file says so (`prmkit.json` of a model, `checkpoint.json` of a checkpoint): the marker
names every file of the folder with its size, and the folder holds nothing else. A file is ours when its content, or a
marker beside it, says so. Everything else is somebody's work and is refused by name, with the remedy. Links are
followed: the link stays, and what it names is replaced.

All renaming and removing in the tree goes through this module; a test looks for calls elsewhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prmkit.errors import ConfigError

__all__ = [
    "begins_with",
    "check_file",
    "check_files",
    "check_folder",
    "check_outputs",
    "discard",
    "file_sizes",
    "first_line_has",
    "foreign",
    "json_has",
    "mentions",
    "move",
    "real_path",
    "remove_file",
    "rename",
    "replace_folder",
    "temporary_folder",
]

_EXCHANGE, _CURRENT = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_LARGEST_JSON = 64 * 2**20
_LEFTOVERS = (".tmp", ".old")

# -- folders ----------------------------------------------------------------------------------------------------------


def file_sizes(folder: Path, leave_out: str = "") -> dict[str, int]:
    """Every file of a folder by its path in it, with its size in bytes; `leave_out` is a path that is not listed.

    Links to folders count as files: what they name does not belong to the folder.
    """
    return {name: size for name, size in _walk(folder) if name != leave_out}


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(place, name)
            yield (
                path.relative_to(folder).as_posix(),
                path.lstat().st_size if path.is_symlink() else path.stat().st_size,
            )


def foreign(folder: Path, marker: str) -> str | None:
    """The first file of a folder that prmkit did not write there as it is; None when there is none.

    Args:
        folder: an existing folder.
        marker: name of the file in it that lists the others, as {"files": {path: bytes}}.
    """
    listed = _listed(folder / marker)
    for name, size in sorted(file_sizes(folder).items()):
        if name != marker and listed.get(name) != size:
            return name
        if name == marker and not listed:  # a marker of something else
            return name
    return None


def _listed(marker: Path) -> Mapping[str, Any]:
    """The files that a marker names; none when it is missing or is not a marker."""
    try:
        value = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    files = value.get("files") if isinstance(value, dict) else None
    return files if isinstance(files, dict) else {}


def check_folder(option: str, folder: str | Path, marker: str, kind: str) -> None:
    """Refuse a folder that may not be replaced. Call it before work begins.

    Args:
        option: the option or key that names the folder, for the message.
        folder: where the output is to be written; need not exist.
        marker: see `foreign`.
        kind: what prmkit writes there, e.g. "model folder".

    Raises:
        ConfigError: it is a file, or holds a file that prmkit did not write as it is.
    """
    place = real_path(folder)
    accepted = f"a folder that does not exist, is empty, or is a {kind} that prmkit wrote and nobody changed"
    if place.exists() and not place.is_dir():
        raise ConfigError(option, str(folder), accepted, "This is a file; name another place.")
    name = foreign(place, marker) if place.is_dir() else None
    if name is not None:
        raise ConfigError(
            option,
            str(folder),
            accepted,
            f"It would be replaced, and {place / name} is not as prmkit wrote it: move that away, or name another "
            f"folder.",
        )


def replace_folder(temporary: Path, target: Path, marker: str, kind: str, option: str = "directory") -> None:
    """Give a finished temporary folder its name, in place of one of ours.

    At no moment is there none, where the file system can exchange names.

    Raises:
        ConfigError: see `check_folder`; the temporary folder stays where it is.
    """
    place = real_path(target)
    check_folder(option, target, marker, kind)
    if not place.exists():
        temporary.replace(place)
    elif _exchange(temporary, place):
        _remove_tree(temporary)
    else:
        old = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".old"))
        place.replace(old / "folder")
        temporary.replace(place)
        _remove_tree(old)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A hidden neighbour of a folder that is to be made. It is removed when the block ends, unless it was moved."""
    place = real_path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp"))
    try:
        yield temporary
    finally:
        _remove_tree(temporary)


def discard(path: Path) -> None:
    """Remove a hidden temporary file or folder (`.NAME.tmp`, `.NAME.old`), if it is there.

    ValueError for any other name: nothing else is removed with what it holds.
    """
    if not (path.name.startswith(".") and path.name.endswith(_LEFTOVERS)):
        raise ValueError(f"{path}: not the name of a temporary file or folder")
    if path.is_dir() and not path.is_symlink():
        _remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system or the file system cannot."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(exchange(_CURRENT, os.fsencode(one), _CURRENT, os.fsencode(other), _EXCHANGE) == 0)


# -- files ------------------------------------------------------------------------------------------------------------


def real_path(path: str | os.PathLike[str]) -> Path:
    """The path with links followed, also one whose last part is not there yet."""
    return Path(os.path.realpath(path))


def rename(temporary: Path, target: Path) -> None:
    """Give a finished temporary file the name of a file of ours, in one step. Callers follow links first (`real_path`)
    where the user may have made one."""
    temporary.replace(target)


def move(path: Path, target: Path) -> None:
    """Give a file or folder a name that is free (FileExistsError otherwise)."""
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target}: exists")
    path.rename(target)


def remove_file(path: Path) -> None:
    """Remove one file that prmkit wrote, if it is there."""
    path.unlink(missing_ok=True)


def check_file(option: str, path: str | Path, ours: Callable[[Path], bool], kind: str) -> None:
    """Refuse a file that may not be replaced. Call it before work begins.

    Args:
        option: the option or key that names the file, for the message.
        path: the file to write; need not exist.
        ours: true for a file that prmkit wrote; asked of files that are not empty.
        kind: what prmkit writes there, e.g. "report of prm pairs publish".

    Raises:
        ConfigError: it is a folder, or a file that prmkit did not write.
    """
    place = real_path(path)
    if place.is_dir() or (_filled(place) and not ours(place)):
        raise ConfigError(
            option,
            str(path),
            f"a file that does not exist, is empty, or is a {kind}",
            "It is a folder." if place.is_dir() else "It would be replaced: move it away, or name another file.",
        )


def check_files(
    option: str, folder: str | Path, name: str, ours: Mapping[str, Callable[[Path], bool]], kind: str
) -> None:
    """Refuse a folder with files that would be replaced by their names and that prmkit did not write; see `check_file`.

    Args:
        option: the option or key that names the folder, for the message.
        folder: where the files are to be written; need not exist.
        name: regular expression of the whole names, without their ends.
        ours: by the end of the name, e.g. ".png": true for a file that prmkit wrote.
        kind: what prmkit writes there, e.g. "samples of rollouts".
    """
    for path in sorted(real_path(folder).glob("*")):
        if path.suffix in ours and re.fullmatch(name, path.stem):
            check_file(option, path, ours[path.suffix], kind)


def check_outputs(option: str, value: str | Path, files: Iterable[Path], marker: Path) -> None:
    """Refuse an output whose files are there without the marker that prmkit writes beside them.

    Args:
        option: the option that names the output, for the message.
        value: what was given for it.
        files: that are going to be replaced.
        marker: file that says that an earlier run of ours wrote them.

    Raises:
        ConfigError: it names the first such file.
    """
    if marker.is_file():
        return
    for file in files:
        if _filled(file):
            raise ConfigError(
                option,
                str(value),
                f"an output that does not exist yet, or one with {marker.name}, which prmkit writes",
                f"{file} would be replaced: move it away, or name another output.",
            )


def _filled(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def json_has(*keys: str) -> Callable[[Path], bool]:
    """For `check_file`: true for a JSON object with all these keys."""

    def ours(path: Path) -> bool:
        return path.stat().st_size <= _LARGEST_JSON and _has(path.read_bytes(), keys)

    return ours


def first_line_has(*keys: str) -> Callable[[Path], bool]:
    """For `check_file`: true for JSON lines whose first is an object with exactly these keys; none accept no file."""

    def ours(path: Path) -> bool:
        with path.open("rb") as file:
            return bool(keys) and _has(file.readline(_LARGEST_JSON), keys, exactly=True)

    return ours


def begins_with(start: bytes) -> Callable[[Path], bool]:
    """For `check_file`: true for a file that begins with these bytes."""

    def ours(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(start)) == start

    return ours


def mentions(text: bytes) -> Callable[[Path], bool]:
    """For `check_file`: true for a file in which these bytes stand, e.g. the name of the program that drew it."""

    def ours(path: Path) -> bool:
        return path.stat().st_size <= _LARGEST_JSON and text in path.read_bytes()

    return ours


def _has(data: bytes, keys: tuple[str, ...], exactly: bool = False) -> bool:
    try:
        value = json.loads(data)
    except ValueError:
        return False
    return isinstance(value, dict) and (set(value) == set(keys) if exactly else set(keys) <= set(value))
