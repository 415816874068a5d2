"""DeepSpeed's ZeRO as a Lightning strategy, on GPUs and on CPUs.

What Lightning's own strategy leaves open is settled here:

- **Windows.** Lightning divides a micro-batch's loss by the accumulation, and DeepSpeed would divide it again and count
  micro-batches by itself. Here Lightning decides where a window ends (an epoch's last one may be shorter), and the loss
  is divided once.
- **Batches** keep their types: log-probabilities, advantages and targets are float32 whatever the weights are.
- **Checkpoints** are folders of shards that are complete or invisible (`prmkit.checkpoints`), and are not unpickled
  before they are known to hold no code.
- **CPUs**, over gloo, so that everything can be tried and tested without a GPU.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.strategies.deepspeed import _DEEPSPEED_AVAILABLE
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.zero_config import make_config, read_section
from lightning_modules.zero_resize import UNIVERSAL_FOLDER, dealt_out_anew
from prmkit.checkpoints import (
    SHARD_FOLDER,
    TRAINER_FILE,
    ShardedCheckpoint,
    publish_folder,
    read_sharded,
    remove_leftovers,
    sync,
    temporary_name,
)
from prmkit.checkpoints.reading import check_readable
from prmkit.checkpoints.sharded import check_pickles, trainer_state
from prmkit.errors import ConfigError, MissingDependencyError, PrmkitError
from prmkit.models.sharding import whole_module

__all__ = ["ZeroPrecision", "ZeroStrategy"]

_NOT_OURS = ("state_dict", "optimizer_states")

# DeepSpeed's own calls of torch, at every step and nothing that a user could change.
warnings.filterwarnings("ignore", message=r".*`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


class ZeroPrecision(DeepSpeedPrecision):
    """Casts weights, which DeepSpeed holds in half precision with a float32 copy in the optimiser; batches stay."""

    def convert_input(self, data: Any) -> Any:
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """Data parallel training with optimiser states (ZeRO 1), gradients (2) and weights (3) divided among processes.

    Args:
        stage: 1, 2 or 3 (arXiv 1910.02054).
        offload_optimizer: keep optimiser states in the host's memory and step there; take `model.optimizer.fused`.
        offload_parameters: with stage 3, keep weights in the host's memory, too.
        bucket_elements: elements that are reduced and gathered at once, at least 1: memory against latency.
        exclude_frozen_parameters: leave weights that are not trained out of checkpoints. They cannot be exported then.
        timeout_minutes: how long a process waits for the others before it gives up, above 0.
        config: more of DeepSpeed's settings, a mapping or the path of a JSON file. What prmkit decides (batch size,
            accumulation, clipping, precision, optimiser, schedule, stage) is refused there.

    Raises:
        ConfigError: a value out of range, or a setting in `config` that contradicts prmkit's.
        MissingDependencyError: DeepSpeed is not installed.
    """

    strategy_name = "zero"

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        bucket_elements: int = 200_000_000,
        exclude_frozen_parameters: bool = False,
        timeout_minutes: float = 30.0,
        config: str | dict[str, Any] | None = None,
    ) -> None:
        if stage not in (1, 2, 3):
            raise ConfigError("trainer.strategy.stage", stage, "1 | 2 | 3")
        if offload_parameters and stage != 3:
            raise ConfigError("trainer.strategy.offload_parameters", True, "false, or stage 3, which divides weights")
        if bucket_elements < 1:
            raise ConfigError("trainer.strategy.bucket_elements", bucket_elements, "an integer of at least 1")
        if not timeout_minutes > 0:
            raise ConfigError("trainer.strategy.timeout_minutes", timeout_minutes, "a positive number")
        section = read_section(config)
        if not _DEEPSPEED_AVAILABLE:
            raise MissingDependencyError("trainer.strategy: ZeRO needs deepspeed: pip install 'prmkit[deepspeed]'")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it warns that it looked for a GPU in vain
        super().__init__(
            config=make_config(section, stage, offload_optimizer, offload_parameters, bucket_elements),
            timeout=timedelta(minutes=timeout_minutes),
            exclude_frozen_parameters=exclude_frozen_parameters,
            logging_level=logging.WARNING,
        )
        self.stage = stage
        self.weights_only = True  # refuse to save what could not be loaded again without running code
        self._cleaned: set[Path] = set()

    # -- where it runs ------------------------------------------------------------------------------------------------

    @property
    def on_cpu(self) -> bool:
        """Whether this runs on CPUs, over gloo."""
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed reads the index of a device, and CPUs have none of their own.
        return torch.device("cpu", self.local_rank) if self.on_cpu else super().root_device

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        plugin = precision_plugin
        if isinstance(plugin, DeepSpeedPrecision):
            plugin = ZeroPrecision(plugin.precision)
        self._precision_plugin = plugin

    def setup_environment(self) -> None:
        """Check what the trainer asks for, and join the other processes. ConfigError before any work."""
        if not self.on_cpu:
            super().setup_environment()
            return
        if str(getattr(self.precision_plugin, "precision", "")).startswith("16"):
            raise ConfigError("trainer.precision", self.precision_plugin.precision, "32-true or bf16-mixed on CPUs")
        _use_cpu()
        assert isinstance(self.config, dict)
        zero = self.config["zero_optimization"]
        zero["overlap_comm"] = False  # there are no streams to overlap on
        for part in ("offload_optimizer", "offload_param"):
            if part in zero:
                zero[part]["pin_memory"] = False
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        atexit.register(_leave)  # threads of a group that is still open crash the interpreter's end
        if not self.on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def setup(self, trainer: Trainer) -> None:
        if trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            raise ConfigError("trainer.gradient_clip_algorithm", "value", "norm, with ZeRO")
        super().setup(trainer)

    def model_sharded_context(self) -> AbstractContextManager[None]:
        # Models are built whole in the host's memory, as transformers and adapters want them, and divided afterwards.
        return nullcontext()

    # -- optimiser steps ----------------------------------------------------------------------------------------------

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False  # Lightning says where a window ends

    def block_backward_sync(self) -> AbstractContextManager[None]:
        return nullcontext()  # DeepSpeed divides gradients as they come, or waits for the boundary, by itself

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backward pass of a micro-batch; the window's last one makes the gradients those of all processes."""
        assert self.lightning_module is not None
        last = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """See Strategy. Logs `train/grad_norm`, the norm before clipping, which only DeepSpeed knows, on the first step
        and on those that the trainer's loggers write."""
        module = self.lightning_module
        assert module is not None
        every, step = module.trainer.log_every_n_steps, module.trainer.global_step
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        norm = self.deepspeed_engine.get_global_grad_norm()
        if norm is not None and (step == 0 or (every and (step + 1) % every == 0)):
            module.log("train/grad_norm", float(norm))
        return result

    def whole_weights(self) -> AbstractContextManager[None]:
        """Inside the block this process holds all weights and may use them at its own pace. Collective."""
        assert self.lightning_module is not None
        return whole_module(self.lightning_module, self.model)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a folder of shards. A kill at any moment leaves the old one (or none) or the new one whole."""
        if storage_options is not None or "://" in str(filepath):
            raise PrmkitError(f"{filepath}: ZeRO checkpoints are written to (shared) file systems only")
        state = {key: value for key, value in checkpoint.items() if key not in _NOT_OURS}
        if self.weights_only:
            check_readable(state, filepath)
        target = Path(self.broadcast(str(filepath)))
        temporary = temporary_name(target, self.broadcast(secrets.token_hex(4)))
        if self.is_global_zero:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent not in self._cleaned:
                remove_leftovers(target.parent)
                self._cleaned.add(target.parent)
        self.deepspeed_engine.save_checkpoint(
            str(temporary), tag=SHARD_FOLDER, exclude_frozen_parameters=self.exclude_frozen_parameters
        )
        for shard in (temporary / SHARD_FOLDER).glob(f"*_rank_{self.global_rank}_*.pt"):
            sync(shard)
        self.barrier("shards are flushed")
        if self.is_global_zero:
            torch.save(state, temporary / TRAINER_FILE)
            self._check_shards(temporary)
            for file in temporary.rglob("*"):
                if file.is_file() and "zero_pp_rank" not in file.name:
                    sync(file)
            info = ShardedCheckpoint("deepspeed", self.stage, self.world_size, int(checkpoint["global_step"]))
            publish_folder(temporary, target, info)
        self.barrier("checkpoint has its name")

    def _check_shards(self, folder: Path) -> None:
        found = len(list((folder / SHARD_FOLDER).glob("*_optim_states.pt")))
        if found != self.world_size:
            raise PrmkitError(
                f"{folder.parent}: {found} of {self.world_size} shards arrived. Checkpoints need a folder that all "
                f"nodes share."
            )

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a folder of shards into the engine, and return the trainer's state.

        Raises:
            PrmkitError: not a complete folder, one of another stage, or one that holds code.
        """
        assert self.lightning_module is not None
        folder, safe = Path(checkpoint_path), weights_only is not False
        fitting = self.lightning_module.trainer.state.fn is TrainerFn.FITTING
        info = self.check_checkpoint(folder)
        if safe:
            check_pickles(sorted((folder / SHARD_FOLDER).glob("*.pt")))
        if info.processes == self.world_size:
            self._load(folder, SHARD_FOLDER, fitting)
        else:
            with dealt_out_anew(folder, self.deepspeed_engine, self.is_global_zero, self.broadcast) as place:
                self._load(place, UNIVERSAL_FOLDER, fitting)
        state = trainer_state(folder, safe)
        if fitting:
            for group, rate in zip(self.optimizers[0].param_groups, state["lr_schedulers"][0]["_last_lr"], strict=True):
                group["lr"] = rate
        return state

    def check_checkpoint(self, folder: Path) -> ShardedCheckpoint:
        """What a checkpoint says of itself, once it is known that this strategy can load it.

        Another number of processes is no hindrance: states are dealt out anew.

        Raises:
            PrmkitError: it is not complete, or was not written under this stage of ZeRO.
        """
        if folder.is_file():
            raise PrmkitError(
                f"--ckpt_path {folder}: a checkpoint of one file, which has no optimiser states for ZeRO. Go on with "
                f"the strategy that wrote it, or start from its weights: `prm export {folder} OUT` and "
                f"--model.source.path OUT."
            )
        info = read_sharded(folder)
        if info.stage != self.stage:
            raise PrmkitError(
                f"--ckpt_path {folder}: written under ZeRO {info.stage}, and this run is ZeRO {self.stage}. Set "
                f"--trainer.strategy.stage {info.stage}, or start from its weights: `prm export {folder} OUT` and "
                f"--model.source.path OUT."
            )
        return info

    def _load(self, folder: Path, tag: str, fitting: bool) -> None:
        assert self.lightning_module is not None
        self.deepspeed_engine.load_checkpoint(
            str(folder),
            tag=tag,
            load_optimizer_states=fitting,
            load_lr_scheduler_states=False,
            load_module_strict=self.lightning_module.strict_loading and not self.exclude_frozen_parameters,
        )


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _use_cpu() -> None:
    """Make DeepSpeed take the CPU though there may be a GPU, and communicate over gloo."""
    import deepspeed.ops
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    set_accelerator(CPU_Accelerator())
    # Compiled at every first start otherwise, for minutes, and of use to tensor-parallel inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
