"""Older annotations beside the new ones, so that a PRM does not forget the mistakes of earlier policies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from prmkit.errors import ConfigError
from prmkit.io import write_atomic
from prmkit.seeding import derive_seed

__all__ = ["replay_count", "write_replay"]


def replay_count(new: int, share: float) -> int:
    """How many older records make up a share of all, next to this many new ones: share / (1 - share) * new."""
    if not 0.0 <= share < 1.0:
        raise ConfigError("replay", share, "a number in [0, 1)")
    return round(share / (1.0 - share) * new)


def write_replay(older: Sequence[Path], new: Path, share: float, seed: int, output: Path) -> int:
    """Write a sample of older records, without replacement, in their order; returns how many.

    Which ones is a function of the files' contents and the seed. All of them where there are too few. The file is left
    alone when it holds them already, and is not written when there are none to write.

    Args:
        older: files of step-label records.
        new: the file they are to stand beside.
        share: of the sample among both.
        seed: of the sample.
        output: the file to write.
    """
    count = replay_count(len(_lines(new)), share)
    pool = [line for file in older for line in _lines(file)]
    chosen = sorted(random.Random(derive_seed("replay", seed)).sample(range(len(pool)), min(count, len(pool))))
    if chosen:
        content = b"".join(pool[index] for index in chosen)
        if not output.is_file() or output.read_bytes() != content:
            write_atomic(output, content)
    return len(chosen)


def _lines(file: Path) -> list[bytes]:
    """Lines with their ends; blank ones left out."""
    return [line + b"\n" for line in file.read_bytes().split(b"\n") if line.strip()]
