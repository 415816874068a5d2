r"""What an answer is: `read` decides it once; `prmkit.grading.equality` then compares kind with kind.

In the order in which they are tried: a plain number; a choice letter with a value; a time of day; digits in a base; a
matrix; members of a list, set, tuple or interval; a union; a relation; a quantity with a unit; an expression; words.
"""

from __future__ import annotations

import re
from functools import lru_cache

from prmkit.grading.equations import read_relation
from prmkit.grading.forms import read_form
from prmkit.grading.kinds import (
    Assigned,
    Based,
    Clock,
    Group,
    Kind,
    Labelled,
    Matrix,
    Quantity,
    Relation,
    Scalar,
    Words,
    read_scalar,
)
from prmkit.grading.members import read_group, read_plus_minus, read_union
from prmkit.grading.normal import normalise, number
from prmkit.grading.phrases import NEGATED, is_short_word, read_quantity, read_words

__all__ = ["describe", "read"]

_MAX_DEPTH = 6
_LABEL = re.compile(r"\A(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\(([A-J])\)\s*\}?[\s~\\]*[\s}~]\s*(\S.*)\Z", re.S)
_LABEL_DOT = re.compile(r"\A([A-J])[.)]\s+(\S.*)\Z", re.S)
_GOES_ON = re.compile(
    r"[-+*/^_=,;.:!|<>&)\]}?]|\\(?:pm|mp|cup|cap|in|neq|leq|geq)(?![a-zA-Z])|(?:\\text\{\s*)?(?:or|and)\b|\\boxed"
)


def _is_choice_value(rest: str, item: Kind) -> bool:
    """True if what follows a choice letter is the value of that choice, and nothing that changes the answer."""
    if _GOES_ON.match(rest) or isinstance(item, Labelled | Relation):
        return False
    if isinstance(item, Words):
        return (
            re.search(r"[A-Za-z]{3}", item.text) is not None and not NEGATED.search(item.text) and "\\" not in item.text
        )
    if isinstance(item, Group):
        return item.kind not in ("list", "union")
    return not (isinstance(item, Scalar) and item.tree[0] == "sym" and item.text.isupper())


@lru_cache(maxsize=16384)
def read(text: str) -> Kind:
    """The kind of a whole answer, as it was written."""
    label = _LABEL.match(text.strip()) or _LABEL_DOT.match(text.strip())
    if label is not None:
        rest = re.sub(r"\A(?:\\[ ,;:!]|~|\\quad)+", "", label[2])
        item = _kind(normalise(rest), 0)
        if _is_choice_value(rest, item):
            return Labelled(label[1], item)
    return _kind(normalise(text), 0)


_NAMES: dict[type, str] = {
    Scalar: "expression", Quantity: "quantity", Based: "digits in a base", Clock: "time of day", Matrix: "matrix",
    Relation: "relation", Assigned: "value of a name", Labelled: "choice with its value", Words: "text",
}  # fmt: skip


def describe(text: str) -> str:
    """The kind of an answer, for people."""
    kind = read(text)
    if isinstance(kind, Scalar) and kind.value is not None:
        return "number"
    if isinstance(kind, Group):
        return {"set": "set", "list": "list", "union": "union", ":": "ratio"}.get(kind.kind, f"tuple {kind.kind}")
    if isinstance(kind, Words) and kind.number is not None:
        return "phrase with a number"
    return _NAMES[type(kind)]


_READERS = (read_form, read_group, read_plus_minus, read_union, read_relation, read_quantity)


def _kind(text: str, depth: int) -> Kind:
    value = number(text)
    if value is not None:
        return Scalar(text, ("num", value), value, "." in text)
    if depth > _MAX_DEPTH or not text:
        return Words(text)

    def inner(part: str) -> Kind:
        return _kind(part, depth + 1)

    for reader in _READERS:
        found = reader(text, inner)
        if found is not None:
            return found
    if not is_short_word(text):
        expression = read_scalar(text)
        if expression is not None:
            return expression
    return read_words(text, inner)
