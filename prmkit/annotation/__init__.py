"""Step labels: the record, the targets made from it, the formats it comes in, and the methods that estimate it."""

from prmkit.annotation.formats import RecordFormat, detect_format, load_records
from prmkit.annotation.records import RECORD_SCHEMA, StepLabels, question_id
from prmkit.annotation.targets import NO_ERROR, UNKNOWN_ERROR, TargetKind, first_error, step_pairs, step_targets

__all__ = [
    "NO_ERROR",
    "RECORD_SCHEMA",
    "UNKNOWN_ERROR",
    "RecordFormat",
    "StepLabels",
    "TargetKind",
    "detect_format",
    "first_error",
    "load_records",
    "question_id",
    "step_pairs",
    "step_targets",
]
