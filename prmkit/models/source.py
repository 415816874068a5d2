"""Where a model comes from: a pretrained folder or hub name, or random weights of a small configuration.

`ModelSource` is what configuration files hold; `load_tokenizer`, `build_policy` and `build_prm` act on it.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.activations import ACT2FN
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from prmkit.errors import ConfigError, DataError, PrmkitError, StepFormatError
from prmkit.io import read_json
from prmkit.models.folders import resolve_folder
from prmkit.models.lora import LoraSpec
from prmkit.tasks import TASKS, get_task

__all__ = [
    "DTYPES",
    "ModelSource",
    "check_vocabulary",
    "from_config",
    "load_tokenizer",
    "make_config",
    "read_config",
    "read_tokenizer",
    "resolve_source",
    "seeded",
    "to_dtype",
    "write_tokenizer",
]

logger = logging.getLogger(__name__)

_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model, or a random one of a given configuration. Exactly one of `path` and `config` is set.

    Attributes:
        path: model folder or hub name ("org/model"); only safetensors are read, remote code is never run.
        config: fields of a transformers configuration, `model_type` among them, e.g. {"model_type": "qwen2",
            "hidden_size": 128, ...}. The vocabulary size and special ids default to the tokenizer's.
        tokenizer: folder or hub name of a tokenizer, or the name of a task that has one (accumulator,
            multistep_arithmetic). None is the one in `path`; needed with `config`.
        seed: of random weights: all of them with `config`, new heads and adapters with `path`.
        dtype: type of the weights. Mixed precision is the trainer's matter and wants float32 here.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...; None leaves the choice to transformers.
        gradient_checkpointing: recompute activations in the backward pass, for less memory.
        lora: train low-rank adapters in the decoder instead of its weights; None trains all weights.
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    lora: LoraSpec | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.config is None):
            raise ConfigError(
                "source.path", self.path, "a model folder or hub name, or None together with source.config", "Set one."
            )
        if self.config is not None and self.tokenizer is None:
            raise ConfigError("source.tokenizer", None, "a folder, hub name or built-in task, with source.config")
        if self.config is not None and "model_type" not in self.config:
            raise ConfigError("source.config.model_type", None, 'a transformers model type, e.g. "qwen2"')
        to_dtype(self.dtype, "source.dtype")
        act = None if self.config is None else self.config.get("hidden_act")
        if isinstance(act, str) and act not in ACT2FN:  # transformers says so when layers are built, much later
            near = difflib.get_close_matches(act, ACT2FN, n=1)
            raise ConfigError(
                "model.source.config.hidden_act", act, "an activation of transformers, e.g. silu, gelu",
                f"Did you mean {near[0]}?" if near else "",
            )  # fmt: skip


def to_dtype(name: str, field: str = "dtype") -> torch.dtype:
    """The torch type of a name in DTYPES; ConfigError names `field` otherwise."""
    if name not in DTYPES:
        raise ConfigError(field, name, " | ".join(DTYPES))
    return DTYPES[name]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator seeded with `seed` inside the block; the global one is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a source, with a padding token (the end of sequence where it has none).

    Raises:
        DataError: the folder holds no tokenizer, or there is no such folder.
    """
    name = source.tokenizer if source.tokenizer is not None else source.path
    assert name is not None  # ModelSource checks it
    if not Path(name).is_dir() and name in TASKS and hasattr(TASKS[name], "tokenizer"):
        return get_task(name).tokenizer()  # type: ignore[attr-defined]
    return read_tokenizer(name)


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a folder or hub repository, with a padding token; DataError when there is none.

    A tokenizer that was saved without a class of its own is read from its tokenizer.json as it is. AutoTokenizer would
    take the class registered for some model types instead (qwen2 among them), which splits text in its own way.
    """
    generic = (Path(path) / "tokenizer.json").is_file() and _declared_class(Path(path)) in _GENERIC_TOKENIZERS
    reader = PreTrainedTokenizerFast if generic else AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no tokenizer can be read there: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer into a model folder, and warn where AutoTokenizer will read it as another class."""
    tokenizer.save_pretrained(folder)
    model_type = str(read_json(folder / "config.json").get("model_type"))
    if model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS and _declared_class(folder) in _GENERIC_TOKENIZERS:
        _warn_of_class(model_type)


@lru_cache  # once a process and model type
def _warn_of_class(model_type: str) -> None:
    logger.warning(
        "AutoTokenizer, and servers that use it, read the tokenizer of a %s model as %s, which may split text "
        "differently from the one written here. prmkit reads it as it is; send other programs token ids, or take "
        "another model type (llama, qwen3).",
        model_type,
        TOKENIZER_MAPPING_NAMES.get(model_type),
    )


def _declared_class(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    return read_json(path).get("tokenizer_class") if path.is_file() else None


def make_config(source: ModelSource, tokenizer: Any, **overrides: Any) -> PretrainedConfig:
    """The transformers configuration of a source without a path.

    Raises:
        ConfigError: unknown model type or field.
    """
    assert source.config is not None
    values = dict(source.config)
    model_type = values.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ConfigError("source.config.model_type", model_type, 'a transformers model type, e.g. "qwen2", "llama"')
    known = set(inspect.signature(CONFIG_MAPPING[model_type].__init__).parameters) | {"rope_theta", "rope_scaling"}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"source.config.{key}", value, ", ".join(sorted(known - {"self", "kwargs"})))
    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with _refusals(source.config):
        return AutoConfig.for_model(model_type, **{**defaults, **values, **overrides})


@contextmanager
def _refusals(config: Mapping[str, Any] | None) -> Iterator[None]:
    """Give what transformers refuses of a model's settings the name of the key (PrmkitError)."""
    try:
        yield
    except (ImportError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        named = re.search(r"`?(attn_implementation)", str(error))
        key = "source.attn_implementation" if named or isinstance(error, ImportError) else "source.config"
        reason = " ".join(str(error).split())
        if isinstance(error, KeyError):  # of a table of functions, by name
            key = next((f"{key}.{name}" for name, value in (config or {}).items() if value in error.args), key)
            reason = f"transformers knows no {error}"
        raise PrmkitError(f"model.{key}: {reason.rstrip('.')}.") from error


def read_config(folder: Path) -> PretrainedConfig:
    """The transformers configuration in a folder; DataError when it is of a kind that transformers does not know."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, StrictDataclassError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'}: not a configuration that transformers knows: {error}") from error


def from_config(auto_class: Any, config: PretrainedConfig, source: ModelSource) -> PreTrainedModel:
    """A model of random weights, drawn with the source's seed."""
    with _refusals(source.config), seeded(source.seed):
        model: PreTrainedModel = auto_class.from_config(
            config,
            dtype=to_dtype(source.dtype),
            attn_implementation=source.attn_implementation,
            trust_remote_code=False,
        )
    return model


def check_vocabulary(model: PreTrainedModel, tokenizer: Any, where: str | Path) -> None:
    """Refuse a tokenizer that has more tokens than the model has embeddings (StepFormatError)."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise StepFormatError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}. Take the tokenizer that "
            f"belongs to the model, or resize its embeddings."
        )


def resolve_source(source: ModelSource, weights: bool = True) -> Path:
    """The local folder of a source with a path; without `weights` its configuration is enough."""
    assert source.path is not None
    return resolve_folder(source.path, weights)
