"""The process reward model: a decoder and a head that is applied at the ends of steps only.

No tensor of the size tokens x vocabulary is ever made: hidden states are gathered at the positions where scores are
read, and multiplied by the head; for label tokens that is two rows of the language model's head.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel

from prmkit.ends import model_end_ids
from prmkit.losses.prm import log_odds
from prmkit.models.folders import ModelCard, atomic_folder, resolve_folder
from prmkit.models.heads import plan_head
from prmkit.models.lora import merged_state_dict
from prmkit.models.policy import checked_lm_head, hidden_states, prepare_training, read_model, write_model
from prmkit.models.sharding import writes
from prmkit.models.source import (
    ModelSource,
    check_vocabulary,
    from_config,
    make_config,
    read_config,
    read_tokenizer,
    resolve_source,
    to_dtype,
    write_tokenizer,
)
from prmkit.steps import BoundStepFormat, StepFormat
from prmkit.weights import check_weights

__all__ = ["PRMModel", "build_prm"]


class PRMModel(nn.Module):
    """A decoder with the head that `StepFormat.prm.head` names.

    Attributes:
        model: the transformers model that holds both: a causal language model for label tokens, else a token
            classifier.
        format: the step format in the tokenizer's ids.
    """

    def __init__(self, model: PreTrainedModel, step_format: BoundStepFormat) -> None:
        super().__init__()
        self.model = model
        self.format = step_format
        check_vocabulary(model, step_format.tokenizer, model.config.name_or_path or "PRM")
        if step_format.label_ids is not None:
            checked_lm_head(model)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        step_format: StepFormat | None = None,
        dtype: str = "float32",
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        seed: int = 0,
    ) -> PRMModel:
        """Read a PRM, or make one of a causal language model, from a folder or hub repository.

        Read are folders of `save_pretrained`, published token classifiers (Qwen2.5-Math-PRM among them), scalar value
        heads as trl and Skywork write them, and causal language models: these are ready for label tokens, and get a
        new head, with a warning in the log, for the other kinds.

        Args:
            path: model folder or hub name.
            step_format: its format; None reads `step_format.json` of the folder.
            dtype: type of the weights: "float32", "bfloat16" or "float16".
            device: where to put the model; None leaves it on the CPU.
            attn_implementation: attention kernel; None leaves the choice to transformers.
            seed: of a new head.

        Raises:
            DataError: no such folder, no safetensors, weights missing.
            StepFormatError: no step format, one that the tokenizer cannot express, or one that names another head
                than the folder holds.
        """
        folder = resolve_folder(path)
        spec = step_format if step_format is not None else StepFormat.load(folder)
        bound = spec.bind(read_tokenizer(folder), model_end_ids(folder))
        model = _read(folder, bound, dtype, attn_implementation, seed)
        prm = cls(model, bound).eval()
        return prm if device is None else prm.to(device)

    def save_pretrained(self, directory: str | Path, weight_version: int = 0) -> None:
        """Write a folder that `from_pretrained`, transformers and vLLM read; whole or not at all.

        Adapters are folded into the written weights; the model itself stays as it is. Collective, as `save_policy` is.
        """
        state = merged_state_dict(self.model)
        if not writes(self.model):
            return
        _name_labels(self.model.config, self.format.spec.prm.head)
        with atomic_folder(directory, ModelCard("prm", weight_version)) as folder:
            write_model(self.model, state, folder)
            write_tokenizer(self.tokenizer, folder)
            self.format.spec.save(folder)

    @property
    def tokenizer(self) -> Any:
        return self.format.tokenizer

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its head; called with input_ids it returns `last_hidden_state` [B, T, H]."""
        return cast(nn.Module, self.model.base_model)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    def logits_at(self, hidden: Tensor) -> Tensor:
        """The head on hidden states of score positions, in float32.

        Args:
            hidden: [N, H].

        Returns:
            [N, 2] as (wrong, right) for label tokens and token heads, [N, 1] for scalar heads.
        """
        if self.format.label_ids is None:
            return cast(Tensor, self.model.score(hidden)).float()
        head = self.model.get_output_embeddings()
        ids = torch.tensor(self.format.label_ids, device=hidden.device)
        bias = None if head.bias is None else head.bias[ids].float()
        # Two outputs cost nothing in float32, and a difference of two large half-precision logits loses its digits.
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.float(), head.weight[ids].float(), bias)

    def probability(self, logits: Tensor) -> Tensor:
        """Scores: probability in [0, 1] that a step is right, [N] in float32, from `logits_at`'s logits."""
        return torch.sigmoid(log_odds(logits))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, position_mask: Tensor) -> Tensor:
        """Logits at score positions.

        Args:
            input_ids: [B, T] token ids, padded on the right.
            attention_mask: [B, T] True on tokens.
            positions: [B, S] index into T of each step's score; any valid index where position_mask is False.
            position_mask: [B, S] True where there is a step to score.

        Returns:
            [N, 2] or [N, 1] float32, N the number of True entries of position_mask, row by row.
        """
        hidden = hidden_states(self.backbone, input_ids, attention_mask)
        rows, columns = position_mask.nonzero(as_tuple=True)
        return self.logits_at(hidden[rows, positions[rows, columns]])


def _name_labels(config: PretrainedConfig, head: str) -> None:
    """Say in a configuration what the outputs of a head of its own are; LABEL_0 and LABEL_1 say nothing."""
    labels = {"token_head": ("wrong", "right"), "scalar": ("right",)}.get(head)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}


def build_prm(source: ModelSource, step_format: BoundStepFormat) -> PRMModel:
    """A PRM to train, in training mode: read or random, with adapters when the source wants them.

    Raises:
        ConfigError, DataError, StepFormatError: see `ModelSource` and `PRMModel.from_pretrained`.
    """
    head_kind = step_format.spec.prm.head
    if source.path is not None:
        folder, level = resolve_source(source), logging.INFO  # a new head is what a first training begins with
        model = _read(folder, step_format, source.dtype, source.attn_implementation, source.seed, level)
    elif head_kind == "label_tokens":
        model = from_config(AutoModelForCausalLM, make_config(source, step_format.tokenizer), source)
    else:
        config = make_config(source, step_format.tokenizer, num_labels=2 if head_kind == "token_head" else 1)
        model = from_config(AutoModelForTokenClassification, config, source)
    prm = PRMModel(model, step_format)
    prepare_training(model, source, head=None if head_kind == "label_tokens" else model.score)
    return prm.train()


def _read(
    folder: Path, bound: BoundStepFormat, dtype: str, attention: str | None, seed: int, new_level: int = logging.WARNING
) -> PreTrainedModel:
    plan = plan_head(bound.spec.prm.head, check_weights(folder), folder)
    config = read_config(folder)
    for name, value in plan.config.items():
        setattr(config, name, value)
    return read_model(
        plan.auto_class,
        folder,
        to_dtype(dtype),
        attention,
        plan.new,
        seed,
        new_level,
        config=config,
        key_mapping=None if plan.key_mapping is None else dict(plan.key_mapping),
    )
