"""Which format step labels are in, and who reads it. To add a format: its parser, and one entry in each table here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from prmkit.annotation.formats import benchmarks, conversations, math_aps, math_shepherd, prm800k, stepwise
from prmkit.annotation.records import StepLabels
from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["PARSERS", "SINGLE_RECORD_FORMATS", "RecordFormat", "detect_format"]

RecordFormat = Literal[
    "auto", "prmkit", "prm800k", "math-shepherd", "math-aps", "trl", "openr", "openrlhf", "rlhflow",
    "chain-of-thoughts", "extra-0", "processbench", "prmbench",
]  # fmt: skip

Parser = Callable[[Mapping[str, Any], str], list[StepLabels]]


def _parse_own(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    return [StepLabels.from_json(record, where)]


PARSERS: dict[str, Parser] = {
    "prmkit": _parse_own,
    "prm800k": prm800k.parse,
    "math-shepherd": math_shepherd.parse,
    "math-aps": math_aps.parse,
    "trl": stepwise.parse_trl,
    "openr": stepwise.parse_openr,
    "openrlhf": math_shepherd.parse_openrlhf,
    "rlhflow": conversations.parse,
    "chain-of-thoughts": stepwise.parse_chain_of_thoughts,
    "extra-0": stepwise.parse_extra_0,
    "processbench": benchmarks.parse_processbench,
    "prmbench": benchmarks.parse_prmbench,
}
"""The records in one JSON object, by format."""

SINGLE_RECORD_FORMATS = tuple(name for name in PARSERS if name not in ("prm800k", "math-aps"))
"""Formats in which a JSON object holds exactly one record."""

_SIGNS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("prmkit", lambda record: {"steps", "values"} <= record.keys()),
    ("prm800k", lambda record: isinstance(record.get("label"), Mapping) and "steps" in record["label"]),
    ("math-shepherd", lambda record: isinstance(record.get("input"), str) and isinstance(record.get("label"), str)),
    ("openrlhf", lambda record: "input" in record and _has_labels(record, "value", "label", "labels")),
    ("math-aps", lambda record: "reasoning_steps" in record),
    ("trl", lambda record: {"completions", "labels"} <= record.keys()),
    ("openr", lambda record: "process" in record and _has_labels(record, "label", "labels")),
    ("rlhflow", lambda record: isinstance(record.get("conversations", record.get("messages")), list)),
    ("chain-of-thoughts", lambda record: {"chain_of_thoughts", "labels"} <= record.keys()),
    ("extra-0", lambda record: {"query", "response", "labels"} <= record.keys()),
    ("processbench", lambda record: {"problem", "steps", "label"} <= record.keys()),
    ("prmbench", lambda record: {"modified_process", "error_steps"} <= record.keys()),
)
"""What an object of each format has; the first that fits counts."""

_NO_LABELS = {
    "samples": "samples of whole solutions, without labels of their steps. Label steps with `prm annotate`",
    "traces": "rows of `prm search`, without labels of their steps. Label them with `prm annotate --method traces`",
}
"""Fields of files that are often mistaken for step labels."""


def _has_labels(record: Mapping[str, Any], *names: str) -> bool:
    return any(name in record for name in names)


def detect_format(record: Mapping[str, Any], where: str = "record") -> str:
    """Name of the format that a file's first JSON object is in. DataError when it is none of them."""
    for name, fits in _SIGNS:
        if fits(record):
            return name
    for field, what in _NO_LABELS.items():
        if field in record:
            raise DataError(f"{where}: holds {what}.")
    raise DataError(
        f"{where}: fields {shown(sorted(record), 200)} are no known format of step labels; known: "
        f"{', '.join(get_args(RecordFormat)[1:])}"
    )
