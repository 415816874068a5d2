"""Model folders: where one is found, what is in it, and how one is written whole or not at all.

A model folder holds what `from_pretrained` and vLLM read (config, safetensors, tokenizer), `step_format.json`, and
`prmkit.json`, a small card that says what the model is and which files prmkit wrote: a folder is replaced only while it
holds those, and no others. Pickled weights are never read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from prmkit.errors import DataError
from prmkit.io import read_json, write_json
from prmkit.ownership import check_folder, file_sizes, replace_folder, temporary_folder
from prmkit.weights import CARD_FILE

__all__ = [
    "CARD_FILE",
    "ModelCard",
    "atomic_folder",
    "check_target",
    "read_card",
    "resolve_folder",
    "write_card",
]

_SCHEMA = 1
_KIND = "model folder"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What wrote a model folder.

    Attributes:
        kind: "policy" or "prm".
        weight_version: version of the weights, stamped on completions made with them.
    """

    kind: Literal["policy", "prm"]
    weight_version: int = 0


def write_card(directory: Path, card: ModelCard) -> None:
    """Write `prmkit.json`, which names the other files of the folder, each with its size in bytes."""
    files = file_sizes(directory, leave_out=CARD_FILE)
    write_json(directory / CARD_FILE, {"schema": _SCHEMA, **asdict(card), "files": files})


def read_card(directory: Path) -> ModelCard | None:
    """The card of a folder; None for folders that prmkit did not write. DataError for another schema."""
    path = directory / CARD_FILE
    if not path.is_file():
        return None
    value = read_json(path)
    if value.get("schema") != _SCHEMA:
        raise DataError(f"{path}: schema {value.get('schema')!r}; this version of prmkit reads schema {_SCHEMA}")
    return ModelCard(kind=value["kind"], weight_version=int(value["weight_version"]))


def resolve_folder(path: str | Path, weights: bool = True) -> Path:
    """A model's local folder: the folder itself, or a snapshot of the hub repository of that name.

    Args:
        path: folder or hub name.
        weights: False for a model that computes elsewhere: tokenizer and step format are enough, and nothing more is
            downloaded.

    Raises:
        DataError: there is no such folder, the hub cannot give it, or it holds no safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = _download(str(path), weights)
    if not weights:
        return folder
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json; this is not a model folder")
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder}: no *.safetensors file. Pickled weights are not read; convert them once with "
            f"transformers' save_pretrained(..., safe_serialization=True)."
        )
    return folder


def _download(name: str, weights: bool) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"{name}: no such model folder. Give an existing folder or a hub name like org/model.")
    try:
        return Path(snapshot_download(name, allow_patterns=[p for p in _HUB_FILES if weights or p != "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{name}: neither a model folder nor a hub model that can be fetched ({type(error).__name__}). "
            f"Check the path; a hub model needs a network or a filled cache."
        ) from error


def check_target(option: str, directory: str | Path) -> None:
    """Refuse a folder in whose place no model may be written; see `prmkit.ownership.check_folder`. ConfigError."""
    check_folder(option, directory, CARD_FILE, _KIND)


@contextmanager
def atomic_folder(directory: str | Path, card: ModelCard) -> Iterator[Path]:
    """A temporary folder beside `directory` that takes its place, with a card, when the block ends without an error.

    A reader finds the old folder or the new one, each whole. After a kill the old one may lie beside under a hidden
    name; it is never half of both.

    Raises:
        ConfigError: the folder there is neither empty nor a model folder that prmkit wrote (`check_target`).
    """
    check_target("directory", directory)
    with temporary_folder(Path(directory)) as temporary:
        yield temporary
        write_card(temporary, card)
        _sync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for path in temporary.rglob("*"):  # safetensors writes files that only their owner may read
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        replace_folder(temporary, Path(directory), CARD_FILE, _KIND)


def _sync(folder: Path) -> None:
    """Have the system write the files out, so that a power cut after the rename finds them whole."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
