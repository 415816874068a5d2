"""Checkpoints of one file that are complete or absent. Folders of shards are written by the strategy that has shards.

Lightning's own writer puts a local checkpoint into the system's temporary folder and moves it: across file systems the
move is a copy, so that a kill leaves half a file under the final name, and nothing is flushed to the disk. Here the
temporary file is a hidden neighbour of the final one, is flushed, and is then renamed.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from prmkit.checkpoints import newest_checkpoint, remove_checkpoint, remove_leftovers, sync
from prmkit.checkpoints.reading import UnreadableCheckpointError, check_readable, only_plain
from prmkit.checkpoints.sharded import sharded_state
from prmkit.errors import PrmkitError
from prmkit.ownership import real_path, remove_file, rename

__all__ = ["AtomicCheckpointIO", "newest_checkpoint"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes temporary file + fsync + rename; reads with `weights_only=True` unless told otherwise.

    Remote paths (`s3://...`) are left to Lightning's own writer: object stores show a file only when it is whole.

    Args:
        weights_only: refuse to write what could not be loaded again without running code.
    """

    def __init__(self, weights_only: bool = True) -> None:
        self.weights_only = weights_only
        self._cleaned: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint. A kill at any moment leaves the old file (or none) or the new one whole.

        Raises UnreadableCheckpointError, before anything is written, for values that could not be loaded again.
        """
        if self.weights_only:
            check_readable(checkpoint, path)
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = real_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent not in self._cleaned:  # one process writes into a folder at a time
            remove_leftovers(target.parent)
            self._cleaned.add(target.parent)
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
            rename(temporary, target)
        except BaseException:
            remove_file(temporary)
            raise
        sync(target.parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values unless `weights_only=False` is asked for.

        A folder of shards is read as weights put together and the trainer's state, without that of the optimiser.

        Raises PrmkitError for a file that is missing, incomplete, or holds anything else.
        """
        safe = weights_only is not False
        if Path(path).is_dir():
            return sharded_state(Path(path), safe)
        try:
            with only_plain(path) if safe else nullcontext():
                loaded: dict[str, Any] = super().load_checkpoint(path, map_location or "cpu", weights_only=safe)
        except FileNotFoundError:
            raise PrmkitError(f"--ckpt_path {path}: no such file") from None
        except UnreadableCheckpointError as error:
            raise UnreadableCheckpointError(f"--ckpt_path {error}") from error
        except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise PrmkitError(f"--ckpt_path {path}: not a complete checkpoint ({_first_line(error)})") from error
        return loaded

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, file or folder; it is never seen half removed."""
        if "://" in str(path):
            super().remove_checkpoint(path)
        else:
            remove_checkpoint(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
