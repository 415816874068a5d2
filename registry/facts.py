"""What can be told of a model folder without loading it: architecture, sizes, tokenizer, step format.

Only JSON files and the headers of safetensors files are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from prmkit.errors import DataError
from prmkit.formats.spec import STEP_FORMAT_FILE, StepFormat
from prmkit.io import read_json
from prmkit.weights import CARD_FILE, check_weights, head_outputs, kind_of

__all__ = ["ModelFacts", "TokenizerFacts", "read_facts", "tokenizer_facts"]

_UNBOUNDED = 10**9  # tokenizers that know no limit write 10^30


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer.

    Attributes:
        sha256: of what it does: the content of tokenizer.json without its settings for padding and truncation,
            independent of layout and key order. Of the file tokenizer.model where there is no tokenizer.json.
        size: highest token id + 1; None when unknown.
        open: any text can be written in its tokens (byte-level, or bytes as a fallback); None when unknown.
    """

    sha256: str
    size: int | None
    open: bool | None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model.

    Attributes:
        architecture: class that reads it, e.g. Qwen2ForCausalLM; None when the folder does not say.
        model_type: e.g. qwen2; None when the folder does not say.
        context_length: most tokens of an input; None when the folder does not say.
        vocab_size: rows of the embedding; None when the folder does not say.
        remote_code: config.json names Python code of its own, which prmkit never runs.
        parameters: numbers in the weight files.
        outputs: outputs of a PRM's own head; None when there is none.
        tokenizer: None when the folder has none.
        step_format: content of step_format.json; None when there is none.
        kind: "policy" or "prm" where the folder says so, see `prmkit.weights.kind_of`; None otherwise.
    """

    architecture: str | None
    model_type: str | None
    context_length: int | None
    vocab_size: int | None
    remote_code: bool
    parameters: int
    outputs: int | None
    tokenizer: TokenizerFacts | None
    step_format: Mapping[str, Any] | None
    kind: str | None = None


def read_facts(folder: Path, step_format: StepFormat | None = None) -> ModelFacts:
    """The facts of a model folder.

    Args:
        folder: holds config.json and *.safetensors.
        step_format: in place of the folder's own.

    Raises:
        DataError: a file is missing or malformed.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.json'}: holds {type(config).__name__}, not an object")
    shapes = check_weights(folder)
    if step_format is None and (folder / STEP_FORMAT_FILE).is_file():
        step_format = StepFormat.load(folder)
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else None
    architectures = config.get("architectures") or [None]
    return ModelFacts(
        architecture=architectures[0],
        model_type=config.get("model_type"),
        context_length=_context_length(config, folder),
        vocab_size=_number(config.get("vocab_size")),
        remote_code="auto_map" in config,
        parameters=sum(map(prod, shapes.values())),
        outputs=head_outputs(shapes),
        tokenizer=tokenizer_facts(folder),
        step_format=None if step_format is None else step_format.to_dict(),
        kind=kind_of(card, config, shapes),
    )


def tokenizer_facts(folder: Path) -> TokenizerFacts | None:
    """The tokenizer of a folder; None when there is none. DataError for a malformed one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        model = folder / "tokenizer.model"
        return TokenizerFacts(hashlib.sha256(model.read_bytes()).hexdigest(), None, None) if model.is_file() else None
    value = read_json(path)
    try:
        model, added = value["model"], value.get("added_tokens") or []
        ids = [token["id"] for token in added]
        vocabulary = model.get("vocab", {})
        ids += vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        size = max(ids, default=-1) + 1
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a tokenizer that `tokenizers` writes: {error!r}") from None
    return TokenizerFacts(_semantic_digest(value), size, _is_open(value))


def _semantic_digest(value: dict[str, Any]) -> str:
    """SHA-256 of what a tokenizer does, however its file is laid out."""
    plain = {key: item for key, item in value.items() if key not in ("truncation", "padding", "version")}
    plain["added_tokens"] = sorted(value.get("added_tokens") or [], key=lambda token: int(token["id"]))
    model = dict(value["model"])
    # Newer files write merges as pairs, older ones as "a b".
    if isinstance(model.get("merges"), list):
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    plain["model"] = model
    text = json.dumps(_without_nulls(plain), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_nulls(value: Any) -> Any:
    """The same without fields that are null: files of some versions write them, others leave them out."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _is_open(value: dict[str, Any]) -> bool:
    if value["model"].get("byte_fallback"):
        return True
    parts = [value.get("pre_tokenizer"), value.get("decoder"), value.get("normalizer")]
    return any(part.get("type") == "ByteLevel" for part in _parts(parts))


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects inside a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _parts(item)


def _context_length(config: Mapping[str, Any], folder: Path) -> int | None:
    """The smaller of what positions and tokenizer allow."""
    limits = [_number(config.get("max_position_embeddings"))]
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        limits.append(_number(read_json(settings).get("model_max_length")))
    known = [limit for limit in limits if limit is not None and limit < _UNBOUNDED]
    return min(known, default=None)


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
