r"""Answers as text: one spelling for many, numbers as exact fractions, and the outer structure of lists and tuples.

What is decided here, without any algebra:

- Dollar signs, percent signs, degrees, trailing units in `\text{}` and a trailing full stop say nothing about the value
  and are dropped: 50\% is 50, and so is never .5.
- Whole numbers, decimals, fractions and mixed numbers are exact: 1 1/2 = 3/2 = 1.5, but .333 is not 1/3. A comma before
  groups of three digits and no space is a thousands separator: 1,234 is one number.
- `a, b, c` without brackets, `\{a, b, c\}` and `a \pm b` are sets: order does not matter. With round or square brackets
  order matters, and so do the brackets: (1,2) is not (2,1), (0,1) is not [0,1].
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

__all__ = ["Group", "group_of", "normalise", "number"]

_MAX_NUMBER_CHARS = 300

_WRAPPERS = (
    re.compile(r"\A\$\$?(.*?)\$?\$\Z", re.S),
    re.compile(r"\A\\\((.*)\\\)\Z", re.S),
    re.compile(r"\A\\\[(.*)\\\]\Z", re.S),
    re.compile(r"\A\(([A-Z])\)\Z"),
    re.compile(r"\A\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|fbox)\s*\{([^{}]*)\}\Z", re.S),
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[−–]", "-"),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"∪", r"\\cup "),
        (r",\\!\s*", ","),
        (r"(?<!\\)\\[!,;: ]|\\q?quad(?![a-zA-Z])|~|\u00a0", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|°|\\degrees?(?![a-zA-Z])", ""),
        (r"\\?[$%]", ""),
        (r"\s*\\text\s*\{\s*(?:and|or)\s*\}\s*|(?<=[^a-zA-Z\\])\s*\b(?:and|or)\b\s*", ","),
        (r"(?<=[\d})])\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^(?:\d|\{\d\}))?\s*\Z", ""),
        (r",(?:\s*,)+", ","),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    )
)
_SPACE = re.compile(r"\s+")
_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_COMMAND_SPACE = re.compile(r"(\\[a-zA-Z]+) (?=[a-zA-Z])")

_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"\d+\.?\d*|\.\d+")
_SLASH = re.compile(r"(?:(\d+) )?(\d+)/(\d+)")
_FRAC = re.compile(r"(\d*)\\frac\{(-?\d+)\}\{(-?\d+)\}")

_ANY_OPEN, _ANY_CLOSE = "([{", ")]}"


def normalise(text: str) -> str:
    """One spelling of an answer. Texts with the same spelling are equal; equal answers may have several spellings."""
    text = text.strip()
    unwrapped = True
    while unwrapped:
        unwrapped = False
        for wrapper in _WRAPPERS:
            match = wrapper.match(text)
            if match is not None and match[1].strip() and "$" not in match[1]:
                text, unwrapped = match[1].strip(), True
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".").strip()
    text = _COMMAND_SPACE.sub("\\1\0", _SPACE.sub(" ", text))
    return _LOOSE_SPACE.sub("", text).replace("\0", " ")


def number(text: str) -> Fraction | None:
    """The exact value of a normalised text that is a plain number; None for anything else."""
    if not text or len(text) > _MAX_NUMBER_CHARS:
        return None
    negative = text[0] == "-"
    body = text[1:] if text[0] in "+-" else text
    value = _unsigned(body)
    return -value if negative and value is not None else value


def _unsigned(body: str) -> Fraction | None:
    if _DECIMAL.fullmatch(body):
        return Fraction(body.rstrip(".") if len(body) > 1 else body)
    if _THOUSANDS.fullmatch(body):
        return Fraction(body.replace(",", ""))
    match = _SLASH.fullmatch(body) or _FRAC.fullmatch(body)
    if match is None or int(match[3]) == 0:
        return None
    fraction = Fraction(int(match[2]), int(match[3]))
    if match[1] and fraction < 0:
        return None
    return int(match[1] or 0) + fraction


class Group(NamedTuple):
    """The outer structure of an answer.

    Attributes:
        kind: "set" (order does not matter), or the two brackets of a tuple, vector or interval, as in "(]".
        items: normalised texts of its members; at least two, unless it is a set in braces.
    """

    kind: str
    items: tuple[str, ...]


def group_of(text: str) -> Group | None:
    """The outer structure of a normalised text; None for a single value."""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = _members(text[2:-2])
        return Group("set", inner) if inner is not None else None
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        inner = _members(text[1:-1])
        if inner is not None and len(inner) > 1:
            return Group(text[0] + text[-1], inner)
        if inner is not None:
            return None
    members = _members(text)
    if members is not None and len(members) > 1:
        return Group("set", members)
    if text.count("\\pm") == 1:
        return Group("set", tuple(text.replace("\\pm", sign).replace(f"{sign} ", sign).lstrip("+") for sign in "+-"))
    return None


def _members(text: str) -> tuple[str, ...] | None:
    """Parts between commas that stand in no bracket; None when brackets do not match within the text."""
    depth, start = 0, 0
    parts = []
    for index, character in enumerate(text):
        if character in _ANY_OPEN:
            depth += 1
        elif character in _ANY_CLOSE:
            depth -= 1
            if depth < 0:
                return None
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return tuple(parts) if depth == 0 and all(parts) else None
