"""A registry in a folder of this machine, or of a network file system with POSIX locks and hard links.

Files are written under `tmp/`, forced to disk, and linked to their names: whole or absent, even after a power cut.
Publishers hold the file `lock` shared and the collection of garbage holds it alone; the system ends the lock of a
process that dies, so nothing that was killed stays in the way.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from prmkit.errors import ConfigError
from prmkit.ownership import remove_file, rename
from registry.errors import BusyError, DamagedError, NotFoundError
from registry.names import blob_key
from registry.storage.base import MARKER, MARKER_TEXT, Blob, Entry, Stored, Watch, check_marker
from registry.storage.transfer import copy_hashing, hash_file, sync_folder

__all__ = ["LocalStorage"]

_SMALL = 8 * 2**20  # bytes; smaller files are read whole
_SAMPLE = 64 * 2**10
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_RETRY_SECONDS = 0.05


class LocalStorage:
    """See `registry.storage.Storage`."""

    conditional = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        self._prepared = False

    def prepare(self) -> None:
        if self._prepared:
            return
        # Looked at before the marker: who makes a registry writes the marker first.
        others = set(self.names("")) - {MARKER, "tmp", "lock", "swap.lock"}
        if not check_marker(self):
            if others:
                raise ConfigError(
                    "registry", self.url, "a registry, or a folder that is empty or not there", "It holds other files."
                )
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
            self.create(MARKER, MARKER_TEXT)
        (self.root / "tmp").mkdir(exist_ok=True)
        self._prepared = True

    # -- small files ------------------------------------------------------------------------------------------------

    def read(self, key: str) -> Stored | None:
        try:
            with Path(f"{self.url}/{key}").open("rb", buffering=0) as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stored(data, data.decode("latin-1"))  # the content stands for itself

    def create(self, key: str, data: bytes) -> bool:
        with self.publishing():
            temporary = self._write_temporary(data)
            try:
                return self._place(temporary, self.root / key)
            finally:
                remove_file(temporary)

    def replace(self, key: str, data: bytes, token: str) -> bool:
        with self.publishing(), self._locked("swap.lock", fcntl.LOCK_EX):
            current = self.read(key)
            if current is None or current.token != token:
                return False
            temporary = self._write_temporary(data)
            rename(temporary, self.root / key)
            sync_folder((self.root / key).parent)
            return True

    def delete(self, key: str) -> None:
        remove_file(self.root / key)

    def _write_temporary(self, data: bytes) -> Path:
        path, file = self._temporary()
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return path

    def _temporary(self, mode: int = 0o666) -> tuple[Path, BinaryIO]:
        path = self.root / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        return path, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")

    def _place(self, temporary: Path, target: Path) -> bool:
        """Give a finished file its name; False when the name is taken."""
        self._make_folder(target.parent)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with self._locked("swap.lock", fcntl.LOCK_EX):  # no hard links here: nobody else looks while we rename
                if target.exists():
                    return False
                rename(temporary, target)
        sync_folder(target.parent)
        return True

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)

    # -- listings ---------------------------------------------------------------------------------------------------

    def entries(self, prefix: str) -> list[Entry]:
        found = []
        for folder, _, files in os.walk(self.root / prefix):
            for name in files:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # removed while we looked
                    continue
                found.append(Entry(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime))
        return found

    def names(self, prefix: str) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self.root / prefix)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    # -- blobs ------------------------------------------------------------------------------------------------------

    def open(self, key: str, offset: int = 0) -> BinaryIO:
        try:
            file = (self.root / key).open("rb", buffering=0)
        except FileNotFoundError:
            raise NotFoundError(f"{self.root / key}: missing from the registry") from None
        file.seek(offset)
        return file

    def size(self, key: str) -> int | None:
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None

    def local_path(self, key: str) -> Path:
        return self.root / key

    def put_blob(self, source: Path, sha256: str | None, watch: Watch) -> Blob:
        size = source.stat().st_size
        if size <= _SMALL:
            return self._put_small(source.read_bytes(), source, sha256, watch)
        if sha256 is None and self._has_lookalike(source, size):
            sha256 = hash_file(source)
        if sha256 is not None and self.size(blob_key(sha256)) == size:
            watch.advance(size)
            return Blob(sha256, size, written=False)
        path, target = self._temporary(0o444)
        digest = hashlib.sha256()
        try:
            with target, source.open("rb", buffering=0) as file:
                size = copy_hashing(file, target, digest, watch)
                target.flush()
                os.fsync(target.fileno())
            found = _expect(digest.hexdigest(), sha256, source)
            return Blob(found, size, self._place_blob(path, found, size))
        finally:
            remove_file(path)

    def adopt_blob(self, source: Path, sha256: str) -> None:
        source.chmod(0o444)
        if not self._place_blob(source, sha256, source.stat().st_size):
            remove_file(source)

    def _put_small(self, data: bytes, source: Path, sha256: str | None, watch: Watch) -> Blob:
        found = _expect(hashlib.sha256(data).hexdigest(), sha256, source)
        watch.advance(len(data))
        stored = self.read(blob_key(found))
        if stored is not None and stored.data == data:
            return Blob(found, len(data), written=False)
        path, file = self._temporary(0o444)
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if stored is not None:  # the stored bytes are damaged, and these are the right ones
                rename(path, self.root / blob_key(found))
                return Blob(found, len(data), written=True)
            return Blob(found, len(data), self._place_blob(path, found, len(data)))
        finally:
            remove_file(path)

    def _place_blob(self, path: Path, sha256: str, size: int) -> bool:
        target = self.root / blob_key(sha256)
        if self._place(path, target):
            remove_file(path)
            return True
        if target.stat().st_size != size:  # damaged
            rename(path, target)
            return True
        return False

    def _has_lookalike(self, source: Path, size: int) -> bool:
        """Whether a stored content has this size and the same samples, so that hashing before copying may pay."""
        wanted: list[bytes] | None = None
        for folder in self.names("blobs/"):
            for entry in os.scandir(self.root / "blobs" / folder) if len(folder) == 2 else ():
                if entry.stat().st_size != size:
                    continue
                wanted = wanted or _samples(source, size)
                if _samples(Path(entry.path), size) == wanted:
                    return True
        return False

    # -- locks ------------------------------------------------------------------------------------------------------

    def publishing(self) -> AbstractContextManager[None]:
        return self._locked("lock", fcntl.LOCK_SH)

    @contextmanager
    def collecting(self, patience: float, grace: float) -> Iterator[None]:
        del grace  # the system knows who is alive
        end = time.monotonic() + patience
        with self._open_lock("lock") as file:
            while True:
                try:
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise BusyError(
                            f"{self.url}: publishers have been at work for {patience:g} s; try again later"
                        ) from None
                    time.sleep(_RETRY_SECONDS)
            yield

    @contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        with self._open_lock(name) as file:
            fcntl.flock(file.fileno(), kind)
            yield

    def _open_lock(self, name: str) -> BinaryIO:
        try:
            return (self.root / name).open("ab")
        except FileNotFoundError:
            raise NotFoundError(f"{self.url}: no registry of pairs here") from None

    def leftovers(self) -> list[Entry]:
        return self.entries("tmp/")

    def discard(self, leftovers: Iterable[Entry]) -> None:
        for entry in leftovers:
            self.delete(entry.key)


def _expect(found: str, wanted: str | None, source: Path) -> str:
    if wanted is not None and found != wanted:
        raise DamagedError(f"{source}: its content has the SHA-256 {found}, expected {wanted}")
    return found


def _samples(path: Path, size: int) -> list[bytes]:
    """The beginning, the middle and the end of a file."""
    with path.open("rb", buffering=0) as file:
        samples = []
        for offset in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(offset)
            samples.append(file.read(_SAMPLE))
        return samples
