"""New weights for a running vLLM from safetensors files: a weight-transfer engine that vLLM's workers load.

It stands alone, so that it can be put on the path of another Python environment: it imports nothing of prmkit, and is
imported by vLLM only, through the engine argument `worker_extension_cls`. Files are the transport that
works everywhere a trainer and a server share a folder, with and without GPUs; in /dev/shm it is a copy through memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

BACKEND = "prmkit_safetensors"


class WorkerExtension:
    """Importing this module is what counts; vLLM mixes this into its workers."""


@dataclass
class FolderInfo(WeightTransferInitInfo):
    """Where files may come from.

    Attributes:
        folder: absolute path; files elsewhere are refused.
    """

    folder: str


@dataclass
class FileInfo(WeightTransferUpdateInfo):
    """One piece of an update.

    Attributes:
        file: name of a safetensors file in the folder.
        names: tensors that it must hold, in the order in which they are loaded.
    """

    file: str
    names: list[str]


class SafetensorsTransferEngine(WeightTransferEngine[FolderInfo, FileInfo]):
    """Loads checkpoint-format tensors from files, layer by layer, as at the start."""

    init_info_cls = FolderInfo
    update_info_cls = FileInfo

    def init_transfer_engine(self, init_info: FolderInfo) -> None:
        self._folder = Path(init_info.folder).resolve(strict=True)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(
        self, update_info: dict[str, Any]
    ) -> None:  # the base class waits for a GPU, which may not be there
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileInfo) -> None:
        path = (self._folder / update_info.file).resolve(strict=True)
        if path.parent != self._folder:
            raise ValueError(f"{update_info.file}: not a file of {self._folder}")
        self.model.load_weights(self._read(path, update_info.names))

    def _read(self, path: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        with safe_open(path, framework="pt", device=str(self.device)) as tensors:
            for name in names:
                yield name, tensors.get_tensor(name)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held."""


WeightTransferEngineFactory.register_engine(BACKEND, SafetensorsTransferEngine)
