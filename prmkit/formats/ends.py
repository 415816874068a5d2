"""The ids at which a model's samples end, as the files of its folder name them. No torch, no transformers.

Instruction-tuned models often have several: the end of the text and the end of a turn. `generation_config.json` is the
usual place, `config.json` the older one; the tokenizer's own end and the chat template's are added by
`BoundStepFormat`. A sample that passes any of them by goes on into text that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prmkit.errors import DataError
from prmkit.io import read_json

__all__ = ["end_ids_of", "model_end_ids"]

_FILES = ("generation_config.json", "config.json")


def end_ids_of(value: Any, where: str) -> tuple[int, ...]:
    """The ids in an `eos_token_id` field: an id, a list of ids, or nothing.

    Args:
        value: the field.
        where: its path, for errors.

    Raises:
        DataError: something else.
    """
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise DataError(f"{where}: got {value!r}; accepted: a token id, a list of token ids, or null")
    return tuple(dict.fromkeys(ids))


def model_end_ids(folder: str | Path) -> tuple[int, ...]:
    """Ids named as `eos_token_id` in a model folder's `generation_config.json` and `config.json`, without repetition.

    A configuration of several parts (text and images) names the text's ends in `text_config`.

    Raises:
        DataError: a field that is not made of ids.
    """
    found: list[int] = []
    for name in _FILES:
        path = Path(folder) / name
        if path.is_file():
            found += _in_config(read_json(path), str(path))
    return tuple(dict.fromkeys(found))


def _in_config(config: Any, where: str) -> Iterable[int]:
    if not isinstance(config, Mapping):
        raise DataError(f"{where}: got {type(config).__name__}; accepted: a JSON object")
    yield from end_ids_of(config.get("eos_token_id"), f"{where}: eos_token_id")
    if config.get("text_config") is not None:
        yield from _in_config(config["text_config"], f"{where}: text_config")
