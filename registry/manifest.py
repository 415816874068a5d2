"""The manifest of a version: what is in it, where it came from, how good it is. Written once and never changed.

It is JSON for people and programs, sealed against flipped bits. Schema 1; a file of a newer schema is refused with
the version of prmkit it asks for, and any new field makes a new schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from typing import Any

from prmkit.errors import DataError
from registry.compatibility import Compatibility
from registry.facts import ModelFacts
from registry.gate import GateDecision
from registry.metrics import Figure
from registry.names import check_digest, check_pair, check_paths, parse_ref
from registry.records import decode, encode
from registry.sealed import MANIFEST_SCHEMA, check_schema, seal, unseal

__all__ = [
    "GROUPS",
    "Card",
    "DataSource",
    "FileEntry",
    "Manifest",
    "MetricsEntry",
    "ModelEntry",
    "Recipe",
]

READABLE_SINCE = "0.1.0"  # the first prmkit that reads MANIFEST_SCHEMA
GROUPS = ("policy", "prm", "attachments")
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file: path within its group, SHA-256 of its content, bytes."""

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        check_digest(self.sha256)
        if not 0 <= self.size < _LARGEST:
            raise DataError(f"{self.path}: size: got {self.size}; accepted: an integer of at least 0")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model: its files, and what is known of it without loading it."""

    files: tuple[FileEntry, ...]
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class MetricsEntry:
    """`registry.metrics.Metrics` without the results, which are the attachment `results.json`."""

    dataset: str
    figures: Mapping[str, Figure]
    protocol: Mapping[str, Any]
    problems: int


@dataclass(frozen=True, slots=True)
class DataSource:
    """Data that a model was made from: name or path, SHA-256 of the file and bytes; None when it is not a file."""

    name: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What made the pair.

    Attributes:
        commands: programs with their arguments, in order. Files they name that are not data lie in the attachments.
        data: what was read.
        revision: git revision of the code; None outside a repository.
        dirty: whether files differed from that revision; None outside a repository.
        packages: versions installed, e.g. {"torch": "2.13.0"}.
        seed: None when unknown.
    """

    commands: tuple[tuple[str, ...], ...] = ()
    data: tuple[DataSource, ...] = ()
    revision: str | None = None
    dirty: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """The model card's fields (arXiv 1810.03993), for people."""

    summary: str = ""
    license: str | None = None
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    intended_use: str | None = None
    limitations: str | None = None
    contact: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version of a pair.

    Attributes:
        pair, version: its name and number.
        published: time, UTC, ISO 8601.
        by: who, as user@host.
        size: bytes of all files.
        parent: the version it was made from, e.g. `math@3`; None for a first one.
        policy, prm: the models.
        attachments: further files: results, configs.
        compatibility: the verdict when it was published.
        metrics: None when it was not measured.
        gate: the decision against the parent.
        recipe, card: see there.
        key: the publisher's own name for this publication, which makes publishing again a no-op; None for none.
    """

    pair: str
    version: int
    published: str
    by: str
    size: int
    parent: str | None
    policy: ModelEntry
    prm: ModelEntry
    attachments: tuple[FileEntry, ...]
    compatibility: Compatibility
    metrics: MetricsEntry | None
    gate: GateDecision
    recipe: Recipe = field(default_factory=Recipe)
    card: Card = field(default_factory=Card)
    key: str | None = None

    def __post_init__(self) -> None:
        check_pair(self.pair)
        if not 1 <= self.version < _LARGEST:
            raise DataError(f"version: got {self.version}; accepted: an integer of at least 1")
        if self.parent is not None and parse_ref(self.parent).version is None:
            raise DataError(f"parent: got {self.parent!r}; accepted: PAIR@NUMBER")
        for group in GROUPS:
            check_paths(file.path for file in self.files(group))

    @property
    def ref(self) -> str:
        return f"{self.pair}@{self.version}"

    def files(self, group: str) -> tuple[FileEntry, ...]:
        """Files of `policy`, `prm` or `attachments`."""
        return self.attachments if group == "attachments" else getattr(self, group).files  # type: ignore[no-any-return]

    def located(self) -> dict[str, FileEntry]:
        """All files by their path in a pulled folder, `<group>/<path>`."""
        return {f"{group}/{file.path}": file for group in GROUPS for file in self.files(group)}

    def to_bytes(self) -> bytes:
        """The file's content."""
        head = {
            "schema": MANIFEST_SCHEMA,
            "requires": f"prmkit>={READABLE_SINCE}",
            "written_by": f"prmkit {package_version('prmkit')}",
        }
        return seal({**head, **encode(self)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Inverse of `to_bytes`.

        Args:
            data: content of a manifest file.
            where: what errors begin with, e.g. `math@3`.

        Raises:
            NewerSchemaError: of a schema this version does not know.
            DamagedError: a byte differs from what was written.
            DataError: a field is missing, unknown, of another type, or names a path outside the pair.
        """
        value = check_schema(unseal(data, where), MANIFEST_SCHEMA, where)
        for name in ("requires", "written_by"):
            value.pop(name, None)
        return decode(cls, value, where)
