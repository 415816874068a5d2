"""Models: the policy and the process reward model, where they come from, and the folders they live in."""

from prmkit.models.folders import ModelCard, atomic_folder, check_target, read_card, resolve_folder
from prmkit.models.lora import LoraSpec, merged_state_dict
from prmkit.models.policy import LoadedPolicy, build_policy, checked_lm_head, hidden_states, load_policy, save_policy
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
