"""How vLLM is set up: one set of options for an engine in this process and for a server's command line.

vLLM itself is not imported here: a server may live in another Python environment.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prmkit.errors import ConfigError, MissingDependencyError

__all__ = [
    "CPU_TRIAL",
    "SUPPORTED_VLLM",
    "TRANSFER_BACKEND",
    "VLLMOptions",
    "check_vllm_version",
    "command_line",
    "engine_arguments",
    "require_vllm",
]

SUPPORTED_VLLM = ">=0.32,<0.34"
TRANSFER_BACKEND = "prmkit_safetensors"

# What `engine_arguments` decides; a user's own value would break what engines promise.
_OURS = (
    "model",
    "tokenizer",
    "logprobs_mode",
    "generation_config",
    "enable_prefix_caching",
    "weight_transfer_config",
    "worker_extension_cls",
)


@dataclass(frozen=True)
class VLLMOptions:
    """How vLLM holds and runs a model.

    Attributes:
        dtype: type of weights and activations. "auto" is what vLLM takes for the folder: half precision where the
            folder says float32.
        tensor_parallel_size: GPUs that share one copy of the model, at least 1.
        max_model_len: ids of prompt and completion together at most; None is the model's context.
        max_num_seqs: samples decoded together at most, at least 1.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes, in (0, 1]. Beside a trainer take less.
        kv_cache_memory_bytes: bytes of keys and values; None is what is left of the share. Needed on a CPU.
        enforce_eager: no CUDA graphs: starts faster, decodes slower.
        sleep: allow `sleep` and `wake`, which give memory back between rollouts. Needs a GPU.
        weight_updates: allow new weights while it runs (`prmkit.engines.vllm.weight_sync`).
        extra: further engine arguments under vLLM's own names, e.g. {"max_num_batched_tokens": 8192}.
        environment: variables for vLLM, e.g. {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    enforce_eager: bool = False
    sleep: bool = False
    weight_updates: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "max_num_seqs", "max_model_len", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"vllm.{name}", value, "an integer of at least 1")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError("vllm.gpu_memory_utilization", self.gpu_memory_utilization, "a number in (0, 1]")
        for name in _OURS:
            if name in self.extra:
                raise ConfigError(
                    f"vllm.extra.{name}", self.extra[name], "no such key", "Engines here need their own value of it."
                )


CPU_TRIAL = VLLMOptions(
    dtype="float32",
    max_num_seqs=64,
    kv_cache_memory_bytes=64 << 20,
    enforce_eager=True,
    weight_updates=True,
    # Where a prompt is encoded in parts, vLLM sets a seeded sample's generator back; those of CPUs cannot be.
    extra={"enable_chunked_prefill": False},
    # Compiling helpers of the sampler takes half a minute, and a small model never gets that back.
    environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"},
)
"""Options under which a small model runs on a few CPU cores; needs a vLLM that was built for CPUs. What concerns torch
in `environment` has to be set before Python starts where vLLM shares the process."""


def require_vllm() -> str:
    """The version of vLLM in this environment, once it is known to be supported.

    Raises:
        MissingDependencyError: vLLM is not installed, or another version than SUPPORTED_VLLM.
    """
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return check_vllm_version(importlib.metadata.version(distribution), "this environment")
        except importlib.metadata.PackageNotFoundError:
            continue
    raise MissingDependencyError(
        f"vLLM is not installed here. It pins torch and transformers exactly, so it usually lives in an environment of "
        f"its own: start a server there and give its interpreter as engine.interpreter or its address as engine.url. "
        f"For an engine in this process: pip install 'vllm{SUPPORTED_VLLM}'"
    )


def check_vllm_version(version: str, where: str) -> str:
    """The version, when it is in the supported range; MissingDependencyError names both otherwise."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        supported = Version(version) in SpecifierSet(SUPPORTED_VLLM, prereleases=True)
    except InvalidVersion:
        supported = False
    if not supported:
        raise MissingDependencyError(
            f"vLLM {version} in {where} is out of the supported range {SUPPORTED_VLLM}: its engine arguments and its "
            f"weight transfer differ between versions. Get one with: pip install 'vllm{SUPPORTED_VLLM}'"
        )
    return version


def engine_arguments(
    options: VLLMOptions, model: str | Path, tokenizer: str | Path | None, transfer_module: str
) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, and by `command_line` of its server.

    Args:
        options: see VLLMOptions.
        model: model folder or hub name.
        tokenizer: folder of the tokenizer; None is the model's.
        transfer_module: name under which vLLM's workers import `transfer.py`, for weight updates.

    Log-probabilities are of the distribution that is sampled from; defaults of the model's `generation_config.json`
    (temperature, top-k, repetition penalty) are left out, because every request says all it wants.
    """
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": options.dtype,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enforce_eager": options.enforce_eager,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "load_format": "safetensors",
        "seed": 0,
    }
    if tokenizer is not None:
        arguments["tokenizer"] = str(tokenizer)
    for name in ("max_model_len", "kv_cache_memory_bytes"):
        if getattr(options, name) is not None:
            arguments[name] = getattr(options, name)
    if options.sleep:
        arguments["enable_sleep_mode"] = True
    if options.weight_updates:
        arguments["weight_transfer_config"] = {"backend": TRANSFER_BACKEND}
        arguments["worker_extension_cls"] = f"{transfer_module}.WorkerExtension"
    return {**arguments, **options.extra}


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as options of vLLM's server, e.g. ["--max-num-seqs", "256", "--enforce-eager"]."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append("--no-" + name.replace("_", "-"))
        elif isinstance(value, Mapping | list):
            words += [flag, json.dumps(value)]
        elif value is not None:
            words += [flag, str(value)]
    return words
