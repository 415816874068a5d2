"""Publishers and the collection of garbage kept apart by small files, where there are no locks.

A publisher writes its lease and then looks for a collection; a collection writes its mark and then looks for leases.
On a store that shows every write to every later read (S3 does) at least one of the two sees the other and gives way.
Ages are differences of the store's own times, so clocks of machines do not matter.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from registry.errors import BusyError, ConflictError

if TYPE_CHECKING:
    from registry.storage.base import Entry, Storage

__all__ = ["collecting", "publishing"]

LEASES = "leases/"
MARKS = "collections/"
_RETRY_SECONDS = 1.0
_MARK_SECONDS = 24 * 3600.0  # a collection that is older has died


@contextmanager
def publishing(storage: Storage) -> Iterator[None]:
    """Hold a lease. BusyError while garbage is collected; ConflictError when the lease was taken away meanwhile."""
    key = _leave(storage, LEASES)
    try:
        marks = storage.entries(MARKS)
        if marks and not _stale(storage, key, marks, _MARK_SECONDS):
            raise BusyError(f"{storage.url}: garbage is being collected; try again in a minute")
        yield
        if storage.size(key) is None:
            raise ConflictError(f"{storage.url}: this publication took so long that it was taken for dead. Repeat it.")
    finally:
        storage.delete(key)


@contextmanager
def collecting(storage: Storage, patience: float, grace: float) -> Iterator[None]:
    """Hold the mark of a collection while there are no leases younger than `grace` seconds; older ones are removed."""
    key = _leave(storage, MARKS)
    try:
        end = time.monotonic() + patience
        while not _stale(storage, key, leases := storage.entries(LEASES), grace):
            if time.monotonic() >= end:
                raise BusyError(
                    f"{storage.url}: {len(leases)} publishers are at work or were killed; try again later, or name a "
                    f"shorter time after which they count as dead (--grace)"
                )
            time.sleep(_RETRY_SECONDS)
        for lease in leases:
            storage.delete(lease.key)
        yield
    finally:
        storage.delete(key)


def _leave(storage: Storage, prefix: str) -> str:
    key = f"{prefix}{secrets.token_hex(8)}.json"
    storage.create(key, json.dumps({"since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode())
    return key


def _stale(storage: Storage, own: str, entries: list[Entry], seconds: float) -> bool:
    """Whether all entries are older than so many seconds; the age of the file we just wrote is zero."""
    if not entries:
        return True
    prefix = own.rpartition("/")[0] + "/"
    now = max((entry.modified for entry in storage.entries(prefix)), default=0.0)
    return all(now - entry.modified >= seconds for entry in entries)
