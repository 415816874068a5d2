"""New weights for a running vLLM: from a module under training, piece by piece, through files.

Three parts. `iter_weights` gives a module's weights whole, one after the other, however they are sharded, adapters
folded in. `send_weights` writes them as safetensors files of bounded size and has vLLM load each. A `WeightChannel` is
the control: a vLLM in this process, or a server over the routes that vLLM documents for it (a server's are in
`HTTPChannel`; vLLM is not needed where the trainer runs).

vLLM's own transports (NCCL, CUDA IPC) need vLLM's classes in the trainer, and these change from version to version; the
routes do not. Files need a folder that the trainer and all of vLLM's workers see; on one machine that is memory.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from prmkit.errors import ConfigError, EngineLostError, ServerError
from prmkit.models.lora import unties
from prmkit.models.sharding import whole
from prmkit.ownership import remove_file

__all__ = ["HTTPChannel", "SyncReport", "WeightChannel", "check_names", "iter_weights", "send_weights", "transfer_root"]

CHUNK_BYTES = 1 << 30
_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What an update of weights was.

    Attributes:
        tensors, bytes: sent.
        files: pieces.
        seconds: wall-clock time, gathering included.
    """

    tensors: int
    bytes: int
    files: int
    seconds: float


class WeightChannel(Protocol):
    """The four phases of vLLM's weight transfer. Every failure is an exception."""

    def initialise(self, info: dict[str, Any]) -> None:
        """Open the transfer engine; may be repeated."""
        ...

    def start(self) -> None:
        """Make ready for new weights."""
        ...

    def update(self, info: dict[str, Any]) -> None:
        """Load one piece."""
        ...

    def finish(self, version: int) -> None:
        """Put the new weights to use, stamp completions with the version, and forget keys and values of the old."""
        ...


class HTTPChannel:
    """A server's routes for weight updates. It has them when it was started with VLLM_SERVER_DEV_MODE=1, which opens
    more to whoever reaches it: loopback and private networks only.

    Requests in flight are waited for before an update, so that no sample comes from two policies; others that come
    meanwhile are refused by the server.

    Args:
        url: base address of the server, without /v1.
        timeout: seconds for one request.
        api_key: bearer token; None sends none.
    """

    def __init__(self, url: str, timeout: float = 600.0, api_key: str | None = None) -> None:
        self._url, self._timeout = url.rstrip("/"), timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        # No proxies from the environment: the server is on loopback or a private network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def initialise(self, info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": info})

    def start(self) -> None:
        self._post("/pause?mode=wait")
        self._post("/start_weight_update")

    def update(self, info: dict[str, Any]) -> None:
        self._post("/update_weights", {"update_info": info})

    def finish(self, version: int) -> None:
        self._post("/finish_weight_update", {"weight_version": str(version)})
        self._post("/reset_prefix_cache")
        self._post("/resume")

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                response.read()
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            remedy = (
                " Start the server with VLLM_SERVER_DEV_MODE=1 and weight updates on, as VLLMServer does."
                if error.code == http.client.NOT_FOUND
                else ""
            )
            raise ServerError(f"{self._url}{path}: status {error.code}: {said}{remedy}") from None
        except OSError as error:
            raise ServerError(f"{self._url}{path}: {error}") from error


def send_weights(
    channel: WeightChannel,
    weights: Iterable[tuple[str, Tensor]],
    version: int,
    folder: str | Path | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> SyncReport:
    """Have vLLM take new weights.

    Args:
        channel: the vLLM.
        weights: all of the model's, by name, one after the other; each is read before the next is asked for.
        version: stamped on completions from now on; at least 0.
        folder: that vLLM's workers see too; None makes one in memory, for a vLLM on this machine.
        chunk_bytes: of a file at most, unless a single tensor is larger.

    Raises:
        EngineLostError: something failed between start and finish. vLLM then holds parts of two policies, or none that
            works, and dies at the next request: start it again.
        ConfigError: a version below 0.
    """
    if version < 0:
        raise ConfigError("weight_version", version, "an integer of at least 0")
    begin = time.perf_counter()
    tensors = size = files = 0
    root = transfer_root() if folder is None else folder
    with tempfile.TemporaryDirectory(prefix="prmkit-weights-", dir=root) as own:
        try:
            channel.initialise({"folder": own})
            channel.start()
            for number, chunk in enumerate(_chunks(weights, chunk_bytes)):
                path = Path(own) / f"{number}.safetensors"
                save_file(chunk, path)
                channel.update({"file": path.name, "names": list(chunk)})
                remove_file(path)
                files += 1
                tensors += len(chunk)
                size += sum(tensor.nbytes for tensor in chunk.values())
            channel.finish(version)
        except Exception as error:
            raise EngineLostError(
                f"weight update {version} failed after {tensors} tensors ({type(error).__name__}: {error}). vLLM may "
                f"hold parts of two policies and must not be asked again: start it anew, and send all weights."
            ) from error
    return SyncReport(tensors, size, files, time.perf_counter() - begin)


def _chunks(weights: Iterable[tuple[str, Tensor]], chunk_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Copies of tensors in order, as many at once as fit."""
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if held and size + tensor.nbytes > chunk_bytes:
            yield held
            held, size = {}, 0
        # A copy: what is gathered or merged lives only until the next, and tied tensors may not share memory in a file.
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    if held:
        yield held


def transfer_root() -> str | None:
    """Folder for files that are only passed on: memory where there is such a file system, else the usual one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# -- the trainer's side --


def iter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's weights by checkpoint name, each whole, adapters folded in. Collective: under ZeRO-3 and FSDP2 every
    rank must go through all of it. A tensor is good until the next is asked for.

    Tied weights come under each of their names, because vLLM loads by name. At most one layer is whole at a time.
    """
    adapted = dict(_adapted(model))
    for name, layer in adapted.items():
        with torch.no_grad(), whole(_divided(layer.parameters())):
            for own, tensor in _merged(layer):
                yield f"{name}.{own}", tensor
    for name, tensor in _plain(model, adapted):
        with torch.no_grad(), whole(_divided([tensor])):
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def check_names(model: PreTrainedModel) -> None:
    """Refuse a model whose weights have other names or shapes than its checkpoints have; vLLM loads by those.

    Raises:
        ConfigError: transformers rewrites this architecture's weights when it loads them (experts put together, ...).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    if unties(model):
        raise ConfigError(
            "model.source.lora.target_modules", "tied embeddings", "other layers, with data.engine.kind = vllm",
            "vLLM computes logits with the embeddings. Generate with data.engine.kind = hf.",
        )  # fmt: skip
    # A prefix is changed only where a checkpoint holds more than this model; what is sent is this model.
    rewritten = [rule for rule in get_model_conversion_mapping(model, add_legacy=False) if not _is_prefix(rule)]
    if rewritten:
        raise ConfigError(
            "model.source", f"{model.config.model_type}: {len(rewritten)} of its weights are rewritten on loading",
            "an architecture that transformers trains under the names of its checkpoints",
            "Generate with data.engine.kind = hf.",
        )  # fmt: skip


def _is_prefix(rule: object) -> bool:
    return type(rule).__name__ == "PrefixChange"


def _divided(tensors: Iterable[Any]) -> list[Any]:
    """Those of which this process has a part only: around rollouts a strategy may hold all of them whole already."""
    return [tensor for tensor in tensors if hasattr(tensor, "ds_id") and tensor.ds_status.name != "AVAILABLE"]


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with adapters, by name."""
    if "peft" not in sys.modules:  # who has adapters has imported it
        return
    from peft.tuners.lora import LoraLayer

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _plain(model: nn.Module, adapted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """What a state_dict holds outside layers with adapters."""
    prefixes = tuple(f"{name}." for name in adapted)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith(prefixes):
            yield name, tensor


def _merged(layer: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights of a layer with adapters: base plus update, under the names it has without adapters."""
    for name, tensor in layer.base_layer.named_parameters():
        if isinstance(tensor, DTensor):
            raise ConfigError(
                "trainer.strategy", "FSDP2 with adapters", "ZeRO or DDP", "Adapters cannot be folded in while sharded."
            )
        own = tensor.detach()
        yield name, own + layer.get_delta_weight(_ADAPTER).to(own.dtype) if name == "weight" else own
