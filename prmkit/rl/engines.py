"""Engines that write with the weights of the module that is trained: the in-process one, and vLLM in two forms.

`RolloutEngine.sync` is called before every use, so that nothing is sampled from an older policy. It is collective: with
sharded weights every rank takes part in gathering them, and with a server only rank 0 sends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from prmkit.dist import barrier, from_rank_0, rank, world_size
from prmkit.engines import HFEngine
from prmkit.engines.vllm.options import VLLMOptions
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import Engine

__all__ = ["EngineOptions", "RolloutEngine", "VLLMRollouts", "open_rollout_engine"]


@dataclass(frozen=True)
class VLLMRollouts:
    """vLLM as the engine of rollouts.

    Attributes:
        options: how vLLM runs; weight updates are always on. Beside the trainer on a GPU set `sleep` and a
            `gpu_memory_utilization` that leaves room.
        interpreter: Python that has vLLM: rank 0 starts a server there, and all ranks ask it. None runs vLLM in every
            training process.
        log: the server's log file; None is a temporary one, whose end is in error messages.
        startup: seconds until the server must answer.
    """

    options: VLLMOptions = field(default_factory=VLLMOptions)
    interpreter: str | None = None
    log: str | None = None
    startup: float = 600.0

    def __post_init__(self) -> None:
        if self.interpreter is not None and self.options.sleep:
            raise ConfigError("data.engine.vllm.options.sleep", True, "false for a server: it keeps its own GPUs")
        if not self.startup > 0:
            raise ConfigError("data.engine.vllm.startup", self.startup, "seconds, above 0")


@dataclass(frozen=True)
class EngineOptions:
    """How solutions are sampled.

    Attributes:
        kind: "hf" computes with the trained model's own weights in this process; "vllm" sends them to vLLM at the start
            of every iteration. vLLM's log-probabilities differ from the trainer's by rounding: see
            `model.correction`.
        max_rows: of hf: solutions written together at most, at least 1.
        cache_tokens: of hf: tokens of prompts kept for later requests of the same weights.
        vllm: of vllm: how it runs; None takes the defaults.
    """

    kind: Literal["hf", "vllm"] = "hf"
    max_rows: int = 256
    cache_tokens: int = 65536
    vllm: VLLMRollouts | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("hf", "vllm"):
            raise ConfigError("data.engine.kind", self.kind, "hf | vllm")
        if self.kind == "hf" and self.vllm is not None:
            raise ConfigError("data.engine.vllm", self.vllm, "None with data.engine.kind = hf")


class RolloutEngine(Protocol):
    """An engine, and how it gets the trained weights."""

    @property
    def engine(self) -> Engine: ...

    def sync(self, version: int) -> None:
        """Take the weights as they are now, and stamp completions with the version. Collective."""
        ...

    def rest(self) -> None:
        """Nothing is asked until the next `sync` or `wake`."""
        ...

    def wake(self) -> None:
        """Go on with the weights of the last `sync`."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def open_rollout_engine(
    options: EngineOptions, model: Any, bound_format: BoundStepFormat, device: torch.device, version: int
) -> RolloutEngine:
    """The engine that options name. Collective.

    Raises:
        MissingDependencyError, ConfigError, EngineLostError: see `VLLMEngine` and `VLLMServer`.
    """
    if options.kind == "hf":
        return _Plain(options, model, bound_format, device, version)
    from prmkit.engines.vllm.weight_sync import check_names

    vllm = options.vllm or VLLMRollouts()
    check_names(model)
    if vllm.interpreter is None:
        return _Colocated(vllm, model, bound_format)
    return _Served(vllm, model, bound_format)


class _Plain:
    """The in-process engine of transformers models."""

    def __init__(
        self, options: EngineOptions, model: Any, bound_format: BoundStepFormat, device: torch.device, version: int
    ) -> None:
        # Buffers made in inference mode may not be written outside it: all of the engine's are.
        with torch.inference_mode():
            self.engine = HFEngine(
                model,
                bound_format,
                max_rows=options.max_rows,
                cache_tokens=options.cache_tokens,
                device=device,
                weight_version=version,
            )

    def sync(self, version: int) -> None:
        with torch.inference_mode():
            self.engine.update_weights(None, version)

    def rest(self) -> None:
        """It holds copies of the weights only."""

    def wake(self) -> None:
        """It does not sleep."""

    def close(self) -> None:
        """Nothing was started."""


class _Colocated:
    """vLLM in every training process; each rank sends to its own."""

    def __init__(self, config: VLLMRollouts, model: Any, bound_format: BoundStepFormat) -> None:
        from prmkit.engines.vllm.engine import VLLMEngine

        self._model, self._sleeps = model, config.options.sleep
        self._resources = ExitStack()
        folder = self._resources.enter_context(_empty_folder(model))
        extra = {} if world_size() == 1 else {"distributed_executor_backend": "external_launcher"}
        self.engine = VLLMEngine(folder, bound_format, _rollout_options(config.options, extra))

    def sync(self, version: int) -> None:
        from prmkit.engines.vllm.weight_sync import iter_weights

        self.engine.wake()
        self.engine.update_weights(iter_weights(self._model), version)

    def rest(self) -> None:
        if self._sleeps:
            self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()

    def close(self) -> None:
        self.engine.close()
        self._resources.close()


class _Served:
    """A vLLM server, started by rank 0 and asked by all."""

    def __init__(self, config: VLLMRollouts, model: Any, bound_format: BoundStepFormat) -> None:
        from prmkit.engines.config import HttpEngineConfig
        from prmkit.engines.remote.http import HTTPEngine
        from prmkit.engines.vllm.server import VLLMServer

        self._model = model
        self._resources = ExitStack()
        self._server: VLLMServer | None = None
        url = ""
        if rank() == 0:
            folder = self._resources.enter_context(_empty_folder(model))
            assert config.interpreter is not None
            self._server = self._resources.enter_context(
                VLLMServer(
                    folder,
                    bound_format,
                    _rollout_options(config.options, {}),
                    interpreter=config.interpreter,
                    log=config.log,
                    startup=config.startup,
                )
            )
            url = self._server.url
        endpoints = [from_rank_0(url)]
        self.engine = self._resources.enter_context(HTTPEngine(HttpEngineConfig(endpoints=endpoints), bound_format))

    def sync(self, version: int) -> None:
        from prmkit.engines.vllm.weight_sync import iter_weights

        weights = iter_weights(self._model)
        if self._server is not None:
            self._server.update_weights(weights, version)
        else:
            for _ in weights:  # the gathering is collective
                pass
        barrier()
        self.engine.weight_version = version

    def rest(self) -> None:
        """The server has its own memory."""

    def wake(self) -> None:
        """It does not sleep."""

    def close(self) -> None:
        self._resources.close()


def _rollout_options(options: VLLMOptions, extra: dict[str, Any]) -> VLLMOptions:
    """Weights come from the trainer before the first request, so none are read from disk."""
    return replace(options, weight_updates=True, extra={"load_format": "dummy", **extra, **options.extra})


@contextmanager
def _empty_folder(model: Any) -> Iterator[Path]:
    """A model folder without weights: the configuration only."""
    with tempfile.TemporaryDirectory(prefix="prmkit-model-") as folder:
        model.config.save_pretrained(folder)
        yield Path(folder)
