"""Scorers score steps. See `prmkit.protocols.StepScorer`; importing this package does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prmkit.scoring.ensemble import EnsembleScorer
from prmkit.scoring.table import TableScorer

if TYPE_CHECKING:
    from prmkit.scoring.http import HTTPScorer
    from prmkit.scoring.prm import PRMScorer, ScorerStats

__all__ = ["EnsembleScorer", "HTTPScorer", "PRMScorer", "ScorerStats", "TableScorer"]


def __getattr__(name: str) -> Any:
    if name in ("PRMScorer", "ScorerStats"):
        from prmkit.scoring import prm

        return getattr(prm, name)
    if name == "HTTPScorer":
        from prmkit.scoring import http

        return http.HTTPScorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
