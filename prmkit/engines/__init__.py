"""Engines write completions. See `prmkit.protocols.Engine`; importing this package does not import torch.

`factory` opens one by its config: `inprocess` (transformers under our own loop), `remote` (servers), `vllm` (in this
process). `scripted` writes what a script says, `contract` checks what every engine promises; `driver` and `stops` are
shared by several kinds. What is done with completions is left to search, annotation and reinforcement learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prmkit.engines.scripted import ScriptedEngine

if TYPE_CHECKING:
    from prmkit.engines.inprocess.hf import EngineStats, HFEngine
    from prmkit.engines.remote.http import HTTPEngine

__all__ = ["EngineStats", "HFEngine", "HTTPEngine", "ScriptedEngine"]


def __getattr__(name: str) -> Any:
    if name in ("EngineStats", "HFEngine"):
        from prmkit.engines.inprocess import hf

        return getattr(hf, name)
    if name == "HTTPEngine":
        from prmkit.engines.remote import http

        return http.HTTPEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
