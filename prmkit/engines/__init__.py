"""Engines write completions. See `prmkit.types.Engine`; importing this package does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prmkit.engines.scripted import ScriptedEngine

if TYPE_CHECKING:
    from prmkit.engines.hf import EngineStats, HFEngine
    from prmkit.engines.http import HTTPEngine

__all__ = ["EngineStats", "HFEngine", "HTTPEngine", "ScriptedEngine"]


def __getattr__(name: str) -> Any:
    if name in ("EngineStats", "HFEngine"):
        from prmkit.engines import hf

        return getattr(hf, name)
    if name == "HTTPEngine":
        from prmkit.engines import http

        return http.HTTPEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
