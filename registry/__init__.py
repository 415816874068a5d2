"""Versioned pairs of policy and process reward model, with their manifests, aliases and stores. Never imports torch.

    from registry import Publication, Registry

    pairs = Registry("runs/registry")
    pairs.publish(Publication("math", policy=Path("policy"), prm=Path("prm")), alias="candidate")
    pulled = pairs.pull("math@candidate", "here")

Names are imported from their modules on first use, so that a command pays for what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.compatibility import Compatibility, check_folders
    from registry.gate import GateConfig, GateDecision
    from registry.manifest import Card, Manifest
    from registry.metrics import Figure, Metrics, read_metrics
    from registry.names import PairRef, parse_ref
    from registry.publish import Publication
    from registry.pull import PulledPair
    from registry.recipe import record_recipe
    from registry.registry import Registry

__all__ = [
    "Card",
    "Compatibility",
    "Figure",
    "GateConfig",
    "GateDecision",
    "Manifest",
    "Metrics",
    "PairRef",
    "Publication",
    "PulledPair",
    "Registry",
    "check_folders",
    "parse_ref",
    "read_metrics",
    "record_recipe",
]

_MODULES = {
    "Card": "manifest",
    "Compatibility": "compatibility",
    "Figure": "metrics",
    "GateConfig": "gate",
    "GateDecision": "gate",
    "Manifest": "manifest",
    "Metrics": "metrics",
    "PairRef": "names",
    "Publication": "publish",
    "PulledPair": "pull",
    "Registry": "registry",
    "check_folders": "compatibility",
    "parse_ref": "names",
    "read_metrics": "metrics",
    "record_recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
