"""Answers: how they are found in a text, and when two are the same."""

from __future__ import annotations

from prmkit.grading.exact import ExactGrader
from prmkit.grading.extract import DEFAULT_EXTRACTORS, EXTRACTORS, Extractor, extract_answer, get_extractors
from prmkit.grading.math import MathGrader

__all__ = [
    "DEFAULT_EXTRACTORS",
    "EXTRACTORS",
    "ExactGrader",
    "Extractor",
    "MathGrader",
    "extract_answer",
    "get_extractors",
]
