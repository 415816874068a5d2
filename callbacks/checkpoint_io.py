"""Checkpoints that are complete or absent, and the search for the newest one.

Lightning's own writer puts a local checkpoint into the system's temporary folder and moves it: across file systems the
move is a copy, so that a kill leaves half a file under the final name, and nothing is flushed to the disk. Here the
temporary file is a hidden neighbour of the final one, is flushed, and is then renamed.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from prmkit.errors import PrmkitError

__all__ = ["AtomicCheckpointIO", "newest_checkpoint"]

_REQUIRED = ("state_dict", "global_step")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes temporary file + fsync + rename; reads with `weights_only=True` unless told otherwise.

    Remote paths (`s3://...`) are left to Lightning's own writer: object stores show a file only when it is whole.
    """

    def __init__(self) -> None:
        self._cleaned: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint. A kill at any moment leaves the old file (or none) or the new one whole."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers(target.parent)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values unless `weights_only=False` is asked for.

        Raises PrmkitError for a file that is missing, incomplete, or holds anything else.
        """
        try:
            loaded: dict[str, Any] = super().load_checkpoint(
                path,
                map_location=map_location or "cpu",
                weights_only=True if weights_only is None else weights_only,
            )
        except FileNotFoundError:
            raise PrmkitError(f"--ckpt_path {path}: no such file") from None
        except pickle.UnpicklingError as error:
            raise PrmkitError(
                f"--ckpt_path {path}: refused, it holds more than tensors and plain values ({_first_line(error)}). "
                f"Loading it could run code; with --weights_only false it is loaded all the same."
            ) from error
        except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise PrmkitError(f"--ckpt_path {path}: not a complete checkpoint ({_first_line(error)})") from error
        return loaded

    def _remove_leftovers(self, folder: Path) -> None:
        """Remove temporary files of writers that were killed; one process writes into a folder at a time."""
        if folder not in self._cleaned:
            for leftover in folder.glob(".*.ckpt.*.tmp"):
                leftover.unlink(missing_ok=True)
            self._cleaned.add(folder)


def newest_checkpoint(folders: Iterable[str | os.PathLike[str]]) -> Path | None:
    """The checkpoint (`*.ckpt`) written last in these folders that is complete; None when there is none.

    Written last by modification time, by steps taken where times are equal. A file that cannot be read whole is
    skipped with a warning that names it.
    """
    files = {file for folder in folders for file in Path(folder).glob("*.ckpt") if file.is_file()}
    complete: list[tuple[int, int, Path]] = []
    for file in sorted(files, key=lambda f: f.stat().st_mtime_ns, reverse=True):
        written = file.stat().st_mtime_ns
        if complete and complete[0][0] > written:
            break
        step = _global_step(file)
        if step is None:
            warnings.warn(f"{file}: not a complete checkpoint; skipped", stacklevel=2)
        else:
            complete.append((written, step, file))
    return max(complete)[2] if complete else None


def _global_step(file: Path) -> int | None:
    """Steps taken by the run when it wrote this checkpoint; None when the file is not one, or not whole."""
    if not zipfile.is_zipfile(file):  # a torch file's index stands at its end
        return None
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        return None
    if not isinstance(content, dict) or any(key not in content for key in _REQUIRED):
        return None
    return int(content["global_step"])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
