"""A registry on any file system that fsspec reaches (gs://, abfs://, sftp://, hf://, memory:// ...).

What holds here: contents are verified by their SHA-256, a file appears under its name after it was written whole, and
a killed writer leaves no half version (manifests are sealed). What does not: fsspec has no conditional writes, so
two publishers may take the same number and two alias moves may lose one. Changes are therefore refused until the user
says that there is one writer at a time (`single_writer`, `--single-writer`).
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from prmkit.errors import ConfigError, MissingDependencyError
from prmkit.ownership import remove_file
from registry.errors import DamagedError, NotFoundError
from registry.names import blob_key
from registry.storage.base import MARKER, MARKER_TEXT, Blob, Entry, Silent, Stored, Watch, check_marker
from registry.storage.transfer import copy_hashing, hash_file

__all__ = ["FsspecStorage"]

_TEMPORARY = "tmp/"
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class FsspecStorage:
    """See `registry.storage.Storage`.

    Args:
        url: with a scheme that fsspec knows.
        single_writer: the user's word that nobody else writes at the same time.
    """

    conditional = False

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        from fsspec.core import url_to_fs

        try:
            self._fs, root = url_to_fs(url)
        except ValueError as error:
            raise ConfigError("registry", url, "a folder, s3://bucket/prefix or a URL that fsspec knows") from error
        except ImportError as error:
            raise MissingDependencyError(f"{url}: {error}") from error
        self._root = root.rstrip("/")
        self.url = url.rstrip("/")
        self._single_writer = single_writer

    def prepare(self) -> None:
        self._check_writer()
        if not check_marker(self):
            self.create(MARKER, MARKER_TEXT)

    def _check_writer(self) -> None:
        if not self._single_writer:
            raise ConfigError(
                "registry",
                self.url,
                "a folder or s3:// for several writers",
                "This place has no conditional writes. Say --single-writer (single_writer=True) if nobody else "
                "publishes, moves aliases or collects garbage at the same time.",
            )

    # -- small files ------------------------------------------------------------------------------------------------

    def read(self, key: str) -> Stored | None:
        try:
            data: bytes = self._fs.cat_file(self._path(key))
        except FileNotFoundError:
            return None
        return Stored(data, data.decode("latin-1"))  # the content stands for itself

    def create(self, key: str, data: bytes) -> bool:
        if self.size(key) is not None:
            return False
        self._write(key, data)
        return True

    def replace(self, key: str, data: bytes, token: str) -> bool:
        current = self.read(key)
        if current is None or current.token != token:
            return False
        self._write(key, data)
        return True

    def _write(self, key: str, data: bytes) -> None:
        with self._written(key) as temporary:
            self._fs.pipe_file(temporary, data)

    @contextmanager
    def _written(self, key: str) -> Iterator[str]:
        """A temporary path that takes its place when the block has filled it."""
        self._check_writer()
        temporary = self._path(f"{_TEMPORARY}{secrets.token_hex(8)}")
        self._fs.makedirs(self._fs._parent(temporary), exist_ok=True)
        yield temporary
        self._fs.makedirs(self._fs._parent(self._path(key)), exist_ok=True)
        self._fs.mv(temporary, self._path(key))

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    # -- listings ---------------------------------------------------------------------------------------------------

    def entries(self, prefix: str) -> list[Entry]:
        self._fs.invalidate_cache()
        found: dict[str, Any] = self._fs.find(self._path(prefix.rstrip("/")), detail=True)
        cut = len(self._root) + 1
        return [Entry(path[cut:], int(info["size"]), _time(info)) for path, info in found.items()]

    def names(self, prefix: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(self._path(prefix.rstrip("/")), detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in listed]

    # -- blobs ------------------------------------------------------------------------------------------------------

    def open(self, key: str, offset: int = 0) -> BinaryIO:
        try:
            file = self._fs.open(self._path(key), "rb")
        except FileNotFoundError:
            raise NotFoundError(f"{self.url}/{key}: missing from the registry") from None
        file.seek(offset)
        return cast(BinaryIO, file)

    def size(self, key: str) -> int | None:
        try:
            return int(self._fs.size(self._path(key)))
        except FileNotFoundError:
            return None

    def local_path(self, key: str) -> None:
        del key  # nothing lies on this machine

    def put_blob(self, source: Path, sha256: str | None, watch: Watch) -> Blob:
        size = source.stat().st_size
        wanted = sha256 or hash_file(source)
        key = blob_key(wanted)
        if self.size(key) == size:
            watch.advance(size)
            return Blob(wanted, size, written=False)
        digest = hashlib.sha256()
        with self._written(key) as temporary:
            with source.open("rb") as file, self._fs.open(temporary, "wb") as target:
                copy_hashing(file, target, digest, watch)
            if digest.hexdigest() != wanted:
                raise DamagedError(f"{source}: its content has the SHA-256 {digest.hexdigest()}, expected {wanted}")
        return Blob(wanted, size, written=True)

    def adopt_blob(self, source: Path, sha256: str) -> None:
        self.put_blob(source, sha256, Silent())
        remove_file(source)

    # -- publishers and garbage -------------------------------------------------------------------------------------

    @contextmanager
    def publishing(self) -> Iterator[None]:
        self._check_writer()
        yield

    @contextmanager
    def collecting(self, patience: float, grace: float) -> Iterator[None]:
        del patience, grace  # there is one writer, and it is this one
        self._check_writer()
        yield

    def leftovers(self) -> list[Entry]:
        return self.entries(_TEMPORARY)

    def discard(self, leftovers: Iterable[Entry]) -> None:
        for entry in leftovers:
            self.delete(entry.key)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


def _time(info: dict[str, Any]) -> float:
    """Seconds since 1970 of a listing's entry; 0 where the file system tells none."""
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0
