"""The policy: a causal language model with its tokenizer and step format, read from and written to one folder."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from prmkit.ends import end_ids_of, model_end_ids
from prmkit.errors import DataError, StepFormatError
from prmkit.io import read_json, write_json
from prmkit.models.folders import ModelCard, atomic_folder, read_card, resolve_folder
from prmkit.models.lora import add_lora, merged_state_dict, unties
from prmkit.models.sharding import writes
from prmkit.models.source import (
    ModelSource,
    check_vocabulary,
    from_config,
    make_config,
    read_tokenizer,
    resolve_source,
    seeded,
    to_dtype,
    write_tokenizer,
)
from prmkit.quiet import weights_follow
from prmkit.steps import BoundStepFormat, StepFormat
from prmkit.weights import SPOILED, check_kind, check_weights

__all__ = ["LoadedPolicy", "build_policy", "checked_lm_head", "load_policy", "save_policy", "write_model"]

logger = logging.getLogger(__name__)

# Settings of some architectures that change logits between the head and the softmax. Losses and scores here apply the
# head to hidden states themselves, so a model that sets one of these to another value would be computed wrongly.
_LOGIT_CHANGES: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logits_mup_width_multiplier": (None, 1, 1.0),
}


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to use.

    Attributes:
        model: causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        format: its step format in the tokenizer's ids.
        weight_version: version of the weights; 0 for folders that prmkit did not write.
    """

    model: PreTrainedModel
    tokenizer: Any
    format: BoundStepFormat
    weight_version: int = 0


def save_policy(
    model: PreTrainedModel,
    tokenizer: Any,
    step_format: StepFormat | BoundStepFormat,
    directory: str | Path,
    weight_version: int = 0,
) -> None:
    """Write a policy as a folder that transformers and vLLM read, with its step format; whole or not at all.

    `generation_config.json` names every id that ends a sample: the model's own, and those of the step format.
    Adapters are folded into the written weights; the model itself stays as it is. A model folder that prmkit wrote is
    replaced, any other is refused (ConfigError). Where weights are divided among processes it is collective: process 0
    writes, and holds all weights on the CPU meanwhile.
    """
    bound = step_format if isinstance(step_format, BoundStepFormat) else step_format.bind(tokenizer)
    state = merged_state_dict(model)
    if not writes(model):
        return
    with atomic_folder(directory, ModelCard("policy", weight_version)) as folder:
        write_model(model, state, folder)
        write_tokenizer(tokenizer, folder)
        _write_ends(model, bound, folder)
        bound.spec.save(folder)


def write_model(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write a configuration and weights, adapters folded in. Tied embeddings with adapters are written as untied."""
    model.save_pretrained(folder, state_dict=state)
    if unties(model):
        config = read_json(folder / "config.json")
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if part is config or "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
        write_json(folder / "config.json", config)


def _write_ends(model: PreTrainedModel, bound: BoundStepFormat, folder: Path) -> None:
    config = model.generation_config
    if config is None:
        return
    own = end_ids_of(config.eos_token_id, "generation_config.eos_token_id")
    ends = list(dict.fromkeys([*own, bound.eos_id, *sorted(bound.end_ids)]))
    if len(ends) > len(own):
        written = copy.deepcopy(config)
        written.eos_token_id = ends if len(ends) > 1 else ends[0]
        written.save_pretrained(folder)


def load_policy(
    path: str | Path,
    step_format: StepFormat | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
) -> LoadedPolicy:
    """Read a policy from a folder or hub repository.

    Args:
        path: model folder or hub name.
        step_format: its format; None reads `step_format.json` of the folder.
        dtype: type of the weights: "float32", "bfloat16" or "float16".
        device: where to put the model; None leaves it on the CPU.
        attn_implementation: attention kernel; None leaves the choice to transformers.

    Raises:
        ConfigError: the folder holds a PRM.
        DataError: no such folder, no safetensors, weights missing or broken.
        StepFormatError: no step format, or one that the tokenizer cannot express.
    """
    folder = resolve_folder(path)
    check_kind("policy", path, folder, "policy")
    spec = step_format if step_format is not None else StepFormat.load(folder)
    tokenizer = read_tokenizer(folder)
    model = read_model(AutoModelForCausalLM, folder, to_dtype(dtype), attn_implementation)
    check_vocabulary(model, tokenizer, folder)
    if device is not None:
        cast(nn.Module, model).to(device)
    card = read_card(folder)
    return LoadedPolicy(
        model.eval(), tokenizer, spec.bind(tokenizer, model_end_ids(folder)), card.weight_version if card else 0
    )


def build_policy(source: ModelSource, tokenizer: Any) -> PreTrainedModel:
    """A causal language model to train, in training mode: read or random, with adapters when the source wants them.

    Raises:
        ConfigError, DataError, StepFormatError: see `ModelSource` and `load_policy`.
    """
    if source.path is None:
        model = from_config(AutoModelForCausalLM, make_config(source, tokenizer), source)
    else:
        model = read_model(
            AutoModelForCausalLM, resolve_source(source), to_dtype(source.dtype), source.attn_implementation
        )
    check_vocabulary(model, tokenizer, source.path or "source.config")
    return prepare_training(model, source)


def prepare_training(model: PreTrainedModel, source: ModelSource, head: nn.Module | None = None) -> PreTrainedModel:
    """Put a model into training mode with the adapters and checkpointing its source asks for, in place.

    With adapters every other parameter is frozen, but those of `head`: a new head has to be learned.
    """
    if source.lora is not None:
        model.requires_grad_(False)
        add_lora(model.base_model, source.lora, source.seed)
        if head is not None:
            head.requires_grad_(True)
    if source.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def read_model(
    auto_class: Any,
    folder: Path,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    new: tuple[str, ...] = (),
    seed: int = 0,
    new_level: int = logging.WARNING,
    **options: Any,
) -> PreTrainedModel:
    """A transformers model from the safetensors of a folder, without remote code.

    Args:
        auto_class: transformers class with `from_pretrained`.
        folder: local folder.
        dtype: type of the weights.
        attn_implementation: attention kernel; None leaves the choice to transformers.
        new: first parts of the names of weights that may be missing; they are drawn with `seed` and logged.
        seed: of new weights.
        new_level: level of the log line on them; nothing is logged where a checkpoint's weights replace them.
        options: further arguments of `from_pretrained`.

    Raises:
        DataError: weights are missing that are not in `new`, are cut off or not finite, or the folder cannot be read.
    """
    check_weights(folder)
    try:
        with seeded(seed):
            model, info = auto_class.from_pretrained(
                str(folder),
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (ImportError, KeyError, OSError, RuntimeError, StrictDataclassError, ValueError) as error:
        raise DataError(f"{folder}: the model cannot be read: {' '.join(str(error).split())}") from error
    missing = sorted(info["missing_keys"])
    lost = [key for key in missing if not key.startswith(new)] if new else missing
    if lost:
        raise DataError(
            f"{folder}: {len(lost)} weights of {type(model).__name__} are not in it, e.g. {lost[0]}. "
            f"This folder holds another kind of model."
        )
    spoiled = next((name for name, tensor in model.named_parameters() if not _finite(tensor)), None)
    if spoiled is not None:
        raise DataError(f"{folder}: {spoiled} {SPOILED}")
    if missing and not weights_follow():
        text = "%s: %d weights are new and random (seed %d): %s"
        logger.log(new_level, text, folder, len(missing), seed, ", ".join(missing))
    if info["unexpected_keys"]:
        names = sorted(info["unexpected_keys"])
        logger.warning("%s: %d tensors are not used, e.g. %s", folder, len(names), names[0])
    return cast(PreTrainedModel, model)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; a sum tells, and needs no room of its own."""
    return not tensor.is_floating_point() or tensor.is_meta or bool(tensor.detach().sum(dtype=torch.float64).isfinite())


def checked_lm_head(model: PreTrainedModel) -> nn.Linear:
    """The output layer of a causal language model, [V, H].

    Raises:
        StepFormatError: the model changes logits after this layer, which scores and losses here do not do.
    """
    for name, neutral in _LOGIT_CHANGES.items():
        value = getattr(model.config, name, None)
        if value not in neutral:
            raise StepFormatError(
                f"{type(model).__name__} changes its logits ({name} = {value}); models that do so are not supported"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise StepFormatError(f"{type(model).__name__} has no linear output layer, got {type(head).__name__}")
    return head


def hidden_states(
    backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None
) -> Tensor:
    """Last hidden states of a decoder, [B, T, H].

    Args:
        backbone: decoder without head.
        input_ids: [B, T] token ids, padded on the right.
        attention_mask: [B, T] True on tokens, False on padding; or [B, 1, T, T], what is added to attention scores.
            None for packed rows, or where nothing is padded.
        position_ids: [B, T] for packed rows: positions start again at 0 with every sequence, which is what keeps the
            sequences of a row from attending to each other; attention_mask is then left out, as transformers looks
            at positions only where no mask is given. None for one sequence a row.
    """
    mask = attention_mask
    if mask is not None and mask.dim() == 2:
        mask = None if position_ids is not None else mask.long()
    output = backbone(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
    return cast(Tensor, output.last_hidden_state)
