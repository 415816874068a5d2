"""Opens the place of a registry by its URL. What a kind of place needs is imported when one is opened."""

from __future__ import annotations

from pathlib import Path

from prmkit.errors import ConfigError
from registry.storage.base import Storage

__all__ = ["open_storage"]


def open_storage(url: str, *, single_writer: bool = False) -> Storage:
    """The place of a URL: a folder (also as `file://`), `s3://bucket/prefix`, or any other that fsspec knows.

    Args:
        url: where.
        single_writer: the user's word that nobody else writes at the same time; needed to change a place without
            conditional writes.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return _local(url)
    match scheme:
        case "file" | "local":
            return _local(rest)
        case "s3":
            from registry.storage.s3 import S3Storage

            return S3Storage(url)
        case _:
            from registry.storage.remote import FsspecStorage

            return FsspecStorage(url, single_writer=single_writer)


def _local(path: str) -> Storage:
    from registry.storage.local import LocalStorage

    if not path:
        raise ConfigError("registry", path, "a folder, or a URL such as s3://bucket/prefix")
    return LocalStorage(Path(path))
