"""The heads of process reward models: which there are, how each is found in a checkpoint, and how it is applied.

| StepFormat.prm.head | transformers class | weights of the head |
|---|---|---|
| label_tokens | AutoModelForCausalLM | two rows of `lm_head` |
| token_head | AutoModelForTokenClassification, 2 labels | `score.weight`, `score.bias` |
| token_head | Qwen2ForProcessRewardModel (below) | `score.0.*`, `score.2.*` |
| scalar | AutoModelForTokenClassification, 1 label | `score.*`, read also from trl's `v_head.summary.*` |
| registered from outside | a subclass of the decoder's token classifier (`_own_class`) | `score.*` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PretrainedConfig,
    Qwen2ForTokenClassification,
)
from transformers.models.qwen2 import Qwen2Config

from prmkit.errors import StepFormatError
from prmkit.plugins import HEADS, Head
from prmkit.weights import head_outputs

__all__ = ["HeadPlan", "Qwen2ForProcessRewardModel", "class_of_head", "plan_head"]

_NEW_HEAD = ("score.",)
# trl and Skywork wrap a causal language model; its own name comes first, then the decoder's.
_VALUE_HEAD_NAMES = {r"^pretrained_model\.": "", r"^v_head\.summary\.": "score."}


class Qwen2ForProcessRewardModel(Qwen2ForTokenClassification):  # type: ignore[misc,unused-ignore]
    """Qwen2 with the two-layer head of the published Qwen2.5-Math-PRM checkpoints (arXiv 2501.07301).

    The class has the name that those checkpoints and vLLM use, so that folders can be exchanged both ways and no
    remote code is needed.
    """

    def __init__(self, config: Qwen2Config) -> None:
        config.num_labels = 2
        super().__init__(config)
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, 2)
        )
        self.post_init()


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """How to load a folder as a PRM.

    Attributes:
        auto_class: transformers class whose `from_pretrained` reads it.
        config: fields to set in the folder's configuration.
        key_mapping: renamings of tensors, pattern to replacement.
        new: first parts of the names of weights that may be new.
    """

    auto_class: Any
    config: Mapping[str, Any] = field(default_factory=dict)
    key_mapping: Mapping[str, str] | None = None
    new: tuple[str, ...] = ()


def plan_head(kind: str, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> HeadPlan:
    """How to load the tensors of a folder for a head of a kind.

    A folder of a causal language model fits every kind: two of its tokens may serve as labels, and the other heads are
    made new. A folder that has a head already must have the one that is wanted.

    Args:
        kind: `StepFormat.prm.head`.
        shapes: tensors of the folder by name.
        folder: for messages.

    Raises:
        StepFormatError: the folder holds the head of another kind.
    """
    head = HEADS.find(kind, "step_format.prm.head")
    if head.make is not None:
        return _own_plan(kind, head, shapes, folder)
    found = head_outputs(shapes)
    wanted = head.outputs
    strange = found is None and any(name.startswith(_NEW_HEAD) for name in shapes)
    if strange or (found is not None and found != wanted):
        held = next((k for k, n in {"token_head": 2, "scalar": 1}.items() if n == found), "a head of another kind")
        raise StepFormatError(_wrong_head(folder, kind, held))
    if kind == "label_tokens":
        return HeadPlan(AutoModelForCausalLM)
    if "score.0.weight" in shapes:
        return HeadPlan(Qwen2ForProcessRewardModel)
    config: dict[str, Any] = {"num_labels": wanted}
    if found is not None and not _has_bias(shapes):
        config["token_classification_bias"] = False
    renamed = _VALUE_HEAD_NAMES if "v_head.summary.weight" in shapes else None
    return HeadPlan(AutoModelForTokenClassification, config, renamed, _NEW_HEAD if found is None else ())


def class_of_head(kind: str, config: PretrainedConfig) -> Any:
    """The transformers class, with `from_config`, of a model with a head of a kind; sets what the head needs in the
    configuration. Errors as in `plan_head`."""
    head = HEADS.find(kind, "step_format.prm.head")
    if head.outputs is None:
        return AutoModelForCausalLM
    config.num_labels = head.outputs
    return AutoModelForTokenClassification if head.make is None else _own_class(kind, head, config)


def _has_bias(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return "score.bias" in shapes or "v_head.summary.bias" in shapes


def _wrong_head(folder: Path, kind: str, held: str) -> str:
    return (
        f"{folder}: step_format.prm.head is {kind!r}, but the folder holds {held!r}. Give the step format that the "
        f"model was trained with."
    )


# -- heads from outside -----------------------------------------------------------------------------------------------


def _own_class(kind: str, head: Head, config: PretrainedConfig) -> Any:
    """The decoder's token classifier with a registered head in the place of its own, as a class of transformers.

    Raises:
        StepFormatError: transformers has no token classifier with this decoder.
    """
    base = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(config), None)
    if base is None:
        raise StepFormatError(f"step_format.prm.head: transformers has no token classifier of {config.model_type!r}")
    make, outputs = head.make, head.outputs
    assert make is not None

    def start(self: Any, config: PretrainedConfig) -> None:
        config.num_labels = outputs
        base.__init__(self, config)
        self.score = make(config)
        self.post_init()

    def random(cls: Any, /, config: PretrainedConfig, *, trust_remote_code: bool = False, **options: Any) -> Any:
        del trust_remote_code  # as in the Auto classes; there is none here
        return cls._from_config(config, **options)

    word = HEADS.name_of(kind, "step_format.prm.head").title().replace("_", "")
    name = f"{base.__name__.removesuffix('ForTokenClassification')}{word}ForPrmModel"
    return type(name, (base,), {"__init__": start, "from_config": classmethod(random), "__module__": __name__})


def _own_plan(kind: str, head: Head, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> HeadPlan:
    """The same for a registered head: the folder holds all of its weights, or none and no other head."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert head.make is not None
    with torch.device("meta"):
        wanted = {f"score.{name}": tuple(value.shape) for name, value in head.make(config).state_dict().items()}
    held = {name: shape for name, shape in shapes.items() if name.startswith((*_NEW_HEAD, "v_head."))}
    if held and held != wanted:
        raise StepFormatError(_wrong_head(folder, kind, "a head of another kind"))
    return HeadPlan(_own_class(kind, head, config), new=() if held else _NEW_HEAD)
