"""Where a registry lies: a folder, S3, or anything that fsspec knows.

`base` says what a registry needs of a place, `opening` opens one by its URL; `local`, `s3` and `remote` are the kinds,
`leases` keeps publishers and the collection of garbage apart where there are no locks, `transfer` moves contents.
"""

from registry.storage.base import (
    DEFAULT_URL,
    MARKER,
    MARKER_TEXT,
    URL_VARIABLE,
    Blob,
    Entry,
    Silent,
    Storage,
    Stored,
    Watch,
    check_marker,
    registry_url,
    require_registry,
)

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
