"""Whether stored weights are whole and finite, not only the bytes that were published."""

from __future__ import annotations

import hashlib
from functools import partial
from io import RawIOBase
from typing import BinaryIO, cast

from prmkit.errors import DataError
from prmkit.weights import INDEX_FILE, SPOILED, StoredFile, check_stored, not_finite, read_header
from registry.manifest import Manifest
from registry.names import blob_key
from registry.storage import Storage, Watch
from registry.storage.transfer import CHUNK

__all__ = ["check_content", "check_models"]


def check_models(storage: Storage, manifest: Manifest) -> None:
    """Read the headers of a version's weights; DataError when a file, a part or a tensor of a model is missing."""
    for member in ("policy", "prm"):
        files = {
            file.path: StoredFile(
                f"{manifest.ref}: {member}/{file.path}", file.size, partial(storage.open, blob_key(file.sha256))
            )
            for file in manifest.files(member)
            if file.path == INDEX_FILE or (file.path.endswith(".safetensors") and "/" not in file.path)
        }
        check_stored(f"{manifest.ref}: {member}", files)


def check_content(storage: Storage, digest: str, size: int, watch: Watch, *, weights: bool) -> tuple[bool, str | None]:
    """Read a stored content once, from beginning to end.

    Args:
        storage: where.
        digest: SHA-256 that it must have.
        size: its bytes.
        watch: told of the bytes.
        weights: it is a safetensors file, whose header and numbers are looked at on the way.

    Returns:
        Whether the content is the one that was published; and what is wrong with it, None when nothing is.

    Raises:
        NotFoundError: there is none.
    """
    with storage.open(blob_key(digest)) as source:
        file = _Hashing(source, watch)
        fault = _fault(cast(BinaryIO, file), size) if weights else None
        while file.read(CHUNK):
            pass
    found = file.digest.hexdigest()
    if found != digest:
        return False, f"damaged: its content has the SHA-256 {found}"
    return True, fault


def _fault(file: BinaryIO, size: int) -> str | None:
    try:
        name = not_finite(file, read_header(file, size, "published so"))
    except DataError as error:
        return str(error)
    return None if name is None else f"published so: {name} {SPOILED}"


class _Hashing(RawIOBase):
    """A file that is read from its beginning, hashed and counted on the way."""

    def __init__(self, source: BinaryIO, watch: Watch) -> None:
        self._source, self._watch = source, watch
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        self._watch.advance(len(data))
        return data
