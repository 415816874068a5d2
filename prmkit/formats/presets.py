"""Step formats of known model families, and formats by name, file or mapping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prmkit.errors import ConfigError
from prmkit.formats.spec import PolicyFormat, PRMFormat, StepFormat
from prmkit.io import read_json
from prmkit.plugins import Catalogue

__all__ = ["STEP_FORMATS", "get_step_format", "register_step_format"]


def _nested(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping in which a key `a.b`, as overrides on a command line leave it, is `b` in the mapping `a`."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        head, dot, rest = str(key).partition(".")
        inner = {rest: item} if dot else item
        if isinstance(inner, Mapping):
            known = found.get(head)
            inner = {**(known if isinstance(known, Mapping) else {}), **_nested(inner)}
        found[head] = inner
    return found


def _presets() -> dict[str, StepFormat]:
    qwen_math_system = "Please reason step by step, and put your final answer within \\boxed{}."
    qwen = PolicyFormat(template="{question}", chat=True, system=qwen_math_system, separator="\n\n")
    plain = PolicyFormat(template="{question}\n", separator="\n")
    formats = [
        StepFormat("plain", plain, PRMFormat()),
        # The label tokens of `plain` are the policy's own words; a head of its own leaves their embeddings alone.
        StepFormat("plain-head", plain, PRMFormat(read="before_tag", head="token_head")),
        StepFormat(
            "math-shepherd",
            plain,
            PRMFormat(
                after_question="",
                before_first=" ",
                before_step="Step {i}: ",
                tag=" ки",
                after_tag="\n",
                bos=True,
                positive=" +",
                negative=" -",
            ),
        ),
        StepFormat(
            "math-psa",
            qwen,
            PRMFormat(after_question="", before_first=" ", tag=" \n\n\n\n\n", positive=" +", negative=" -"),
        ),
        StepFormat(
            "rlhflow", plain, PRMFormat(after_question="", before_first=" ", tag="+", chat="turns", read="before_tag")
        ),
        StepFormat(
            "skywork",
            plain,
            PRMFormat(after_question="\n", after_step="\n", tag="", bos=True, read="step_end", head="scalar"),
        ),
        StepFormat(
            "qwen2.5-math-prm",
            qwen,
            PRMFormat(
                after_question="",
                tag="<extra_0>",
                chat="single",
                system=qwen_math_system,
                head="token_head",
            ),
        ),
    ]
    return {spec.name: spec for spec in formats}


STEP_FORMATS: Catalogue[StepFormat] = Catalogue("step format", _presets(), names=r"[A-Za-z][\w.-]*")


def register_step_format(step_format: StepFormat) -> StepFormat:
    """Register a step format under its own name: `step_format: NAME`, `--policy_format NAME`; returns it."""
    STEP_FORMATS.add(step_format.name, step_format, step_format)
    return step_format


def get_step_format(source: str | Mapping[str, Any] | StepFormat) -> StepFormat:
    """A step format from a preset's name, a JSON file or model folder, or a mapping of fields, as such or as JSON text.

    A mapping may name another format with `base` (a preset, file or folder) and override fields of its sides.
    """
    if isinstance(source, StepFormat):
        return source
    if isinstance(source, Mapping):
        value = _nested(source)
        base = value.pop("base", None)
        if base is None:
            return StepFormat.from_dict(value)
        merged = get_step_format(base).to_dict()
        for side in ("policy", "prm"):
            given = value.pop(side, {})
            if not isinstance(given, Mapping):
                raise ConfigError(f"step_format.{side}", given, "a mapping of fields")
            merged[side].update(given)
        return StepFormat.from_dict({**merged, **value})
    if source.lstrip().startswith("{"):
        try:
            return get_step_format(json.loads(source))
        except json.JSONDecodeError as error:
            raise ConfigError("step_format", source, f"JSON text ({error})") from None
    if source in STEP_FORMATS.known:
        return STEP_FORMATS[source]
    path = Path(source)
    if path.is_dir():
        return StepFormat.load(path)
    if path.is_file():
        return StepFormat.from_dict(read_json(path))
    if source in STEP_FORMATS:
        return STEP_FORMATS[source]
    raise ConfigError("step_format", source, f"a preset ({', '.join(STEP_FORMATS)}), a JSON file or a model folder")
