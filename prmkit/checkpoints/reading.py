"""What a checkpoint may hold: tensors and plain values. One rule for saving and loading.

Checkpoints are loaded without running code (`weights_only`). torch accepts tensors and built-in values; here the plain
types of the standard library that callbacks keep (dates, paths, decimals, fractions, UUIDs) and NumPy's numbers are
accepted as well. Anything else is refused before it is saved, so that every checkpoint on disk can be loaded.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import io
import os
import pathlib
import pickle
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prmkit.errors import PrmkitError

__all__ = ["UnreadableCheckpointError", "check_readable", "load_any", "load_plain", "only_plain"]

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size})
_STANDARD: list[Any] = [
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath,
    decimal.Decimal, fractions.Fraction, uuid.UUID, uuid.SafeUUID,
    frozenset, slice, range,
]  # fmt: skip
_NUMPY: list[Any] = [
    np.dtype, np.ndarray, np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0],
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdFD"},
]  # fmt: skip
_CURE = "Keep numbers, text, lists and mappings of them instead (for a value of another type, its text: str(value))"


class UnreadableCheckpointError(PrmkitError):
    """A whole checkpoint that holds values which are not loaded without running code."""


@contextmanager
def only_plain(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, `torch.load(..., weights_only=True)` of the file at `path` accepts what a checkpoint may hold.

    Raises:
        UnreadableCheckpointError: the file is whole, but holds a value that is refused; names its type.
        RuntimeError: the file is damaged.
    """
    with torch.serialization.safe_globals([*_STANDARD, *_NUMPY]):
        try:
            yield
        except pickle.UnpicklingError as error:
            refused = _refused(path)
            if refused is None:
                raise RuntimeError(f"damaged: {_first_line(error)}") from error
            raise UnreadableCheckpointError(
                f"{path}: refused, it holds more than tensors and plain values: "
                f"{', '.join(sorted(refused)) or _first_line(error)}. Loading it could run code; with --weights_only "
                f"false it is loaded all the same. A callback or module of yours keeps such a value in its state. "
                f"{_CURE}."
            ) from error


def load_plain(path: str | os.PathLike[str], **options: Any) -> Any:
    """Load a file written by `torch.save` without running code. `options` are those of `torch.load`.

    Raises:
        UnreadableCheckpointError: see `only_plain`.
        RuntimeError, EOFError, OSError: the file is not whole, or cannot be read.
    """
    _check_written(path)
    with only_plain(path):
        return torch.load(path, **{"map_location": "cpu", **options}, weights_only=True)


def load_any(path: str | os.PathLike[str], **options: Any) -> Any:
    """Load a file written by `torch.save`, whatever it holds: it may run code."""
    _check_written(path)
    return torch.load(path, **{"map_location": "cpu", **options}, weights_only=False)


def _check_written(path: str | os.PathLike[str]) -> None:
    """Refuse a file of another kind (RuntimeError): torch speaks of settings of its own then. Remote files pass."""
    if Path(path).is_file() and not zipfile.is_zipfile(path):
        raise RuntimeError("it is cut off, or another kind of file")


def check_readable(checkpoint: dict[str, Any], path: object) -> None:
    """Refuse a checkpoint, before anything of it is written, that could not be loaded again without running code.

    Raises:
        UnreadableCheckpointError: names the first such value by its key, e.g. `callbacks.Mine.started`, and its type.
    """
    found = next(_unreadable(checkpoint, ()), None)
    if found is not None:
        key, value = found
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UnreadableCheckpointError(
            f"{path}: not written, {key} is a {kind}, which a resume would refuse to load because it could run code. "
            f"{_CURE}; or give --weights_only false, now and at the resume."
        )


def _unreadable(value: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return
    if type(value) in (list, tuple, set) and _PLAIN.issuperset(map(type, value)):
        return  # token ids by the thousand
    if type(value) in (dict, collections.OrderedDict):
        for key, item in value.items():
            place = (*at, str(key))
            yield from () if type(key) in _PLAIN else _unreadable(key, place)
            yield from _unreadable(item, place)
    elif type(value) in (list, tuple, set):
        for number, item in enumerate(value):
            yield from _unreadable(item, (*at, str(number)))
    elif not _survives(value):
        yield ".".join(at), value


def _survives(value: Any) -> bool:
    """True if a value is loaded as it was saved."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals([*_STANDARD, *_NUMPY]):
            torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever pickling or loading a user's type raises, it cannot be kept
        return False
    return True


def _refused(path: str | os.PathLike[str]) -> set[str] | None:
    """Types in a file that are not accepted; its pickle is scanned, not run. None for a damaged file. Call it inside
    `safe_globals`."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    archive.read(name)  # checks its sum
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (zipfile.BadZipFile, ValueError, RuntimeError):
        return None
    except OSError:  # a remote file, which torch has read
        return set()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
