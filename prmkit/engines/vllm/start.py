"""Opening a vLLM in this process, without traces in the process that are not its own."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prmkit.engines.vllm.options import VLLMOptions, engine_arguments, require_vllm
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat

__all__ = ["open_llm", "tokenizer_folder"]

_TRANSFER_MODULE = "prmkit.engines.vllm.transfer"


def open_llm(model: str | Path, tokenizer: str | Path | None, options: VLLMOptions, **more: Any) -> Any:
    """A `vllm.LLM` in this process.

    Args:
        model, tokenizer: folders.
        options: see VLLMOptions.
        more: further engine arguments.

    Raises:
        MissingDependencyError: vLLM is not installed, or its version is not supported.
        ConfigError: vLLM refuses an option.
    """
    require_vllm()
    # vLLM reads these when it starts its core; one in this process needs no copy of the weights elsewhere. It seeds
    # the process's random generators, which are the trainer's.
    with _environment({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **options.environment}), _random_state_kept():
        import vllm

        arguments = {**engine_arguments(options, model, tokenizer, _TRANSFER_MODULE), **more}
        try:
            return vllm.LLM(**arguments, disable_log_stats=True)
        except (TypeError, ValueError) as error:  # argument names, and pydantic's errors of values
            raise ConfigError("vllm", _shown(arguments), "engine arguments that vLLM takes", str(error)) from error


@contextlib.contextmanager
def tokenizer_folder(bound_format: BoundStepFormat) -> Iterator[Path]:
    """A folder with the format's tokenizer alone. Beside a config.json some model types are read with another class of
    tokenizer than the one that was saved, and stop strings would be looked for in other text."""
    with tempfile.TemporaryDirectory(prefix="prmkit-tokenizer-") as folder:
        bound_format.tokenizer.save_pretrained(folder)
        yield Path(folder)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables inside the block; those that are set already stay."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """The random generators of Python, numpy and torch are afterwards as they were."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("model", "tokenizer")}
