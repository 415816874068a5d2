r"""Answers with a form of their own: a choice letter, a time of day, digits in a base, a matrix, the empty set."""

from __future__ import annotations

import re

from prmkit.grading.kinds import Based, Clock, Group, Inner, Kind, Matrix, Scalar, read_scalar
from prmkit.grading.normal import normalise
from prmkit.grading.scalar import parse

__all__ = ["read_form"]

_COUNTS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_CHOICE = re.compile(r"\A(?:choice|option|answer)\s*\(?([A-J])\)?\Z", re.I)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(?:\\text\{)?\s*([apAP])\.?\s*[mM]\.?\}?")
_BARE_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_BASED = re.compile(
    r"(\d[\dA-Z]*|\d[\da-f]*|[A-Z]\d[\dA-Z]*|[a-f]\d[\da-f]*|[A-F]{2,})_(?:\{?(\d{1,2})\}?|\{?\\text\{(\w+)\}\}?)"
)
_BASED_WORDS = re.compile(r"(\d[\dA-Z]*)\s*\(?\s*(?:in\s+)?base[\s-]*(\d{1,2}|[a-z]+)\)?")
_MATRIX = re.compile(
    r"(?P<factor>[^&]*?)(?:\\cdot)?\s*\\begin\{(?P<name>[pb]?matrix|array)\}(?:\{[lcr|]*\})?(?P<rows>.*?)"
    r"\\end\{(?P=name)\}\s*(?:[)\]])?",
    re.S,
)
_INFINITE = {"infinity": "\\infty", "positive infinity": "\\infty", "+\\infty": "\\infty", "-infinity": "-\\infty"}
_INFINITE |= {"negative infinity": "-\\infty"}
_EMPTY = {"\\emptyset", "\\{\\}", "\\text{empty set}", "empty set"}
_REALS = {"\\mathbb{R}", "\\text{all real numbers}", "all real numbers", "\\text{all reals}", "all reals", "\\Bbb{R}"}


def read_form(text: str, _inner: Inner) -> Kind | None:
    """An answer with a form of its own; None for another one."""
    if text in _EMPTY:
        return Group("set", ())
    if text.rstrip() in _REALS:
        infinity = ("sym", "\\infty")
        ends = Scalar("-\\infty", ("neg", infinity), None, False), Scalar("\\infty", infinity, None, False)
        return Group("()", ends)
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    if plain.lower() in _INFINITE:
        return read_scalar(_INFINITE[plain.lower()])
    if plain.lower() in _COUNTS:
        return read_scalar(str(_COUNTS.index(plain.lower())))
    choice = _CHOICE.match(plain)
    if choice is not None:
        return read_scalar(choice[1].upper())
    return _clock(text) or _based(text) or _matrix(text)


def _clock(text: str) -> Clock | None:
    match = _CLOCK.fullmatch(text) or _BARE_CLOCK.fullmatch(text)
    if match is None:
        return None
    hours, minutes = int(match[1]), int(match[2] or 0)
    half = match[3].lower() if match.re is _CLOCK else ""
    if minutes > 59 or hours > 24 or (half and not 1 <= hours <= 12) or (not half and len(match[2] or "") != 2):
        return None
    return Clock((hours % 12 if half else hours) * 60 + minutes, half)


def _based(text: str) -> Kind | None:
    match = _BASED.fullmatch(re.sub(r"\A\\text\{(\w+)\}_", r"\1_", text)) or _BASED_WORDS.fullmatch(
        re.sub(r"\\text\{([^{}]*)\}", r" \1", text).strip()
    )
    if match is None:
        return None
    name = next(part for part in match.groups()[1:] if part)
    if not name.isdecimal() and name not in _COUNTS:
        return None
    base = int(name) if name.isdecimal() else _COUNTS.index(name)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match[1]):
        return None
    digits = match[1].upper().lstrip("0") or "0"
    return read_scalar(digits) if base == 10 else Based(digits, base)


def _matrix(text: str) -> Matrix | None:
    match = _MATRIX.fullmatch(text.removeprefix("[") if "{array}" in text else text)
    if match is None:
        return None
    factor = match["factor"].strip().removesuffix("(").strip()
    if factor and parse(f"{factor}1" if factor in ("-", "+") else factor) is None:
        return None
    rows = []
    for row in re.split(r"\\\\|\\cr", match["rows"]):
        if not row.strip():
            continue
        cells = [
            f"({factor}1)*({cell})" if factor == "-" else f"({factor})*({cell})" if factor else cell
            for cell in row.split("&")
        ]
        scalars = [read_scalar(normalise(cell)) for cell in cells]
        if any(scalar is None for scalar in scalars):
            return None
        rows.append(tuple(scalar for scalar in scalars if scalar is not None))
    return Matrix(tuple(rows)) if rows and len({len(row) for row in rows}) == 1 else None
