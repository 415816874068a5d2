"""Weights that are divided among processes (ZeRO 3): reading them one by one, or holding all of them for a while.

Everything here is collective where weights are divided, and plain reading where they are not. DeepSpeed marks divided
parameters; it is imported only when there are some.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prmkit.dist import rank

__all__ = ["is_sharded", "whole", "whole_module", "whole_state_dict", "whole_tensors", "writes"]


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only a part of a module's weights at present; the same on every process."""
    return any(_divided(parameter) for parameter in module.parameters())


def _divided(tensor: Tensor) -> bool:
    status = getattr(tensor, "ds_status", None)  # set by DeepSpeed
    return status is not None and status.name != "AVAILABLE"


def writes(module: nn.Module) -> bool:
    """Whether this process has a module's weights to write: any process where they are whole, else process 0."""
    return not is_sharded(module) or rank() == 0


@contextmanager
def whole(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block the parameters are whole on every process, to be read. Collective."""
    divided = [parameter for parameter in parameters if _divided(parameter)]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


def whole_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of everything in a module's state_dict, one after another; each is whole only until the next is
    asked for. Collective: every process goes through all of them."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        with whole([tensor]):
            yield name, tensor.detach()


def whole_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A module's state_dict. Of divided weights, copies on the CPU, on process 0 only: empty on the others. Collective.

    Weights that are tied are one tensor under several names.
    """
    if not is_sharded(module):
        return dict(module.state_dict())
    keeps = writes(module)
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    names = module.state_dict(keep_vars=True)
    for name, value in whole_tensors(module):
        if keeps:
            key = id(names[name])
            if key not in copies:
                copies[key] = value.to("cpu", copy=True)
            state[name] = copies[key]
    return state


@contextmanager
def whole_module(module: nn.Module, engine: Any) -> Iterator[None]:
    """Inside the block every process holds all weights, and its forward passes wait for nobody. Collective.

    Args:
        module: whose weights.
        engine: DeepSpeed's engine, whose hooks (which divide weights again after use) are off inside the block.
    """
    if not is_sharded(module):
        yield
        return
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    with whole(module.parameters()):
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        for parameter in module.parameters():
            if hasattr(parameter, "ds_active_sub_modules"):
                parameter.ds_active_sub_modules.clear()
        try:
            yield
        finally:
            offload._register_deepspeed_module(offload.module)
