"""What a registry holds, and what a reference means, read without decoding manifests: `prm pairs list` in a moment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prmkit.errors import PrmkitError
from registry.aliases import alias_target
from registry.errors import DamagedError, NotFoundError
from registry.names import LATEST, PairRef, check_pair, parse_ref, version_key, version_prefix
from registry.sealed import MANIFEST_SCHEMA, check_schema, unseal
from registry.storage import Storage
from registry.storage.transfer import in_parallel

__all__ = ["Summary", "check_place", "list_pairs", "list_versions", "resolve", "summaries"]


@dataclass(frozen=True, slots=True)
class Summary:
    """A line of `prm pairs list`.

    Attributes:
        pair, version, published, by, size, parent: as in Manifest.
        figures: value of every metric by name.
        passed: whether it passed the gate.
    """

    pair: str
    version: int
    published: str
    by: str
    size: int
    parent: str | None
    figures: dict[str, float]
    passed: bool


def list_pairs(storage: Storage) -> list[str]:
    """Names of the pairs, sorted."""
    return sorted(name for name in storage.names("pairs/") if _is_pair(name))


def list_versions(storage: Storage, pair: str) -> list[int]:
    """Numbers of a pair's versions, ascending; none for a pair that is not there."""
    names = (name.removesuffix(".json") for name in storage.names(version_prefix(check_pair(pair))))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def resolve(storage: Storage, ref: str | PairRef) -> PairRef:
    """The reference with a number. NotFoundError says what there is."""
    ref = parse_ref(ref) if isinstance(ref, str) else ref
    versions = list_versions(storage, ref.pair)
    if not versions:
        pairs = ", ".join(list_pairs(storage)) or "none"
        raise NotFoundError(f"{ref.pair}: no such pair in {storage.url}; there are: {pairs}")
    number = ref.version
    if ref.alias == LATEST:
        number = versions[-1]
    elif ref.alias is not None:
        number = alias_target(storage, ref.pair, ref.alias)
    if number is None:
        raise NotFoundError(f"{ref}: no such alias; `prm pairs list {ref.pair}` shows versions and aliases")
    if number not in versions:
        raise NotFoundError(f"{ref}: no such version in {storage.url}; there are {_span(versions)}")
    return PairRef(ref.pair, number)


def summaries(storage: Storage, pair: str) -> list[Summary]:
    """All versions of a pair, ascending; seals are checked, files are not looked at."""

    def read(number: int) -> Summary:
        key = version_key(pair, number)
        stored = storage.read(key)
        if stored is None:
            raise NotFoundError(f"{storage.url}/{key}: vanished while it was read")
        value = check_schema(unseal(stored.data, f"{storage.url}/{key}"), MANIFEST_SCHEMA, f"{pair}@{number}")
        return _summary(value, PairRef(pair, number), storage.url)

    numbers = list_versions(storage, pair)
    if storage.local_path("") is not None:  # threads would cost more than they gain
        return [read(number) for number in numbers]
    return in_parallel(read, numbers)


def check_place(pair: str, version: int, ref: PairRef, url: str) -> None:
    """A manifest copied by hand to another name would give one version two contents."""
    if (pair, version) != (ref.pair, ref.version):
        raise DamagedError(f"{url}/{version_key(ref.pair, ref.version or 0)}: is the manifest of {pair}@{version}")


def _summary(value: dict[str, Any], ref: PairRef, url: str) -> Summary:
    check_place(value["pair"], value["version"], ref, url)
    metrics = value["metrics"]
    return Summary(
        pair=value["pair"],
        version=value["version"],
        published=value["published"],
        by=value["by"],
        size=value["size"],
        parent=value["parent"],
        figures={} if metrics is None else {name: f["value"] for name, f in metrics["figures"].items()},
        passed=value["gate"]["passed"],
    )


def _is_pair(name: str) -> bool:
    try:
        check_pair(name)
    except PrmkitError:  # a file of somebody else's making
        return False
    return True


def _span(versions: list[int]) -> str:
    return json.dumps(versions) if len(versions) <= 10 else f"{len(versions)} from {versions[0]} to {versions[-1]}"
