"""The run folder of a fit: one fit at a time writes there, and it can be written, both known before work begins."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from prmkit.errors import ConfigError, PrmkitError

__all__ = ["LOCK_FILE", "check_places", "hold_run_folder", "is_first_process"]

LOCK_FILE = ".fit.lock"
_PATIENCE = 5.0  # seconds in which a process that was killed lets go


def is_first_process() -> bool:
    """True in the process of rank 0, by the variables of torchrun, SLURM or Lightning's own launcher; the trainer knows
    its rank only when it runs."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


@contextmanager
def hold_run_folder(trainer: Trainer, root: str | None) -> Iterator[None]:
    """Inside, no other fit may use the run folder or the folders of its checkpoints. Rank 0 holds the locks.

    A lock is the system's (`flock`): it ends with the process that holds it, however that ends. A `fast_dev_run` writes
    nothing and takes none.

    Args:
        trainer: of the fit.
        root: `trainer.default_root_dir` of the config; None for none.

    Raises:
        PrmkitError: another fit uses one of the folders.
        ConfigError: a folder cannot be made or written.
    """
    with ExitStack() as stack:
        if is_first_process() and not trainer.fast_dev_run:
            for key, folder in _folders(trainer, root):
                stack.callback(os.close, _locked(key, folder))
        yield


def _folders(trainer: Trainer, root: str | None) -> list[tuple[str, Path]]:
    """Keys and folders to be locked: the run folder and those of checkpoints, which other runs may name as well."""
    named = [] if root is None or "://" in root else [("trainer.default_root_dir", Path(root).resolve())]
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and saver.dirpath is not None and "://" not in str(saver.dirpath):
            folder = Path(saver.dirpath).resolve()
            if folder not in [held for _, held in named]:
                named.append(("trainer.callbacks.ModelCheckpoint.dirpath", folder))
    return named


def _locked(key: str, folder: Path) -> int:
    """Handle of a folder's lock, held until it is closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise _unusable(key, folder, error) from error
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise PrmkitError(
                f"{key}: another fit writes to {folder} ({holder}). Wait for its end, or give this one a folder of its "
                f"own (--trainer.default_root_dir NEW)."
            ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def check_places(trainer: Trainer) -> None:
    """Refuse callbacks and loggers whose files cannot be written, before anything is loaded. Makes no folder.

    Raises:
        ConfigError: names the callback or logger, its path and the reason.
    """
    if trainer.fast_dev_run:
        return
    owners: Sequence[Any] = [*trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    for owner in owners:
        for name in ("dirpath", "path", "save_dir"):
            place = getattr(owner, name, None)
            if isinstance(place, (str, Path)) and str(place) and "://" not in str(place):
                _check_place(f"{type(owner).__name__}.{name}", Path(place), is_file=name == "path")


def _check_place(key: str, place: Path, is_file: bool) -> None:
    folder = place.absolute().parent if is_file else place.absolute()
    if is_file and place.is_dir():
        raise ConfigError(key, str(place), "the path of a file; a folder of that name is there")
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ConfigError(key, str(place), f"a path that can be written; {there} is a file", "Name another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(key, str(place), f"a path that can be written; {there} allows no writing", "Name another.")


def _unusable(key: str, folder: Path, error: OSError) -> ConfigError:
    where = f" ({error.filename})" if error.filename and Path(error.filename) != folder else ""
    return ConfigError(key, str(folder), f"a folder that can be made and written; {error.strerror}{where}")
