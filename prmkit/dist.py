"""Ranks, sums and gathers over the processes of a job; all of it does nothing where there is one process.

Every function but `rank` and `world_size` is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["barrier", "from_rank_0", "gathered", "highest", "rank", "summed", "world_size"]

T = TypeVar("T")


def world_size() -> int:
    """Number of data-parallel processes; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; 0 where torch.distributed is not in use."""
    return dist.get_rank() if world_size() > 1 else 0


def summed(values: Tensor | int) -> Tensor:
    """The sum over ranks, of the same shape and type; the values themselves where there is one rank. Collective.

    Args:
        values: where the process group communicates: on the GPU under NCCL. A number goes where it has to.
    """
    return _reduced(values, dist.ReduceOp.SUM)


def highest(values: Tensor | int) -> Tensor:
    """The maximum over ranks, element by element; otherwise as `summed`. Collective."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: Tensor | int, operation: Any) -> Tensor:
    alone = world_size() == 1
    if not isinstance(values, Tensor):
        values = torch.tensor(values, device="cuda" if not alone and dist.get_backend() == "nccl" else "cpu")
    if alone:
        return values
    values = values.clone()
    dist.all_reduce(values, operation)
    return values


def gathered(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The value of every rank, in order of rank; values are pickled. Collective over the group, None for all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def from_rank_0(value: T) -> T:
    """The value that rank 0 gives; it is pickled. Collective."""
    if world_size() == 1:
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=0)
    found: T = held[0]
    return found


def barrier() -> None:
    """Wait until all ranks are here. Collective."""
    if world_size() > 1:
        dist.barrier()
