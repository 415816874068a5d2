"""Manifests of versions: read one, and write the next one under a number that nobody else has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from registry.errors import NotFoundError
from registry.listing import check_place, list_versions
from registry.manifest import Manifest
from registry.names import PairRef, version_key
from registry.storage import Storage

__all__ = ["create_version", "find_by_key", "read_manifest"]


def read_manifest(storage: Storage, ref: PairRef) -> Manifest:
    """The manifest of a version. See `Manifest.from_bytes`; NotFoundError when it is not there."""
    assert ref.version is not None  # `resolve` gives references with a number
    key = version_key(ref.pair, ref.version)
    stored = storage.read(key)
    if stored is None:
        raise NotFoundError(f"{ref}: no such version in {storage.url}")
    manifest = Manifest.from_bytes(stored.data, f"{storage.url}/{key}")
    check_place(manifest.pair, manifest.version, ref, storage.url)
    return manifest


def find_by_key(storage: Storage, pair: str, key: str, among: Iterable[int]) -> Manifest | None:
    """The version that was published under a key of its publisher, of these numbers; None when there is none."""
    for number in sorted(among, reverse=True):
        manifest = read_manifest(storage, PairRef(pair, number))
        if manifest.key == key:
            return manifest
    return None


def create_version(
    storage: Storage, pair: str, make: Callable[[int], Manifest], key: str | None
) -> tuple[Manifest, bool]:
    """Publish under the next number that is free; the caller holds `storage.publishing()`.

    Args:
        storage: where.
        pair: its name.
        make: the manifest for a number.
        key: the publication's own name; a version that has it already is returned instead. None for none.

    Returns:
        The manifest, and whether it is new.
    """
    seen: set[int] = set()
    while True:
        numbers = list_versions(storage, pair)
        if key is not None:
            # Numbers are handed out one after the other, so whoever creates n has looked at all before n.
            known = find_by_key(storage, pair, key, set(numbers) - seen)
            if known is not None:
                return known, False
            seen.update(numbers)
        number = numbers[-1] + 1 if numbers else 1
        manifest = make(number)
        if storage.create(version_key(pair, number), manifest.to_bytes()):
            return manifest, True
