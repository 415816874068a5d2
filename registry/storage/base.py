"""What a registry needs of the place it lies in.

Two operations carry all guarantees among processes: `create`, which makes a file that is not there or says that
it is, and `replace`, which changes a file only if it is still the one that was read. Places that have neither
(`conditional` is False) are safe for one writer at a time, who has to say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from registry.errors import NewerSchemaError, NotFoundError

__all__ = [
    "DEFAULT_URL",
    "MARKER",
    "MARKER_TEXT",
    "URL_VARIABLE",
    "Blob",
    "Entry",
    "Silent",
    "Storage",
    "Stored",
    "Watch",
    "check_marker",
    "registry_url",
    "require_registry",
]

DEFAULT_URL = "runs/registry"
URL_VARIABLE = "PRMKIT_REGISTRY"
MARKER = "registry.json"
MARKER_TEXT = b'{"format": "prmkit pairs", "schema": 1}\n'


@dataclass(frozen=True, slots=True)
class Stored:
    """A small file: its bytes, and a token that stands for this content in `replace`."""

    data: bytes
    token: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a listing: key, bytes, and seconds since 1970 by the store's clock."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored content: SHA-256, bytes, and whether it had to be written."""

    sha256: str
    size: int
    written: bool


class Watch(Protocol):
    """Told of progress, from several threads at once."""

    def begin(self, files: int, size: int) -> None:
        """So many files of so many bytes in all follow."""

    def advance(self, size: int) -> None:
        """So many bytes more have been copied, or found to be there already."""


class Silent:
    """A Watch that nobody reads."""

    def begin(self, files: int, size: int) -> None:
        del files, size

    def advance(self, size: int) -> None:
        del size


class Storage(Protocol):
    """A place that holds a registry. Keys are paths with `/`; their parts have passed `registry.names`.

    Attributes:
        url: how to open it again.
        conditional: whether `create` and `replace` hold among processes.
    """

    url: str
    conditional: bool

    def prepare(self) -> None:
        """Make the registry if there is none. Called before the first change.

        Raises:
            ConfigError: the place holds something else, or cannot keep concurrent writers apart and the user has not
                said that there is only one.
        """

    def read(self, key: str) -> Stored | None:
        """A small file, None when there is none."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a file, whole or not at all; False when one is there already."""

    def replace(self, key: str, data: bytes, token: str) -> bool:
        """Write a file in place of the one with this token; False when it is another one by now."""

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def entries(self, prefix: str) -> list[Entry]:
        """All files under a prefix that ends in `/`, at any depth, in no order."""

    def names(self, prefix: str) -> list[str]:
        """Names of the files and folders directly under a prefix that ends in `/`, in no order."""

    def open(self, key: str, offset: int = 0) -> BinaryIO:
        """A large file's bytes from an offset on. NotFoundError when there is none."""

    def size(self, key: str) -> int | None:
        """Bytes of a file, None when there is none."""

    def put_blob(self, source: Path, sha256: str | None, watch: Watch) -> Blob:
        """Store the content of a local file, unless it is there.

        Args:
            source: the file.
            sha256: its digest when it is known; DamagedError when the content turns out to be another.
            watch: told of the bytes.
        """

    def adopt_blob(self, source: Path, sha256: str) -> None:
        """Store a local file whose digest has been checked, and take the file away."""

    def local_path(self, key: str) -> Path | None:
        """The file behind a key when it can be opened as one on this machine."""

    def publishing(self) -> AbstractContextManager[None]:
        """While it is held no garbage is collected. Many may hold it. BusyError while `collecting` is held."""

    def collecting(self, patience: float, grace: float) -> AbstractContextManager[None]:
        """While it is held nobody publishes.

        Args:
            patience: seconds to wait for publishers; BusyError after that.
            grace: seconds after which a remote publisher that has not finished counts as dead.
        """

    def leftovers(self) -> list[Entry]:
        """What killed writers left besides blobs. Only meaningful while `collecting` is held."""

    def discard(self, leftovers: Iterable[Entry]) -> None:
        """Remove leftovers."""


def registry_url(url: str | Path | None = None) -> str:
    """The URL itself, else that of the environment variable PRMKIT_REGISTRY, else `runs/registry`."""
    return str(url) if url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL


def check_marker(storage: Storage) -> bool:
    """Whether there is a registry; NewerSchemaError when it is laid out in a way this version does not know."""
    stored = storage.read(MARKER)
    if stored is None:
        return False
    if stored.data != MARKER_TEXT:
        raise NewerSchemaError(
            f"{storage.url}/{MARKER}: got {stored.data[:80]!r}; this version of prmkit reads {MARKER_TEXT.strip()!r}. "
            f"Upgrade prmkit, or check that this is a registry of pairs."
        )
    return True


def require_registry(storage: Storage) -> None:
    """NotFoundError unless there is a registry."""
    if not check_marker(storage):
        raise NotFoundError(
            f"{storage.url}: no registry of pairs here. `prm pairs publish` makes one; --registry or the environment "
            f"variable {URL_VARIABLE} name another place."
        )
