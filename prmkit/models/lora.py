"""LoRA through peft: adapters put into a decoder in place, and folded into plain weights for export.

Folding works on copies: the model in training keeps its adapters apart, so nothing can be merged twice, and an
exported folder holds plain weights that need no peft. It is imported on first use: every command would wait for it.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prmkit.errors import ConfigError
from prmkit.models.sharding import whole, whole_state_dict

__all__ = ["LoraSpec", "add_lora", "merged_state_dict", "unties"]

_ADAPTER = "default"


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters on the decoder's linear layers (arXiv 2106.09685).

    Attributes:
        r: rank, at least 1.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: dropout probability on the adapters' input, in [0, 1).
        target_modules: names of the linear layers that get adapters, e.g. ["q_proj", "v_proj"], each of which the model
            must have; "all-linear" takes every linear layer of the decoder, heads left out; other text is a pattern of
            whole names.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError("lora.r", self.r, "an integer of at least 1")
        if self.alpha <= 0:
            raise ConfigError("lora.alpha", self.alpha, "a positive number")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError("lora.dropout", self.dropout, "a number in [0, 1)")
        if not self.target_modules:
            raise ConfigError("lora.target_modules", self.target_modules, 'layer names, or "all-linear"')


def add_lora(backbone: nn.Module, spec: LoraSpec, seed: int) -> None:
    """Put adapters into a decoder, in place, and freeze its other parameters.

    Args:
        backbone: decoder without its head.
        spec: which adapters.
        seed: of the adapters' initial values; the global generator is left as it was.

    Raises:
        ConfigError: a name that no layer of the model has, or a layer that takes no adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _check_targets(backbone, spec.target_modules)
    accepted = _accepted(backbone)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, backbone, adapter_name=_ADAPTER)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError("lora.target_modules", spec.target_modules, accepted, reason) from error


def _check_targets(backbone: nn.Module, wanted: str | list[str]) -> None:
    """Refuse names that peft would pass over, and parts that hold layers instead of weights (ConfigError)."""
    if wanted == "all-linear":
        return
    modules = [name for name, _ in backbone.named_modules() if name]
    for target in [wanted] if isinstance(wanted, str) else wanted:
        try:  # peft reads text as a pattern of whole names
            pattern = re.compile(target if isinstance(wanted, str) else rf"(.*\.)?{re.escape(target)}")
        except re.error as error:
            raise ConfigError("lora.target_modules", target, _accepted(backbone), f"As a pattern: {error}.") from None
        found = {name for name in modules if pattern.fullmatch(name)}
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in modules})
            near = difflib.get_close_matches(target, ends, n=3)
            meant = f"Did you mean [{'] or ['.join(near)}]?" if near else ""
            raise ConfigError("lora.target_modules", target, _accepted(backbone), meant)
        whole_part = next((name for name in sorted(found) if not hasattr(backbone.get_submodule(name), "weight")), None)
        if whole_part is not None:
            kind = type(backbone.get_submodule(whole_part)).__name__
            raise ConfigError(
                "lora.target_modules", target, _accepted(backbone), f"{whole_part} is a {kind}: it takes no adapter."
            )


def _accepted(backbone: nn.Module) -> str:
    linear = {name.rpartition(".")[2] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    return f'"all-linear" or some of {", ".join(sorted(linear))}'


def unties(model: PreTrainedModel) -> bool:
    """True if the embeddings have adapters and the output layer computes with their weights without them: folded in,
    the two are no longer the same."""
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    base = getattr(embeddings, "base_layer", None)
    return base is not None and output is not None and output.weight is base.weight


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights with its adapters folded in, under the names they have without adapters.

    The model is not changed. Without adapters this is `model.state_dict()`. Where weights are divided among processes
    it is collective, and process 0 gets them on the CPU, the others nothing.
    """
    state = whole_state_dict(model)
    if "peft" not in sys.modules:  # who has adapters has imported it
        return state
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        with whole(p for key, p in layer.named_parameters() if not key.startswith("base_layer.")):
            for key in [key for key in state if key.startswith(f"{name}.")]:
                tensor = state.pop(key)
                head, _, tail = key.partition(".base_layer.")
                if tail == "weight":
                    tensor = tensor + layer.get_delta_weight(_ADAPTER).to(tensor)  # type: ignore[operator]
                if tail:
                    state[f"{head}.{tail}"] = tensor
    return state
