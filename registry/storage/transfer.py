"""Moving file contents: hashed while they are copied, resumed where a kill cut them off, several at once.

Nothing arrives under its name before its SHA-256 has been checked.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from prmkit.errors import PrmkitError
from prmkit.ownership import remove_file, rename
from registry.errors import BusyError, DamagedError

if TYPE_CHECKING:
    from registry.storage.base import Storage, Watch

__all__ = [
    "CHUNK",
    "copy_hashing",
    "download",
    "hash_file",
    "in_parallel",
    "locked_folder",
    "part_of",
    "refuse_links",
    "sync_folder",
]

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 4 * 2**20
THREADS = 4
_FICLONE = 0x40049409  # <linux/fs.h>
_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM}


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashing(source: BinaryIO, target: BinaryIO, digest: hashlib._Hash, watch: Watch) -> int:
    """Copy to the end of `source`, adding every byte to `digest`; returns the bytes copied."""
    copied = 0
    while chunk := source.read(CHUNK):
        target.write(chunk)
        digest.update(chunk)
        copied += len(chunk)
        watch.advance(len(chunk))
    return copied


def download(storage: Storage, key: str, sha256: str, size: int, target: Path, watch: Watch) -> None:
    """Bring a stored content to a local file, which then is whole, verified and on disk.

    What an earlier attempt left in the hidden file beside the target is hashed and continued. The caller keeps others
    away from the target.

    Raises:
        DamagedError: the stored bytes are not those of `sha256`.
        NotFoundError: there are none.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target, sha256)
    resumed = part.exists()
    whole = _fetch(storage, key, sha256, size, part, watch)
    if not whole and resumed:  # the beginning was not what it seemed: once more, from nothing
        whole = _fetch(storage, key, sha256, size, part, watch)
    if not whole:
        raise DamagedError(
            f"{storage.url}/{key}: damaged: its content does not have the SHA-256 {sha256}. `prm pairs verify "
            f"--remove-damaged` takes it out of the registry; `prm pairs fetch`, or publishing the same file again, "
            f"restores it."
        )
    rename(part, target)


def part_of(target: Path, sha256: str) -> Path:
    """The hidden file beside a target in which its content gathers."""
    return target.with_name(f".{target.name}.{sha256[:16]}.part")


def _fetch(storage: Storage, key: str, sha256: str, size: int, part: Path, watch: Watch) -> bool:
    """Fill the part file; False, without one, when the content is not the one expected."""
    local = storage.local_path(key)
    digest = hashlib.sha256()
    with part.open("r+b" if part.exists() else "x+b") as file:
        if local is not None and os.fstat(file.fileno()).st_size == 0:
            _try_clone(local, file)
        done = _hash_prefix(file, size, digest, watch)
        if done < size:
            with storage.open(key, done) as source:
                done += copy_hashing(source, file, digest, watch)
        file.flush()
        os.fsync(file.fileno())
    if done == size and digest.hexdigest() == sha256:
        return True
    remove_file(part)
    return False


def _hash_prefix(file: BinaryIO, size: int, digest: hashlib._Hash, watch: Watch) -> int:
    """Hash what the part file holds already, at most `size` bytes, and cut off the rest; returns its length."""
    done = 0
    while done < size and (chunk := file.read(min(CHUNK, size - done))):
        digest.update(chunk)
        done += len(chunk)
        watch.advance(len(chunk))
    file.truncate(done)
    file.seek(done)
    return done


def _try_clone(source: Path, target: BinaryIO) -> None:
    """Share the source's blocks, copied on write, where the file system can; else leave the target empty."""
    if sys.platform != "linux":
        return
    try:
        with source.open("rb") as file:
            fcntl.ioctl(target.fileno(), _FICLONE, file.fileno())
    except FileNotFoundError:
        return  # opening it for the copy says so
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results of a function, in the order of the items, a few at once. The first error ends it."""
    work = list(items)
    if len(work) < 2:
        return [function(item) for item in work]
    pool = ThreadPoolExecutor(min(THREADS, len(work)), thread_name_prefix="registry")
    try:
        return list(pool.map(function, work))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def locked_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes that do the same out of a folder; the system ends the lock with the process.

    BusyError when one is in it, unless `wait` is set.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"{folder}: another process is writing to this folder; try again when it is done") from None
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Have the system write a folder's names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_links(path: Path, below: Path) -> None:
    """PrmkitError when a part of `path` below a folder is a symbolic link: writing there could leave the folder."""
    current = below
    for part in path.relative_to(below).parts:
        current = current / part
        if current.is_symlink():
            raise PrmkitError(f"{current}: a symbolic link; nothing is written through links. Remove it.")
