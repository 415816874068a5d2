"""Pulling: a version's files into a folder, each verified, only what is missing.

The folder belongs to the person who pulls: files are copies (or share blocks copied on write), never links into the
store, so that editing one harms nothing. `pair.json` says what the folder holds and is there only while that is
true; `.pull.json` stands in its place while a pull is at work, so that a killed one can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmkit.errors import DataError
from prmkit.io import read_json, write_atomic, write_json
from prmkit.ownership import remove_file
from registry.errors import ConflictError
from registry.manifest import FileEntry, Manifest
from registry.names import blob_key, check_digest, check_path
from registry.soundness import check_models
from registry.storage import Storage, Watch
from registry.storage.transfer import (
    download,
    hash_file,
    in_parallel,
    locked_folder,
    part_of,
    refuse_links,
    sync_folder,
)

__all__ = ["PULLED_FILE", "PulledPair", "pull"]

PULLED_FILE = "pair.json"
_AT_WORK = ".pull.json"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PulledPair:
    """A pair on this machine.

    Attributes:
        manifest: what it is.
        folder: where; `policy`, `prm` and `attachments` lie in it.
        copied: files that had to be copied.
    """

    manifest: Manifest
    folder: Path
    copied: int

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def prm(self) -> Path:
        return self.folder / "prm"


def pull(
    storage: Storage,
    manifest: Manifest,
    folder: Path,
    watch: Watch,
    *,
    force: bool = False,
    trust: bool = False,
    wait: bool = False,
) -> PulledPair:
    """Bring a version into a folder.

    Args:
        storage: where from.
        manifest: the version.
        folder: made when it is not there. It may hold this or another version, which is replaced.
        watch: told of the bytes.
        force: overwrite files that were changed after they were pulled, or that no pull put there.
        trust: take a folder that says it holds this version, with files of the right sizes, as it is.
        wait: let another process that writes to the folder finish first.

    Raises:
        ConflictError: such a file is in the way.
        DamagedError: a stored file is not what was published; the message names it.
        DataError: the version's weights are not whole: it was published so.
        BusyError: another process pulls into the folder, and `wait` is not set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder, wait=wait):
        wanted = manifest.located()
        if trust and _holds(folder, manifest) and _sizes_agree(folder, wanted):
            return PulledPair(manifest, folder, 0)
        for leftover in (*folder.glob(f".{PULLED_FILE}.*.tmp"), *folder.glob(f".{_AT_WORK}.*.tmp")):
            remove_file(leftover)  # of a pull that was killed
        owned = _owned(folder, force)
        missing = _missing(folder, wanted, owned, force)
        stale = _stale(folder, wanted, owned, force)
        if not missing and not stale and _holds(folder, manifest):
            return PulledPair(manifest, folder, 0)
        check_models(storage, manifest)
        # From here on the folder is neither the old version nor the new one.
        kept = {path: list(digests) for path, digests in owned.items()}
        for path, file in wanted.items():
            kept.setdefault(path, []).append(file.sha256)
        write_json(folder / _AT_WORK, {"schema": _SCHEMA, "pair": manifest.ref, "files": kept})
        remove_file(folder / PULLED_FILE)
        for leftover in [*map(Path, stale), *_parts_of_others(wanted, owned)]:
            remove_file(folder / leftover)
        _copy(storage, folder, missing, watch)
        write_atomic(folder / PULLED_FILE, manifest.to_bytes())
        remove_file(folder / _AT_WORK)
        sync_folder(folder)
    return PulledPair(manifest, folder, len(missing))


def _owned(folder: Path, force: bool) -> dict[str, list[str]]:
    """Digests that earlier pulls may have given to files, by path."""
    owned: dict[str, list[str]] = {}
    at_work, pulled = folder / _AT_WORK, folder / PULLED_FILE
    if at_work.is_file():
        value: Any = read_json(at_work)
        if not isinstance(value, dict) or value.get("schema") != _SCHEMA:
            raise DataError(f"{at_work}: not written by this version of prmkit; pull into another folder")
        owned = {check_path(path): [check_digest(d) for d in digests] for path, digests in value["files"].items()}
    if pulled.is_file():
        try:
            manifest = Manifest.from_bytes(pulled.read_bytes(), str(pulled))
        except DataError as error:
            if force:
                return owned
            raise ConflictError(f"{pulled}: not as a pull left it ({error}). Pull elsewhere, or use --force") from None
        for path, file in manifest.located().items():
            owned.setdefault(path, []).append(file.sha256)
    return owned


def _missing(
    folder: Path, wanted: Mapping[str, FileEntry], owned: Mapping[str, list[str]], force: bool
) -> dict[str, FileEntry]:
    """The files that are not there yet; ConflictError when something else is in their place."""

    def needed(item: tuple[str, FileEntry]) -> bool:
        path, file = item
        place = folder / path
        refuse_links(place, folder)
        if not place.exists():
            return True
        if not place.is_file():
            raise ConflictError(f"{place}: in the way of a file of the pair; remove it")
        digest = hash_file(place)
        if digest != file.sha256 and digest not in owned.get(path, ()) and not force:
            raise ConflictError(
                f"{place}: differs from the pair's file and is not as a pull left it; move it away, pull into another "
                f"folder, or overwrite it with --force"
            )
        return digest != file.sha256

    items = list(wanted.items())
    return {path: file for (path, file), absent in zip(items, in_parallel(needed, items), strict=True) if absent}


def _stale(folder: Path, wanted: Mapping[str, FileEntry], owned: Mapping[str, list[str]], force: bool) -> list[str]:
    """Files of earlier pulls that this version does not have; changed ones are kept from removal by ConflictError."""
    stale = []
    for path, digests in owned.items():
        place = folder / path
        refuse_links(place, folder)
        if path in wanted or not place.is_file():
            continue
        if not force and hash_file(place) not in digests:
            raise ConflictError(f"{place}: was changed after it was pulled; move it away, or remove it with --force")
        stale.append(path)
    return stale


def _holds(folder: Path, manifest: Manifest) -> bool:
    pulled = folder / PULLED_FILE
    return not (folder / _AT_WORK).exists() and pulled.is_file() and pulled.read_bytes() == manifest.to_bytes()


def _sizes_agree(folder: Path, wanted: Mapping[str, FileEntry]) -> bool:
    places = [(folder / path, file.size) for path, file in wanted.items()]
    return all(place.is_file() and place.stat().st_size == size for place, size in places)


def _parts_of_others(wanted: Mapping[str, FileEntry], owned: Mapping[str, list[str]]) -> list[Path]:
    """What killed pulls of other versions left of files that are not wanted any more."""
    return [
        part_of(Path(path), digest)
        for path, digests in owned.items()
        for digest in digests
        if path not in wanted or wanted[path].sha256 != digest
    ]


def _copy(storage: Storage, folder: Path, missing: Mapping[str, FileEntry], watch: Watch) -> None:
    watch.begin(len(missing), sum(file.size for file in missing.values()))
    largest_first = sorted(missing.items(), key=lambda item: -item[1].size)

    def fetch(item: tuple[str, FileEntry]) -> None:
        path, file = item
        download(storage, blob_key(file.sha256), file.sha256, file.size, folder / path, watch)

    in_parallel(fetch, largest_first)
    for parent in {(folder / path).parent for path in missing}:
        sync_folder(parent)
