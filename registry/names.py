"""Names, and where things lie in a store. Every name from outside passes through here before it becomes a path.

Names of pairs and aliases are lower-case ASCII, so that no two of them meet on a file system that ignores case and
none looks like another. Paths in manifests keep their case, as model files need, but two of one manifest may not
differ by case only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from prmkit.errors import ConfigError

__all__ = [
    "LATEST",
    "PairRef",
    "alias_key",
    "alias_prefix",
    "blob_key",
    "check_alias",
    "check_digest",
    "check_pair",
    "check_path",
    "check_paths",
    "history_key",
    "history_prefix",
    "is_alias",
    "parse_ref",
    "version_key",
    "version_prefix",
]

LATEST = "latest"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,62}(?<![.])", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+=.-]{0,127}(?<![.])", re.ASCII)
_DEEPEST = 8
# Windows opens a device for these, whatever the extension.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{kind}{i}" for kind in ("com", "lpt") for i in range(1, 10))})

_NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, without '..' or a '.' at the end"


@dataclass(frozen=True, slots=True)
class PairRef:
    """A version of a pair, as written `math@7`, `math@best`, `math@latest` or `math`.

    Attributes:
        pair: name of the pair.
        version: its number; None when an alias says which.
        alias: `latest` is the highest number; None when `version` is given.
    """

    pair: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        return f"{self.pair}@{self.version if self.version is not None else self.alias}"


def parse_ref(text: str) -> PairRef:
    """A reference from `pair[@version|@alias]`; no suffix means `@latest`. ConfigError for anything else."""
    pair, at, selector = text.partition("@")
    check_pair(pair)
    if not at:
        return PairRef(pair, alias=LATEST)
    if _NUMBER.fullmatch(selector):
        return PairRef(pair, version=int(selector))
    if selector != LATEST and not is_alias(selector):
        raise ConfigError("pair", text, "PAIR, PAIR@NUMBER (from 1) or PAIR@ALIAS, e.g. math, math@7, math@best")
    return PairRef(pair, alias=selector)


def check_pair(name: str) -> str:
    """The name itself; ConfigError unless it can name a pair."""
    if not _is_name(name):
        raise ConfigError("pair", name, _NAME_RULE)
    return name


def check_alias(name: str) -> str:
    """The name itself; ConfigError unless it can name an alias that is set. `latest` cannot: it is computed."""
    if not is_alias(name):
        raise ConfigError("alias", name, f"{_NAME_RULE}; with a letter in it")
    if name == LATEST:
        raise ConfigError("alias", name, "any other name", "`latest` is always the highest version number.")
    return name


def check_digest(text: str) -> str:
    """The digest itself; ConfigError unless it is a SHA-256 in lower-case hexadecimal."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ConfigError("sha256", text, "64 of 0-9 and a-f")
    return text


def check_path(path: str) -> str:
    """The path itself; ConfigError unless it is a plain relative path that stays where it is put."""
    parts = path.split("/") if isinstance(path, str) else []
    plain = 0 < len(parts) <= _DEEPEST and all(
        _COMPONENT.fullmatch(part) and part.partition(".")[0].lower() not in _DEVICES for part in parts
    )
    if not plain:
        raise ConfigError(
            "path",
            path,
            f"a relative path of at most {_DEEPEST} parts of A-Z, a-z, 0-9 and _ + = . -, none of them beginning or "
            "ending with a dot",
            "Rename the file.",
        )
    return path


def check_paths(paths: Iterable[str]) -> None:
    """ConfigError when two paths cannot lie side by side: equal but for case, or one inside the other."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_path(path)
        folded = path.lower()
        if folded in files:
            raise ConfigError("path", path, f"a path that differs from {files[folded]!r} by more than case")
        files[folded] = path
        parts = folded.split("/")
        for depth in range(1, len(parts)):
            folders["/".join(parts[:depth])] = path
    for folder, path in folders.items():
        if folder in files:
            raise ConfigError("path", path, f"a path that does not lie inside the file {files[folder]!r}")


def blob_key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def version_prefix(pair: str) -> str:
    return f"pairs/{pair}/versions/"


def version_key(pair: str, version: int) -> str:
    return f"{version_prefix(pair)}{version}.json"


def alias_prefix(pair: str) -> str:
    return f"pairs/{pair}/aliases/"


def alias_key(pair: str, alias: str) -> str:
    return f"{alias_prefix(pair)}{alias}.json"


def history_prefix(pair: str) -> str:
    return f"pairs/{pair}/history/"


def history_key(pair: str, alias: str, serial: int) -> str:
    return f"{history_prefix(pair)}{alias}/{serial:08d}.json"


def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name.partition(".")[0] not in _DEVICES


def is_alias(name: str) -> bool:
    """Whether a name may be an alias's; `latest` may, though nobody sets it."""
    return _is_name(name) and any(character.isalpha() for character in name)
