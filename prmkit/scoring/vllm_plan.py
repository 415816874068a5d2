"""Can vLLM's pooling serve a PRM, and with which arguments? Reads a folder's configuration; vLLM is not needed.

vLLM gives two kinds of output of a token classifier: logits at one tag token (pooling STEP), or at every token (ALL).
A format that reads at its tag is served with STEP, any other with ALL; the reader picks the positions of the format
from either (`PoolingPlan.pick`). A causal language model becomes a classifier of its two label tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prmkit.errors import StepFormatError
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.io import read_json
from prmkit.weights import check_weights

__all__ = ["PoolingPlan", "plan_pooling"]

T = TypeVar("T")

_OWN_HEAD = ("Qwen2ForProcessRewardModel",)


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """How vLLM serves a PRM, or why not.

    Attributes:
        serves: vLLM gives this PRM's logits where its format reads them.
        reason: why, in words for people.
        arguments: engine arguments beside those of `engine_arguments`; empty when it does not serve.
        tag: token at which logits come back; None gives them at every token.
        outputs: logits a position: 2 as (wrong, right), 1 for scalar heads.
    """

    serves: bool
    reason: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tag: int | None = None
    outputs: int = 2

    def pick(self, encoded: EncodedSteps, rows: Sequence[T]) -> list[T]:
        """The rows of a reply that are the scores of steps, in order.

        Args:
            encoded: what was sent, all of it.
            rows: of the reply, one a place where the tag stands, or one a token.

        Raises:
            StepFormatError: the reply has another number of rows than the input asks for.
        """
        places = [n for n, token in enumerate(encoded.input_ids) if self.tag is None or token == self.tag]
        if len(rows) != len(places):
            raise StepFormatError(
                f"vLLM gave {len(rows)} rows of logits for {len(places)} places: it pools otherwise than asked. Start "
                f"it with the arguments of `plan_pooling`."
            )
        found = dict(zip(places, rows, strict=True))
        return [found[position] for position in encoded.positions]


def plan_pooling(folder: str | Path, bound_format: BoundStepFormat, every_token: bool = False) -> PoolingPlan:
    """How vLLM serves the PRM of a folder.

    Args:
        folder: local model folder.
        bound_format: the PRM's step format in its tokenizer's ids.
        every_token: logits at every token in any case, for a server whose readers take rows for tokens or for steps
            and nothing else (the HTTP scorer); the tag may stand in a question, too.
    """
    folder = Path(folder)
    prm = bound_format.spec.prm
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    architecture = str(architectures[0])
    shapes = check_weights(folder)
    tag = bound_format.tag_ids[-1] if prm.read == "tag" and not every_token else None
    pooler: dict[str, Any] = {"task": "token_classify"}
    pooler |= {"tok_pooling_type": "ALL"} if tag is None else {"tok_pooling_type": "STEP", "step_tag_id": tag}
    arguments: dict[str, Any] = {"runner": "pooling", "pooler_config": pooler}
    where = "at every token, the format's positions are picked from them" if tag is None else f"at the tag {tag}"
    if prm.head == "label_tokens":
        if not architecture.endswith("ForCausalLM"):
            return PoolingPlan(False, f"{architecture} is no causal language model, which label tokens need")
        return _of_language_model(bound_format, arguments, tag, where)
    outputs = 1 if prm.head == "scalar" else 2
    if any(name.startswith("v_head.") for name in shapes):
        return PoolingPlan(False, "the folder holds a value head under trl's names, which vLLM does not read")
    if architecture in _OWN_HEAD:
        return PoolingPlan(True, f"vLLM has {architecture}; logits {where}", arguments, tag, outputs)
    if not architecture.endswith("ForTokenClassification"):
        return PoolingPlan(False, f"{architecture} has no head that vLLM reads as a token classifier")
    return PoolingPlan(True, f"a linear head on {architecture}; logits {where}", arguments, tag, outputs)


def _of_language_model(
    bound_format: BoundStepFormat, arguments: dict[str, Any], tag: int | None, where: str
) -> PoolingPlan:
    assert bound_format.label_ids is not None
    tokens = [str(token) for token in bound_format.tokenizer.convert_ids_to_tokens(list(bound_format.label_ids))]
    if bound_format.tokenizer.convert_tokens_to_ids(tokens) != list(bound_format.label_ids):
        return PoolingPlan(False, f"the tokenizer does not find the label tokens {tokens} by name")
    overrides = {"classifier_from_token": tokens, "method": "no_post_processing"}
    return PoolingPlan(
        True,
        f"a classifier of the label tokens {tokens} made of the language model's head; logits {where}",
        {**arguments, "convert": "classify", "hf_overrides": overrides},
        tag,
    )
