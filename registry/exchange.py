"""Versions from one store to another. Numbers stay: `math@7` is the same pair in every store that has it."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from registry.errors import ConflictError, NotFoundError
from registry.listing import list_versions
from registry.manifest import FileEntry, Manifest
from registry.names import PairRef, blob_key, parse_ref, version_key
from registry.storage import Storage, Watch
from registry.storage.transfer import download, in_parallel
from registry.versions import read_manifest

__all__ = ["copy_versions", "with_ancestors"]


def with_ancestors(storage: Storage, ref: PairRef) -> list[PairRef]:
    """A version and those it was made from, as far as the store has them, the oldest first."""
    found: list[PairRef] = []
    current: PairRef | None = ref
    while current is not None and current not in found and current.version in list_versions(storage, current.pair):
        found.insert(0, current)
        parent = read_manifest(storage, current).parent
        current = None if parent is None else parse_ref(parent)
    return found


def copy_versions(source: Storage, target: Storage, refs: Sequence[PairRef], watch: Watch) -> list[PairRef]:
    """Copy versions; returns those that the target did not have. Only contents it lacks are moved.

    Raises:
        ConflictError: the target has another version of that number.
        DamagedError: a file of the source is not what was published.
    """
    target.prepare()
    manifests = [read_manifest(source, ref) for ref in refs]
    contents = {file.sha256: file for manifest in manifests for file in manifest.located().values()}
    with target.publishing(), tempfile.TemporaryDirectory(prefix="prmkit-") as scratch:
        for manifest in manifests:
            _check_number(source, target, manifest)
        missing = [file for file in contents.values() if target.size(blob_key(file.sha256)) != file.size]
        missing.sort(key=lambda file: -file.size)
        watch.begin(len(missing), sum(file.size for file in missing))
        in_parallel(lambda file: _copy(source, target, file, Path(scratch), watch), missing)
        return [PairRef(m.pair, m.version) for m in manifests if _create(source, target, m)]


def _check_number(source: Storage, target: Storage, manifest: Manifest) -> None:
    key = version_key(manifest.pair, manifest.version)
    there, ours = target.read(key), source.read(key)
    if there is not None and ours is not None and there.data != ours.data:
        raise ConflictError(
            f"{manifest.ref}: {target.url} has another version of this number; the stores have grown apart. Publish "
            f"the pair there under another name."
        )


def _create(source: Storage, target: Storage, manifest: Manifest) -> bool:
    key = version_key(manifest.pair, manifest.version)
    stored = source.read(key)
    if stored is None:
        raise NotFoundError(f"{source.url}/{key}: vanished while it was copied")
    if target.create(key, stored.data):
        return True
    _check_number(source, target, manifest)
    return False


def _copy(source: Storage, target: Storage, file: FileEntry, scratch: Path, watch: Watch) -> None:
    key = blob_key(file.sha256)
    local = source.local_path(key)
    if local is not None:
        if not local.is_file():
            raise NotFoundError(f"{local}: missing from the registry")
        target.put_blob(local, file.sha256, watch)
        return
    # Into a store on this machine it goes through a file in that store, which a later attempt finds again.
    place = (target.local_path("tmp") or scratch) / f"fetch-{file.sha256}"
    with place.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        if target.size(key) != file.size:
            download(source, key, file.sha256, file.size, place, watch)
            target.adopt_blob(place, file.sha256)
