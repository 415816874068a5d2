r"""Chains of relations, `a < b \leq c`: where their signs are, and which direction they have."""

from __future__ import annotations

import re

__all__ = ["FLIPPED", "split_members", "split_relation", "split_top"]

_OPEN, _CLOSE = "([{", ")]}"
_SIGN = re.compile(r"\\(?:leq|geq|neq|in)(?![a-zA-Z])|!=|<=|>=|==?|<|>")
_SAME = {"<=": "\\leq", ">=": "\\geq", "!=": "\\neq", "==": "="}
FLIPPED = {">": "<", "\\geq": "\\leq"}


def _depths(text: str) -> list[int] | None:
    """Nesting at every character; None when brackets do not match."""
    depth, depths = 0, []
    for character in text:
        if character in _OPEN:
            depth += 1
        depths.append(depth)
        if character in _CLOSE:
            depth -= 1
            if depth < 0:
                return None
    return depths if depth == 0 else None


def split_top(text: str, sign: re.Pattern[str]) -> tuple[list[str], list[str]] | None:
    """Parts between the signs that stand in no bracket, and the signs; None when brackets do not match."""
    depths = _depths(text)
    if depths is None:
        return None
    parts, signs, start = [], [], 0
    for match in sign.finditer(text):
        if depths[match.start()] == 0:
            parts.append(text[start : match.start()].strip())
            signs.append(match[0].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return parts, signs


def split_relation(text: str) -> tuple[list[str], list[str]] | None:
    """Sides and signs of a relation; None for a text that is none."""
    found = split_top(text, _SIGN) if _SIGN.search(text) else None
    if found is None or not found[1] or not all(found[0]):
        return None
    return found[0], [_SAME.get(sign, sign) for sign in found[1]]


_SURE_COMMA = re.compile(r", ")
_ANY_COMMA = re.compile(r",\s?")
_SEMICOLON = re.compile(r";\s?")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")


def split_members(text: str, bracketed: bool) -> list[str] | None:
    """Members of a list. A comma with a space after it separates; one without does so too, unless it is a thousands
    separator: in brackets, where a comma with a space is also there or in no bracket at all, `1,234` is one number."""
    for sign in (_SEMICOLON, _SURE_COMMA):
        if sign.search(text):
            found = split_top(text, sign)
            if found is not None and found[1]:
                return _flat(found[0], sign) if all(found[0]) else None
    if (
        not bracketed
        and _THOUSANDS.search(text)
        and split_top(_THOUSANDS.sub("0", text), _ANY_COMMA) == ([_THOUSANDS.sub("0", text)], [])
    ):
        return [text]
    found = split_top(text, _ANY_COMMA)
    return found[0] if found is not None and all(found[0]) else None


def _flat(parts: list[str], sign: re.Pattern[str]) -> list[str]:
    """Parts between commas with a space, split at other commas that are no thousands separators: `0, 1,-1`."""
    if sign is not _SURE_COMMA:
        return parts
    return [member for part in parts for member in split_members(part, bracketed=False) or [part]]
