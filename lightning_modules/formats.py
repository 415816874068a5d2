"""The step format of a module, known as soon as it is made: data modules need it before there is a model."""

from __future__ import annotations

from typing import Any

from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.ends import end_ids_of, model_end_ids
from prmkit.formats.presets import get_step_format
from prmkit.formats.spec import StepFormat
from prmkit.models import ModelSource, load_tokenizer
from prmkit.models.folders import resolve_folder
from prmkit.models.source import resolve_source

__all__ = ["bind_format"]


def bind_format(source: ModelSource, step_format: str | dict[str, Any] | None) -> BoundStepFormat:
    """A step format in the ids of a source's tokenizer.

    Args:
        source: where the model comes from.
        step_format: a preset's name, a file or folder, or a mapping of fields; None is the format in the source's
            folder, or "plain" for a model of random weights.

    Raises:
        StepFormatError: the folder has no format, or the tokenizer cannot express it.
    """
    if step_format is not None:
        spec = get_step_format(step_format)
    elif source.path is not None:
        spec = StepFormat.load(resolve_source(source))
    else:
        spec = get_step_format("plain")
    return BoundStepFormat(spec, load_tokenizer(source), _ends(source))


def _ends(source: ModelSource) -> tuple[int, ...]:
    """Ids at which samples of a source's model end, by its files or its configuration."""
    if source.path is not None:
        return model_end_ids(resolve_folder(source.path, weights=False))
    return end_ids_of((source.config or {}).get("eos_token_id"), "source.config.eos_token_id")
