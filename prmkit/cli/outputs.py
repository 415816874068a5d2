"""Checks of the places that a command is to write to, made before anything is loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prmkit.errors import ConfigError

__all__ = ["check_output_file", "check_output_folder", "why_not_writable"]

_PROBE = bytes(1 << 16)


def check_output_file(option: str, path: str | Path | None) -> None:
    """Raise ConfigError unless a file can be written at `path`; None is no output. Nothing is made or changed.

    Args:
        option: as the user types it, without dashes, e.g. "output".
        path: the file, or None.
    """
    if path is None:
        return
    place = Path(path)
    if place.is_dir():
        raise ConfigError(option, str(path), "a file to write; this is a folder", "Name a file in it.")
    reason = _append(place) if place.exists() else why_not_writable(place.parent)
    if reason is not None:
        raise ConfigError(option, str(path), f"a file that can be written; {reason}")


def check_output_folder(option: str, path: str | Path | None) -> None:
    """Raise ConfigError unless a folder can be made and written at `path`; None is no output. Nothing is made.

    Args:
        option: as the user types it, without dashes, e.g. "output".
        path: the folder, or None.
    """
    if path is None:
        return
    if Path(path).exists() and not Path(path).is_dir():
        raise ConfigError(option, str(path), "a folder to write; this is a file", "Name a folder.")
    reason = why_not_writable(Path(path))
    if reason is not None:
        raise ConfigError(option, str(path), f"a folder that can be written; {reason}")


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written in a folder that is there or is to be made; None when it can. Leaves nothing."""
    place = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists() or part.is_symlink())
    if not place.is_dir():
        return f"{place} is {'a broken link' if place.is_symlink() and not place.exists() else 'a file'}"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(_PROBE)
            file.flush()
    except OSError as error:
        return f"{place}: {error.strerror}"
    return None


def _append(file: Path) -> str | None:
    """Why an existing file cannot be written; None when it can. Opening it to append changes nothing."""
    try:
        with file.open("ab"):
            pass
    except OSError as error:
        return f"{file}: {error.strerror}"
    return why_not_writable(file.parent)
