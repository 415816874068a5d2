"""The heads of process reward models: which there are, how each is found in a checkpoint, and how it is applied.

| StepFormat.prm.head | transformers class | weights of the head |
|---|---|---|
| label_tokens | AutoModelForCausalLM | two rows of `lm_head` |
| token_head | AutoModelForTokenClassification, 2 labels | `score.weight`, `score.bias` |
| token_head | Qwen2ForProcessRewardModel (below) | `score.0.*`, `score.2.*` |
| scalar | AutoModelForTokenClassification, 1 label | `score.*`, read also from trl's `v_head.summary.*` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, Qwen2ForTokenClassification
from transformers.models.qwen2 import Qwen2Config

from prmkit.errors import StepFormatError
from prmkit.weights import head_outputs

__all__ = ["HeadPlan", "Qwen2ForProcessRewardModel", "plan_head"]

_OUTPUTS = {"token_head": 2, "scalar": 1}
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
    found = head_outputs(shapes)
    wanted = _OUTPUTS.get(kind)
    if found is not None and found != wanted:
        held = next((k for k, n in _OUTPUTS.items() if n == found), f"a head of {found} outputs")
        raise StepFormatError(
            f"{folder}: step_format.prm.head is {kind!r}, but the folder holds {held!r}. Give the step format that "
            f"the model was trained with."
        )
    if kind == "label_tokens":
        return HeadPlan(AutoModelForCausalLM)
    if "score.0.weight" in shapes:
        return HeadPlan(Qwen2ForProcessRewardModel)
    config: dict[str, Any] = {"num_labels": wanted}
    if found is not None and not _has_bias(shapes):
        config["token_classification_bias"] = False
    renamed = _VALUE_HEAD_NAMES if "v_head.summary.weight" in shapes else None
    return HeadPlan(AutoModelForTokenClassification, config, renamed, _NEW_HEAD if found is None else ())


def _has_bias(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return "score.bias" in shapes or "v_head.summary.bias" in shapes
