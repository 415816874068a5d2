"""Scorers by name: the one place where `scorer.kind` is looked at."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from prmkit.engines.factory import torch_device
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.ends import model_end_ids
from prmkit.formats.spec import StepFormat
from prmkit.scoring.config import ScorerConfig
from prmkit.scoring.http import HTTPScorer
from prmkit.scoring.prm import PRMScorer
from prmkit.weights import check_kind

__all__ = ["open_scorer"]


def open_scorer(
    config: ScorerConfig, folder: Path, step_format: StepFormat, stack: ExitStack, device: str
) -> PRMScorer | HTTPScorer:
    """The PRM of a folder, ready to score.

    Args:
        config: kind and settings.
        folder: model folder; of kind http only its tokenizer is read.
        step_format: the PRM's.
        stack: closes connections.
        device: of kind hf: where to compute.

    Raises:
        ConfigError, DataError, StepFormatError: the model cannot be used, or a setting.
        EngineLostError: kind http, and no server answers or one does not do what it is asked.
    """
    check_kind("prm", folder, folder, "prm")
    match config.kind:
        case "hf":
            from prmkit.models import PRMModel

            model = PRMModel.from_pretrained(folder, step_format, config.dtype, torch_device(device)).eval()
            return PRMScorer(model, max_batch_tokens=config.max_batch_tokens, cache_tokens=config.cache_tokens)
        case "http":
            from prmkit.models.source import read_tokenizer

            return stack.enter_context(
                HTTPScorer(config.http, BoundStepFormat(step_format, read_tokenizer(folder), model_end_ids(folder)))
            )
    raise ConfigError("scorer.kind", config.kind, "hf | http")
