"""Models: the policy and the process reward model, where they come from, and the folders they live in.

Names are imported from their modules on first use: folders are found and described without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prmkit.models.folders import ModelCard, atomic_folder, check_target, read_card, resolve_folder
    from prmkit.models.lora import LoraSpec, merged_state_dict
    from prmkit.models.policy import (
        LoadedPolicy,
        build_policy,
        checked_lm_head,
        hidden_states,
        load_policy,
        save_policy,
    )
    from prmkit.models.prefix_forest import PrefixForest, forest_states, plant_forest
    from prmkit.models.prm import PRMModel, build_prm
    from prmkit.models.sharding import is_sharded, whole, whole_module, whole_state_dict, whole_tensors
    from prmkit.models.source import ModelSource, load_tokenizer, read_tokenizer

__all__ = [
    "LoadedPolicy",
    "LoraSpec",
    "ModelCard",
    "ModelSource",
    "PRMModel",
    "PrefixForest",
    "atomic_folder",
    "build_policy",
    "build_prm",
    "check_target",
    "checked_lm_head",
    "forest_states",
    "hidden_states",
    "is_sharded",
    "load_policy",
    "load_tokenizer",
    "merged_state_dict",
    "plant_forest",
    "read_card",
    "read_tokenizer",
    "resolve_folder",
    "save_policy",
    "whole",
    "whole_module",
    "whole_state_dict",
    "whole_tensors",
]

_MODULES = {
    "LoadedPolicy": "policy",
    "LoraSpec": "lora",
    "ModelCard": "folders",
    "ModelSource": "source",
    "PRMModel": "prm",
    "PrefixForest": "prefix_forest",
    "atomic_folder": "folders",
    "build_policy": "policy",
    "build_prm": "prm",
    "check_target": "folders",
    "checked_lm_head": "policy",
    "forest_states": "prefix_forest",
    "hidden_states": "policy",
    "is_sharded": "sharding",
    "load_policy": "policy",
    "load_tokenizer": "source",
    "merged_state_dict": "lora",
    "plant_forest": "prefix_forest",
    "read_card": "folders",
    "read_tokenizer": "source",
    "resolve_folder": "folders",
    "save_policy": "policy",
    "whole": "sharding",
    "whole_module": "sharding",
    "whole_state_dict": "sharding",
    "whole_tensors": "sharding",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
