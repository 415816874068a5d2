"""Shards for another number of processes: DeepSpeed's universal format, made on the way and removed afterwards."""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prmkit.checkpoints import SHARD_FOLDER, temporary_name
from prmkit.ownership import discard

__all__ = ["UNIVERSAL_FOLDER", "dealt_out_anew"]

UNIVERSAL_FOLDER = "universal"

logger = logging.getLogger(__name__)


@contextmanager
def dealt_out_anew(folder: Path, engine: Any, leads: bool, broadcast: Callable[[str], str]) -> Iterator[Path]:
    """A folder beside `folder` with its states one parameter a file, from which any number of processes can load.

    Collective. One process reads and writes all of it: as much room as the checkpoint itself, for a while.

    Args:
        folder: a complete checkpoint folder, known to hold no code.
        engine: DeepSpeed's engine; inside the block it loads that format.
        leads: whether this process does the work.
        broadcast: tells all processes what the one that leads says; they wait for it.
    """
    place = temporary_name(folder, broadcast(secrets.token_hex(4)))
    if leads:
        logger.info("%s: dealing the shards out anew, by way of %s", folder, place)
        _convert(folder / SHARD_FOLDER, place / UNIVERSAL_FOLDER)
    broadcast("converted")
    config = engine._config
    before, config.load_universal_checkpoint = config.load_universal_checkpoint, True
    try:
        with _own_settings(engine):
            yield place
    finally:
        config.load_universal_checkpoint = before
    broadcast("loaded")
    if leads:
        discard(place)


@contextmanager
def _own_settings(engine: Any) -> Iterator[None]:
    """Undo what loading that format under ZeRO 3 does to an optimiser of several groups: all of them get the settings
    of the first, and share one counter of steps, which each would advance."""
    optimizer = getattr(engine.optimizer, "optimizer", None)
    groups = [] if optimizer is None else optimizer.param_groups
    before = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    yield
    for group, settings in zip(groups, before, strict=True):
        group.update(settings)
    for state in [] if optimizer is None else optimizer.state.values():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"]).clone()


def _convert(shards: Path, target: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    target.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        main(
            Namespace(
                input_folder=str(shards),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
