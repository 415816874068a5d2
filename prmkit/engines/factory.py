"""Engines by name: what `engine.kind` stands for is opened here.

`vllm` is built by `prmkit.engines.vllm.engine.open_vllm_engine`, imported when it is asked for. It has this interface:

    open_vllm_engine(
        folder: Path,                 local model folder, as transformers reads it
        bound_format: BoundStepFormat,  the policy's step format in its tokenizer's ids
        options: Mapping[str, Any],   engine.vllm as configured; an unknown name is a ConfigError "engine.vllm.NAME"
        *,
        dtype: str,                   "float32", "bfloat16" or "float16"
        logprobs: bool,               whether completions need log-probabilities
        weight_version: int,          stamped on completions
    ) -> Engine with close()

It raises MissingDependencyError, with the command that installs it, when vLLM is missing or its version out of range.
"""

from __future__ import annotations

import hashlib
import importlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.engines.config import ENGINES, EngineConfig, HttpConfig
from prmkit.errors import ConfigError, MissingDependencyError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.ends import model_end_ids
from prmkit.formats.spec import StepFormat
from prmkit.plugins import import_attribute
from prmkit.protocols import Engine

if TYPE_CHECKING:
    from prmkit.engines.inprocess.hf import HFEngine
    from prmkit.engines.remote.http import HTTPEngine

__all__ = [
    "open_engine",
    "open_hf",
    "open_http",
    "open_vllm",
    "serve_identity",
    "tokenizer_fingerprint",
    "torch_device",
]

_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")


def open_engine(
    config: EngineConfig, folder: Path, step_format: StepFormat, stack: ExitStack, *, logprobs: bool = True
) -> Engine:
    """The policy of a folder, ready to sample.

    Args:
        config: kind and settings.
        folder: model folder; of kind http only its tokenizer is read.
        step_format: the policy's.
        stack: closes the engine where it has connections or processes to close.
        logprobs: whether log-probabilities are needed. The in-process engine gives them anyway.

    Raises:
        ConfigError, DataError, StepFormatError: the model cannot be used, or a setting.
        EngineLostError: kind http, and no server answers or one does not do what it is asked.
        MissingDependencyError: kind vllm, and it is not installed, or not in a supported version.
    """
    opener = ENGINES[config.kind].open
    make = import_attribute(opener, "engine.kind") if isinstance(opener, str) else opener
    engine: Engine = make(config, folder, step_format, stack, logprobs=logprobs)
    return engine


def open_hf(
    config: EngineConfig, folder: Path, step_format: StepFormat, stack: ExitStack, *, logprobs: bool
) -> HFEngine:
    """The in-process engine. It has nothing to close, and gives log-probabilities anyway."""
    del stack, logprobs
    from prmkit.engines.inprocess.hf import HFEngine
    from prmkit.models import load_policy

    policy = load_policy(folder, step_format, config.dtype, torch_device(config.device))
    return HFEngine(
        policy.model,
        policy.format,
        max_rows=config.max_rows,
        cache_tokens=config.cache_tokens,
        weight_version=policy.weight_version,
    )


def open_http(
    config: EngineConfig, folder: Path, step_format: StepFormat, stack: ExitStack, *, logprobs: bool
) -> HTTPEngine:
    """The engine that asks servers."""
    from prmkit.engines.remote.http import HTTPEngine
    from prmkit.models.source import read_tokenizer

    bound = BoundStepFormat(step_format, read_tokenizer(folder), model_end_ids(folder))
    return stack.enter_context(HTTPEngine(config.http, bound, logprobs=logprobs))


def open_vllm(
    config: EngineConfig, folder: Path, step_format: StepFormat, stack: ExitStack, *, logprobs: bool
) -> Engine:
    """vLLM in this process."""
    try:
        module: Any = importlib.import_module("prmkit.engines.vllm.engine")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"engine.kind vllm: {error.name} is not installed. Get it with: pip install 'prmkit[vllm]', best in an "
            f"environment of its own; or start `vllm serve` there and use --engine http --endpoint URL."
        ) from error
    from prmkit.models.folders import read_card
    from prmkit.models.source import read_tokenizer

    card = read_card(folder)
    engine: Any = module.open_vllm_engine(
        folder,
        BoundStepFormat(step_format, read_tokenizer(folder), model_end_ids(folder)),
        config.vllm,
        dtype=config.dtype,
        logprobs=logprobs,
        weight_version=card.weight_version if card else 0,
    )
    stack.callback(engine.close)
    opened: Engine = engine
    return opened


def torch_device(name: str) -> str:
    """A device's name for torch: "auto" is a GPU where there is one. ConfigError for one that this machine lacks."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("engine.device", name, f"a device of this machine ({str(error).splitlines()[0]})") from None
    return name


def serve_identity(config: HttpConfig) -> dict[str, Any]:
    """What decides the answers of the servers of a config: the model's name, and its weights where they are told.

    Asks the first endpoint that answers.

    Raises:
        ConfigError: it does not serve the model.
        EngineLostError: none answers.
    """
    from prmkit.engines.remote.client import HttpClient
    from prmkit.engines.remote.served import Served, ask_served

    found: list[Served] = []

    async def probe(client: HttpClient, url: str) -> None:
        found.append(await ask_served(client, url))

    client = HttpClient(config, probe)
    client.open(announce=False)
    client.close()
    return found[0].identity()


def tokenizer_fingerprint(folder: Path) -> str:
    """Identity of a folder's tokenizer: a hash over its files. Model files beside them do not count."""
    digest = hashlib.blake2b(digest_size=12)
    names = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(names):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
