"""math-verify, for texts that `prmkit.grading.scalar` does not parse: sums, integrals, limits, residues.

It runs with the normalisations off that drop letters as units, on the texts as `normalise` left them, in the direction
(gold, answer), and a verdict of equality stands only when the values, computed exactly, agree too.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Any

__all__ = ["Engine"]


class Engine:
    """Parses and compares by math-verify. Its own limits use signals and are off: those of the worker hold."""

    def __init__(self) -> None:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify

        logging.disable(logging.CRITICAL)
        config = LatexExtractionConfig(
            normalization_config=NormalizationConfig(
                basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none"
            )
        )

        @lru_cache(maxsize=1024)
        def parsed(text: str) -> Any:
            return parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)

        self._parsed, self._verify = parsed, verify
        self.compare("1+x", "x+1")

    def can_read(self, text: str) -> bool:
        """True if math-verify finds an expression in the text."""
        return any(not isinstance(value, str) for value in self._parsed(text))

    def compare(self, gold: str, answer: str) -> bool:
        """True if both texts are one expression each and the two are equal."""
        from sympy import Expr  # type: ignore[import-untyped]

        first, second = (
            [value for value in self._parsed(text) if not isinstance(value, str)] for text in (gold, answer)
        )
        if len(first) != 1 or len(second) != 1:
            return False
        if not all(isinstance(value, Expr) for value in (first[0], second[0])):
            return False
        if first[0].free_symbols != second[0].free_symbols:
            return False
        return bool(self._verify(first, second, strict=True, timeout_seconds=None)) and _near(first[0], second[0])


def _near(first: Any, second: Any) -> bool:
    """Do the values agree to a relative 1e-12? math-verify rounds to six decimals, which makes small numbers equal."""
    if first.free_symbols:
        return True
    try:
        a, b = complex(first.evalf(30)), complex(second.evalf(30))
    except (TypeError, ValueError, OverflowError):
        return bool(first == second)
    return math.isfinite(abs(a)) and abs(a - b) <= 1e-12 * max(abs(a), abs(b))
