"""Words of a mathematical expression: numbers, commands, letters and signs of a normalised text."""

from __future__ import annotations

import re

__all__ = ["FUNCTIONS", "GREEK", "ParseError", "tokens"]

FUNCTIONS = frozenset((
    *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "ln", "log"),
    *("exp", "sqrt", "abs", "floor", "ceil", "det", "gcd", "lcm", "max", "min"),
))  # fmt: skip
GREEK = frozenset((
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *("nu", "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda"),
    *("Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "infty", "hbar"),
))  # fmt: skip
_PLAIN_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "Abs": "abs"}
_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<rep>\d*\.\d*\\overline\{\d+\})"
    r"|(?P<num>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE](?:[+-]?\d+))?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<cmd>\\[a-zA-Z]+)"
    r"|(?P<word>[a-zA-Z]+)"
    r"|(?P<op>[-+*/^_!()\[\]{}|,'])"
    r")"
)
_DIGITS_OF_LETTERS = re.compile(r"[abcdkmnpqrstuvwxyz]+|[A-Z]{1,2}")
_OPERATOR = re.compile(r"[-+*/^=<>\d]|\\(?:frac|cdot|sqrt)")
_ENGLISH = frozenset(
    ("in", "is", "at", "on", "of", "to", "by", "or", "if", "as", "an", "it", "so", "be", "we", "he", "no")
)


class ParseError(Exception):
    """The text is no expression of this grammar."""


def tokens(text: str) -> list[tuple[str, str]]:
    """Pairs (kind, text). Raises ParseError for a text with anything else in it."""
    found: list[tuple[str, str]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ParseError
        kind, value = match.lastgroup, match[match.lastgroup]
        if kind == "word":
            found += _letters(value, text)
        else:
            if kind == "num" and found and found[-1][0] == "num" and found[-2:-1] != [("op", "_")]:
                _mixed_or_fault(text, match.end())
            found.append((kind, value))
        position = match.end()
    return found


def _mixed_or_fault(text: str, end: int) -> None:
    """Two numbers in a row are a mixed number, `1 1/2`, or nothing."""
    if not re.match(r"/\d+(?![\d.])", text[end:]):
        raise ParseError


def _letters(word: str, text: str) -> list[tuple[str, str]]:
    """A run of letters: a function, a constant, or a product of single letters where that is what it must be."""
    word = _PLAIN_NAMES.get(word, word)
    if word in FUNCTIONS or word in GREEK or word in ("pi", "oo"):
        return [("cmd", "\\infty" if word == "oo" else f"\\{word}")]
    if len(word) == 1:
        return [("sym", word)]
    if word in _ENGLISH and f" {word} " in text:
        raise ParseError
    for name in ("sqrt", "sin", "cos", "tan", "log", "ln", "pi"):
        if word.endswith(name) and len(word) - len(name) <= 2:
            return [*_letters(word.removesuffix(name), text), ("cmd", f"\\{name}")]
        if word.startswith(name) and len(word) - len(name) <= 1:
            return [("cmd", f"\\{name}"), *_letters(word.removeprefix(name), text)]
    plain = len(word) == 2 or (
        len(word) <= 5
        and _DIGITS_OF_LETTERS.fullmatch(word) is not None
        and (_OPERATOR.search(text) is not None or "abcd".startswith(word) or word == "xyz")
    )
    if not plain or len(set(word)) < len(word):
        raise ParseError
    return [("sym", letter) for letter in word]
