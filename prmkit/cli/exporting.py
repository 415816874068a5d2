"""The work behind `prm export`. Imports torch and Lightning; `prmkit.cli.export` decides when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from callbacks.checkpoint_io import AtomicCheckpointIO
from prmkit.cli.export import find_checkpoint, find_config, read_model_config
from prmkit.cli.parsing import user_errors
from prmkit.errors import ConfigError, PrmkitError
from prmkit.quiet import checkpoint_follows

__all__ = ["export", "load_weights"]

_PREFIX = "model."


def export(
    checkpoint: Path,
    output: Path,
    config: Path | None = None,
    dtype: str | None = None,
    weight_version: int = 0,
    weights_only: bool = True,
) -> str:
    """Write the model of a checkpoint as a folder; returns what was written, in words.

    Args:
        checkpoint: a file, a folder of shards, or a run's folder.
        output: the folder to write.
        config: of the run; None looks beside and above the checkpoint.
        dtype: of the written weights; None is that of model.source.
        weight_version: stamped on the weights.
        weights_only: refuse checkpoints that hold more than tensors and plain values.

    Raises:
        PrmkitError: nothing to export, or the checkpoint does not belong to the config.
    """
    place = find_checkpoint(checkpoint)
    file = find_config(place, config)
    module = _module(file)
    state = AtomicCheckpointIO().load_checkpoint(place, weights_only=weights_only)
    with checkpoint_follows():
        module.model = module.build_model()
    load_weights(module.model, state["state_dict"], f"{place} and {file}")
    if dtype is not None:
        module.model.to(getattr(torch, dtype))
    module.export_pretrained(output, weight_version)
    step = state.get("global_step")
    return f"{type(module).__name__} after {step} optimiser steps, from {place}"


def load_weights(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Put the weights of a module's checkpoint into its model.

    Weights that are not trained may be missing: they are the source's.

    Raises:
        PrmkitError: names or shapes differ.
    """
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise PrmkitError(f"{what} do not belong together: {str(error).splitlines()[-1].strip()}") from error
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    lost = [name for name in missing if name not in frozen]
    if lost or unexpected:
        name = (lost or unexpected)[0]
        why = "is missing from the checkpoint" if lost else "is in the checkpoint only"
        raise PrmkitError(f"{what} do not belong together: {_PREFIX}{name} {why}")


def _module(file: Path) -> Any:
    """The LightningModule of a config, without its model."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    with user_errors("prm export", parser):
        values = parser.parse_object({"model": read_model_config(file)})
        module = parser.instantiate_classes(values).model
    if not hasattr(module, "build_model"):
        raise ConfigError("model.class_path", type(module).__name__, "a module of prmkit that exports its model")
    return module
