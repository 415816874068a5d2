"""Reading folders of shards that DeepSpeed wrote: what is in the pickles, whole weights, the trainer's state.

The shards are pickles, which can hold code. Before anything reads one, its list of names is scanned without running
it: tensors, plain values and a few records of DeepSpeed pass.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prmkit.checkpoints.complete import SHARD_FOLDER, TRAINER_FILE, read_sharded
from prmkit.checkpoints.reading import load_any, load_plain
from prmkit.errors import MissingDependencyError, PrmkitError

__all__ = ["check_pickles", "sharded_state", "sharded_weights", "trainer_state"]

_HARMLESS = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
        "torch.Size",
        "collections.OrderedDict",
    }
)


def check_pickles(files: Iterable[Path]) -> None:
    """Refuse files that would run code when they are unpickled; they are scanned, not run (PrmkitError)."""
    for file in files:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - _HARMLESS
        if found:
            raise PrmkitError(
                f"{file}: refused, it holds more than tensors and plain values ({', '.join(sorted(found))}). Loading "
                f"it could run code; with --weights_only false it is loaded all the same."
            )


def trainer_state(folder: str | Path, weights_only: bool = True) -> dict[str, Any]:
    """What the trainer saved beside the shards: loops, schedules, callbacks, position in the data."""
    file = Path(folder) / TRAINER_FILE
    state: dict[str, Any] = (load_plain if weights_only else load_any)(file)
    return state


def sharded_weights(folder: str | Path, weights_only: bool = True) -> dict[str, Tensor]:
    """All weights of the module that was trained, in float32 on the CPU, under the names of its state_dict.

    Args:
        folder: a complete checkpoint folder.
        weights_only: refuse shards whose pickles hold more than tensors and plain values.

    Raises:
        PrmkitError: not complete, or refused.
        MissingDependencyError: DeepSpeed, which reads its own format, is not installed.
    """
    read_sharded(folder)
    shards = Path(folder) / SHARD_FOLDER
    if weights_only:
        check_pickles(sorted(shards.glob("*.pt")))
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise MissingDependencyError(
            f"{folder}: shards of DeepSpeed are read with deepspeed: pip install 'prmkit[deepspeed]'"
        ) from error
    with contextlib.redirect_stdout(sys.stderr):
        weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=SHARD_FOLDER)
    return weights


def sharded_state(folder: str | Path, weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint of one process made of a folder: trainer state and `state_dict`, without the optimiser's state."""
    return {**trainer_state(folder, weights_only), "state_dict": sharded_weights(folder, weights_only)}
