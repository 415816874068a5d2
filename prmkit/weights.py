"""Model folders as they lie on disk, before loading: what a model is, and whether its weights are whole and finite.

Reads JSON files and safetensors headers; numbers only where they are to be finite, a few megabytes at a time. Nothing
here imports torch, so that the registry and the command line can ask before anything heavy is loaded.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

from prmkit.errors import ConfigError, DataError
from prmkit.io import read_json

__all__ = [
    "CARD_FILE",
    "INDEX_FILE",
    "SPOILED",
    "Kind",
    "StoredFile",
    "StoredTensor",
    "check_finite",
    "check_kind",
    "check_stored",
    "check_weights",
    "folder_files",
    "head_outputs",
    "kind_of",
    "model_kind",
    "not_finite",
    "read_header",
]

Kind = Literal["policy", "prm"]

CARD_FILE = "prmkit.json"
INDEX_FILE = "model.safetensors.index.json"

_LONGEST_HEADER = 100 * 2**20  # safetensors' own limit
_CHUNK = 4 * 2**20
_CURE = "Copy or download it again, or export the model again."
SPOILED = "holds NaN or infinite numbers. Export an earlier checkpoint, and train with a lower learning rate."
_HEADS = ("score.2.weight", "score.weight", "v_head.summary.weight")
_PRM_CLASSES = ("ForTokenClassification", "ForSequenceClassification", "ForProcessRewardModel", "ForPrmModel")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
# Of a number that is not finite all bits of the exponent are set (of E4M3, which has no infinity, those of the mantissa
# too): unsigned type of that width, and the bits.
_NOT_FINITE = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file: its type there, its shape, and its bytes, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, wherever it lies: its name for messages, its bytes, and how it is opened."""

    where: str
    size: int
    open: Callable[[], Any]


# -- what a model is --------------------------------------------------------------------------------------------------


def kind_of(card: Any, config: Any, tensors: Mapping[str, object]) -> Kind | None:
    """What a model is: from its card where prmkit wrote it, else from its class and head; None where that is not sure.

    Args:
        card: content of prmkit.json; None when there is none.
        config: content of config.json.
        tensors: anything by the tensors' names.
    """
    if isinstance(card, dict) and card.get("kind") in ("policy", "prm"):
        kind: Kind = card["kind"]
        return kind
    classes = (config.get("architectures") if isinstance(config, dict) else None) or []
    if any(str(name).endswith(_PRM_CLASSES) for name in classes) or any(name in tensors for name in _HEADS):
        return "prm"
    return None  # a causal language model may be either: PRMs with label tokens are such models, too


def model_kind(folder: Path) -> Kind | None:
    """`kind_of` a folder. DataError for a malformed file."""
    card, config = (
        read_json(path) if path.is_file() else None for path in (folder / CARD_FILE, folder / "config.json")
    )
    found = kind_of(card, config, {})
    return found if found is not None or config is None else kind_of(None, config, check_weights(folder))


def check_kind(option: str, given: str | Path, folder: Path, wanted: Kind) -> None:
    """Refuse a policy where a PRM is asked for, and the other way round.

    Args:
        option: the option or key that names the model.
        given: what it was given.
        folder: the model's local folder.
        wanted: what it has to be.

    Raises:
        ConfigError: the folder is known to hold the other kind.
    """
    found = model_kind(folder)
    if found is None or found == wanted:
        return
    names = {"policy": "a policy", "prm": "a PRM"}
    told = CARD_FILE if (folder / CARD_FILE).is_file() else "config.json, or the head among its weights,"
    raise ConfigError(
        option,
        str(given),
        f"the folder or hub name of {names[wanted]}",
        f"{told} there says that it is {names[found]}. Are the two models interchanged?",
    )


def head_outputs(tensors: Mapping[str, tuple[int, ...]]) -> int | None:
    """Outputs of a PRM's own head, from the shapes of a folder's tensors; None for no head but a language model's."""
    return next((tensors[name][0] for name in _HEADS if name in tensors), None)


# -- whether weights are whole ----------------------------------------------------------------------------------------


def read_header(file: BinaryIO, size: int, where: str) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes; the file is left at the first of them.

    Args:
        file: at its beginning.
        size: of the file in bytes, by which a truncated one is known.
        where: what messages begin with.

    Raises:
        DataError: not a safetensors file, or one that is cut off or damaged.
    """
    start = _read(file, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= _LONGEST_HEADER:
        raise DataError(f"{where}: not a safetensors file. {_CURE}")
    try:
        header = json.loads(_read(file, length))
        header.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{where}: not a safetensors file: its header is cut off or damaged. {_CURE}") from None
    end = 0
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].begin))
    for name, tensor in tensors.items():
        width = _BYTES.get(tensor.dtype)
        if tensor.begin != end or (width is not None and tensor.end - end != prod(tensor.shape) * width):
            raise DataError(f"{where}: its header is damaged at tensor {name}. {_CURE}")
        end = tensor.end
    if size != 8 + length + end:
        raise DataError(f"{where}: {size} bytes, its header says {8 + length + end}: it is not whole. {_CURE}")
    return tensors


def check_stored(where: str, files: Mapping[str, StoredFile]) -> dict[str, StoredTensor]:
    """The tensors of a model, once its weights are known to be whole.

    Args:
        where: the model, for messages.
        files: its safetensors files and, where there is one, their index, by name.

    Raises:
        DataError: a file is not whole, or one that the index names is missing, or a tensor.
    """
    weights = {name: _open_header(file) for name, file in files.items() if name.endswith(".safetensors")}
    if INDEX_FILE not in files:
        shard = next((name for name in weights if _SHARD.fullmatch(name)), None)
        if shard is not None and "model.safetensors" not in weights:
            raise DataError(f"{where}: {shard} is one of several parts, and {INDEX_FILE} is missing. {_CURE}")
        return {name: tensor for tensors in weights.values() for name, tensor in tensors.items()}
    with files[INDEX_FILE].open() as file:
        try:
            places: dict[str, str] = json.loads(_read(file, files[INDEX_FILE].size))["weight_map"]
            parts = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{where}: {INDEX_FILE} is damaged. {_CURE}") from None
    missing = [part for part in parts if part not in weights]
    if missing:
        raise DataError(f"{where}: {missing[0]} is missing, {INDEX_FILE} names {len(parts)} parts. {_CURE}")
    lost = [name for name, part in places.items() if name not in weights[part]]
    if lost:
        raise DataError(f"{where}: {places[lost[0]]} does not hold {lost[0]}, as {INDEX_FILE} says. {_CURE}")
    return {name: tensor for part in parts for name, tensor in weights[part].items()}


def check_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a folder, once its weights are known to be whole (DataError otherwise)."""
    return {name: tensor.shape for name, tensor in check_stored(str(folder), folder_files(folder)).items()}


def folder_files(folder: Path) -> dict[str, StoredFile]:
    """The safetensors files of a folder and their index, for `check_stored`."""
    places = [*sorted(folder.glob("*.safetensors")), folder / INDEX_FILE]
    return {p.name: StoredFile(str(p), p.stat().st_size, partial(p.open, "rb")) for p in places if p.is_file()}


def _open_header(stored: StoredFile) -> dict[str, StoredTensor]:
    with stored.open() as file:
        return read_header(file, stored.size, stored.where)


def _read(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer at the end of the file; raw files may give less at once."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# -- whether weights are finite ---------------------------------------------------------------------------------------


def not_finite(file: BinaryIO, tensors: Mapping[str, StoredTensor]) -> str | None:
    """The first tensor with a number that is NaN or infinite; None when there is none. Reads to the end or to there.

    Args:
        file: a safetensors file, at its first tensor.
        tensors: from `read_header`.
    """
    for name, tensor in tensors.items():
        left = tensor.end - tensor.begin
        while left > 0:
            data = _read(file, min(_CHUNK, left))
            left -= len(data)
            if not data:
                return name
            if not _all_finite(data, tensor.dtype):
                return name
    return None


def _all_finite(data: bytes, dtype: str) -> bool:
    if dtype not in _NOT_FINITE:
        return True
    import numpy as np

    unsigned, bits = _NOT_FINITE[dtype]
    numbers = np.frombuffer(data, unsigned)
    return not bool(((numbers & bits) == bits).any())


def check_finite(folder: Path) -> None:
    """Read all weights of a folder; DataError names the first tensor that is not finite, or a broken file."""
    for stored in folder_files(folder).values():
        if not stored.where.endswith(".safetensors"):
            continue
        with stored.open() as file:
            name = not_finite(file, read_header(file, stored.size, stored.where))
        if name is not None:
            raise DataError(f"{stored.where}: {name} {SPOILED}")
