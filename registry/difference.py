"""What differs between two versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.manifest import FileEntry, Manifest
from registry.records import encode

__all__ = ["Difference", "difference"]

_IGNORED = {"pair", "version", "published", "size", "key"}


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs from the first version to the second.

    Attributes:
        added, removed, changed: paths of files, `<group>/<path>`.
        same: number of files that both have.
        shared: bytes that both have.
        new: bytes that only the second has.
        figures: (first, second) by metric; None where one has none.
        fields: (first, second) of other fields of the manifests, by dotted path.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: int
    shared: int
    new: int
    figures: Mapping[str, tuple[float | None, float | None]]
    fields: Mapping[str, tuple[Any, Any]]


def difference(first: Manifest, second: Manifest) -> Difference:
    """What differs from one version to another."""
    mine, theirs = first.located(), second.located()
    common = mine.keys() & theirs.keys()
    changed = {path for path in common if mine[path].sha256 != theirs[path].sha256}
    had = {file.sha256 for file in mine.values()}
    contents: dict[str, FileEntry] = {file.sha256: file for file in theirs.values()}
    return Difference(
        added=tuple(sorted(theirs.keys() - mine.keys())),
        removed=tuple(sorted(mine.keys() - theirs.keys())),
        changed=tuple(sorted(changed)),
        same=len(common) - len(changed),
        shared=sum(file.size for digest, file in contents.items() if digest in had),
        new=sum(file.size for digest, file in contents.items() if digest not in had),
        figures=_figures(first, second),
        fields=_fields(first, second),
    )


def _figures(first: Manifest, second: Manifest) -> dict[str, tuple[float | None, float | None]]:
    values = [{} if m.metrics is None else {k: f.value for k, f in m.metrics.figures.items()} for m in (first, second)]
    names = dict.fromkeys([*values[0], *values[1]])
    return {name: (values[0].get(name), values[1].get(name)) for name in names}


def _fields(first: Manifest, second: Manifest) -> dict[str, tuple[Any, Any]]:
    flat = []
    for manifest in (first, second):
        value = {key: item for key, item in encode(manifest).items() if key not in _IGNORED}
        del value["attachments"], value["gate"]
        value["metrics"] = None if value["metrics"] is None else value["metrics"]["protocol"]
        value["policy"], value["prm"] = value["policy"]["facts"], value["prm"]["facts"]
        flat.append(_flatten(value, ""))
    names = dict.fromkeys([*flat[0], *flat[1]])
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def _flatten(value: Any, path: str) -> dict[str, Any]:
    """Plain values by dotted path; lists count as one value."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: item
        for key, inner in value.items()
        for name, item in _flatten(inner, f"{path}.{key}" if path else key).items()
    }
