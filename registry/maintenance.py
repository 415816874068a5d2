"""Looking after a store: does every byte still say what was published, and what does nothing refer to?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prmkit.errors import DataError, PrmkitError
from registry.aliases import moves
from registry.compatibility import KIND_PROBLEMS
from registry.errors import NotFoundError
from registry.listing import list_pairs, list_versions
from registry.manifest import Manifest
from registry.names import PairRef, blob_key
from registry.soundness import check_content, check_models
from registry.storage import Entry, Storage, Watch
from registry.storage.transfer import in_parallel
from registry.versions import read_manifest

__all__ = ["GarbageReport", "Problem", "VerifyReport", "collect_garbage", "verify"]

_BLOBS = "blobs/"


@dataclass(frozen=True, slots=True)
class Problem:
    """A stored file that is not as it should be.

    Attributes:
        key: the file, within the store.
        text: what is wrong with it.
        affects: the pair's files that need it, e.g. `math@3: prm/model.safetensors`.
    """

    key: str
    text: str
    affects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found, and how much was looked at: versions, contents, bytes."""

    problems: tuple[Problem, ...]
    versions: int
    blobs: int
    size: int

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What nothing refers to, with its bytes: contents, and what killed writers left."""

    blobs: tuple[Entry, ...]
    leftovers: tuple[Entry, ...]

    @property
    def size(self) -> int:
        return sum(entry.size for entry in (*self.blobs, *self.leftovers))


def verify(
    storage: Storage, watch: Watch, refs: Iterable[PairRef] | None = None, *, remove_damaged: bool = False
) -> VerifyReport:
    """Read and hash what is stored, and look whether weights are whole and finite.

    Args:
        storage: where.
        watch: told of the bytes.
        refs: these versions only; None looks at all versions, aliases, logs and contents, those without a version too.
        remove_damaged: remove contents that are damaged, so that publishing or fetching them again restores them. What
            is stored as it was published stays, sound or not.
    """
    problems: list[Problem] = []
    everything = refs is None
    wanted = list(refs) if refs is not None else _all_refs(storage)
    manifests = [m for m in in_parallel(lambda ref: _manifest(storage, ref, problems), wanted) if m is not None]
    needed: dict[str, tuple[int, list[str]]] = {}
    for manifest in manifests:
        for path, file in manifest.located().items():
            needed.setdefault(file.sha256, (file.size, []))[1].append(f"{manifest.ref}: {path}")
    if everything:
        for pair in list_pairs(storage):
            problems += _log_problems(storage, pair)
        for entry in storage.entries(_BLOBS):
            digest = entry.key.rpartition("/")[2]
            if entry.key == blob_key(digest):  # not a file of somebody else's making
                needed.setdefault(digest, (entry.size, []))
    watch.begin(len(needed), sum(size for size, _ in needed.values()))
    weights = {digest for digest, (_, users) in needed.items() if any(u.endswith(".safetensors") for u in users)}
    checked = in_parallel(
        lambda digest: (digest, *_check_blob(storage, digest, needed[digest][0], watch, digest in weights)), needed
    )
    for digest, genuine, text in checked:
        if text is not None:
            problems.append(Problem(blob_key(digest), text, tuple(needed[digest][1])))
            if remove_damaged and not genuine and storage.size(blob_key(digest)) is not None:
                storage.delete(blob_key(digest))
    affected = {user for problem in problems for user in problem.affects}
    for manifest in manifests:
        if affected.isdisjoint(f"{manifest.ref}: {path}" for path in manifest.located()):
            problems += _model_problems(storage, manifest)
    return VerifyReport(tuple(problems), len(manifests), len(needed), sum(size for size, _ in needed.values()))


def _all_refs(storage: Storage) -> list[PairRef]:
    return [PairRef(pair, number) for pair in list_pairs(storage) for number in list_versions(storage, pair)]


def _manifest(storage: Storage, ref: PairRef, problems: list[Problem]) -> Manifest | None:
    try:
        return read_manifest(storage, ref)
    except PrmkitError as error:
        problems.append(Problem(str(ref), str(error), (str(ref),)))
        return None


def _model_problems(storage: Storage, manifest: Manifest) -> list[Problem]:
    """Of a version whose files are sound one by one: missing parts and tensors, and models of the wrong kind."""
    found = []
    try:
        check_models(storage, manifest)
    except DataError as error:
        found.append(str(error))
    found += [text for text in manifest.compatibility.problems if text in KIND_PROBLEMS]
    return [Problem(str(manifest.ref), text, (str(manifest.ref),)) for text in found]


def _log_problems(storage: Storage, pair: str) -> list[Problem]:
    try:
        moves(storage, pair)
    except PrmkitError as error:
        return [Problem(f"pairs/{pair}/history", str(error), (pair,))]
    return []


def _check_blob(storage: Storage, digest: str, size: int, watch: Watch, weights: bool) -> tuple[bool, str | None]:
    """See `check_content`; what is missing is not genuine either."""
    try:
        return check_content(storage, digest, size, watch, weights=weights)
    except NotFoundError:
        return False, "missing"


def collect_garbage(
    storage: Storage, *, dry_run: bool = False, patience: float = 60.0, grace: float = 24 * 3600.0
) -> GarbageReport:
    """Remove contents that no version refers to, and what killed writers left. Publishers wait meanwhile.

    Args:
        storage: where.
        dry_run: only report. It waits for nobody, so what it counts may be part of a publication at work.
        patience, grace: seconds; see `Storage.collecting`.

    Raises:
        BusyError: publishers are at work.
        DamagedError, NewerSchemaError: a manifest cannot be read, so nobody knows what it needs; nothing is removed.
    """
    if dry_run:
        return _garbage(storage)
    storage.prepare()
    with storage.collecting(patience, grace):
        report = _garbage(storage)
        for entry in report.blobs:
            storage.delete(entry.key)
        storage.discard(report.leftovers)
    return report


def _garbage(storage: Storage) -> GarbageReport:
    # Contents before manifests: a version published in between needs contents that are on the list or newer.
    stored = storage.entries(_BLOBS)
    leftovers = storage.leftovers()
    used = {
        file.sha256
        for manifest in in_parallel(lambda ref: read_manifest(storage, ref), _all_refs(storage))
        for file in manifest.located().values()
    }
    return GarbageReport(
        tuple(sorted((e for e in stored if e.key.rpartition("/")[2] not in used), key=lambda entry: entry.key)),
        tuple(sorted(leftovers, key=lambda entry: entry.key)),
    )
