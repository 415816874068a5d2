r"""Kinds of answers. `read` decides once what an answer is; `prmkit.grading.equality` compares kind with kind.

In the order in which they are tried: a plain number; a choice letter with a value; a time of day; digits in a base; a
matrix; members of a list, set, tuple or interval; a union; a relation; a quantity with a unit; an expression; words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

from prmkit.grading.exact_values import rational
from prmkit.grading.normal import normalise, number
from prmkit.grading.relations import FLIPPED, split_members, split_relation, split_top
from prmkit.grading.scalar import FUNCTIONS, Tree, parse, symbols
from prmkit.grading.units import SYMBOLS, unit_words

__all__ = [
    "Assigned", "Based", "Clock", "Group", "Kind", "Labelled", "Matrix", "Quantity", "Relation", "Scalar", "Words",
    "describe", "read",
]  # fmt: skip

_MAX_DEPTH = 6
_MAX_QUANTITY = 120


@dataclass(frozen=True, slots=True)
class Scalar:
    """One expression: `tree` as parsed, `value` when it is rational, `decimal` when a decimal point is in it."""

    text: str
    tree: Tree
    value: Fraction | None
    decimal: bool


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount with a unit, as `prmkit.grading.units.unit_words` spells it."""

    amount: Scalar
    unit: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base other than ten."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day; `half` is "a", "p" or "" where it is not said."""

    minutes: int
    half: str


@dataclass(frozen=True, slots=True)
class Group:
    """Members in brackets or between commas.

    Attributes:
        kind: "set" in braces, "list" without brackets (order does not matter in either), "union" of intervals and sets,
            or the two brackets of a tuple or interval, as in "(]".
        items: the members.
    """

    kind: str
    items: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of expressions."""

    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of relations between expressions, as text."""

    text: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """A value, values or an interval for one name: `x = 5`, `f(x) = 2x`, `1 < x < 2`, `x = 1, 2`.

    Attributes:
        name: of the variable, function or segment.
        item: the value.
        text: the relation as it was written, "" for several.
    """

    name: str
    item: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A choice letter together with the value of that choice."""

    letter: str
    item: Kind


@dataclass(frozen=True, slots=True)
class Words:
    """Text. `number` is the amount that a phrase states, when it states one."""

    text: str
    number: Scalar | Quantity | None = None


Kind = Scalar | Quantity | Based | Clock | Group | Matrix | Relation | Assigned | Labelled | Words

_NUMBERED = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_LABEL = re.compile(r"\A(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\(([A-J])\)\s*\}?[\s~\\]*[\s}~]\s*(\S.*)\Z", re.S)
_LABEL_DOT = re.compile(r"\A([A-J])[.)]\s+(\S.*)\Z", re.S)
_CHOICE = re.compile(r"\A(?:choice|option|answer)\s*\(?([A-J])\)?\Z", re.I)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(?:\\text\{)?\s*([apAP])\.?\s*[mM]\.?\}?")
_BARE_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_BASED = re.compile(r"(\d[\dA-Z]*|[A-Z]\d[\dA-Z]*|[A-F]{2,})_(?:\{?(\d{1,2})\}?|\{?\\text\{(\w+)\}\}?)")
_BASED_WORDS = re.compile(r"(\d[\dA-Z]*)\s*\(?\s*(?:in\s+)?base[\s-]*(\d{1,2}|[a-z]+)\)?")
_MATRIX = re.compile(
    r"(?P<factor>[^&]*?)(?:\\cdot)?\s*\\begin\{(?P<name>[pb]?matrix|array)\}(?:\{[lcr|]*\})?(?P<rows>.*?)"
    r"\\end\{(?P=name)\}\s*(?:[)\]])?",
    re.S,
)
_PM = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])\s?")
_CUP = re.compile(r"\s*\\cup(?![a-zA-Z])\s*")
_RATIO = re.compile(r":")
_EMPTY = {"\\emptyset", "\\{\\}", "\\text{empty set}", "empty set"}
_REALS = {"\\mathbb{R}", "\\text{all real numbers}", "all real numbers", "\\text{all reals}", "all reals", "\\Bbb{R}"}


_GOES_ON = re.compile(r"[-+*/^_=,;.:!|<>&)\]}?]|\\(?:pm|mp|cup|cap|in|neq|leq|geq)(?![a-zA-Z])|(?:\\text\{\s*)?(?:or|and)\b|\\boxed")


def _is_choice_value(rest: str, item: Kind) -> bool:
    """True if what follows a choice letter is the value of that choice, and nothing that changes the answer."""
    if _GOES_ON.match(rest) or isinstance(item, Labelled | Relation):
        return False
    if isinstance(item, Words):
        return re.search(r"[A-Za-z]{3}", item.text) is not None and not _NEGATED.search(item.text) and "\\" not in item.text
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


def _scalar(text: str) -> Scalar | None:
    value = number(text)
    if value is not None:
        return Scalar(text, ("num", value), value, "." in text)
    tree = parse(text)
    return None if tree is None else Scalar(text, tree, rational(tree), bool(re.search(r"\d\.|\.\d", text)))


def _kind(text: str, depth: int) -> Kind:
    value = number(text)
    if value is not None:
        return Scalar(text, ("num", value), value, "." in text)
    if depth > _MAX_DEPTH or not text:
        return Words(text)
    for reader in (_special, _group, _plus_minus, _union, _relation, _quantity):
        found = reader(text, depth)
        if found is not None:
            return found
    if _yes_or_no(text) is None:
        scalar = _scalar(text)
        if scalar is not None:
            return scalar
    return _words(text)


def _yes_or_no(text: str) -> str | None:
    return text.lower() if text.lower() in ("yes", "no", "up", "it", "he", "me", "we", "us") else None


# -- kinds with a form of their own -------------------------------------------------------------------------------


def _special(text: str, _depth: int) -> Kind | None:
    if text in _EMPTY:
        return Group("set", ())
    if text.rstrip() in _REALS:
        infinity = ("sym", "\\infty")
        ends = Scalar("-\\infty", ("neg", infinity), None, False), Scalar("\\infty", infinity, None, False)
        return Group("()", ends)
    choice = _CHOICE.match(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    if choice is not None:
        return _scalar(choice[1].upper())
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
    match = _BASED.fullmatch(re.sub(r"\A\\text\{(\w+)\}_", r"\1_", text)) or _BASED_WORDS.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r" \1", text).strip())
    if match is None:
        return None
    name = next(part for part in match.groups()[1:] if part)
    if not name.isdecimal() and name not in _NUMBERED:
        return None
    base = int(name) if name.isdecimal() else _NUMBERED.index(name) + 2
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match[1]):
        return None
    digits = match[1].lstrip("0") or "0"
    return _scalar(digits) if base == 10 else Based(digits, base)


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
        cells = [f"({factor}1)*({cell})" if factor == "-" else f"({factor})*({cell})" if factor else cell for cell in row.split("&")]
        scalars = [_scalar(normalise(cell)) for cell in cells]
        if any(scalar is None for scalar in scalars):
            return None
        rows.append(tuple(scalar for scalar in scalars if scalar is not None))
    return Matrix(tuple(rows)) if rows and len({len(row) for row in rows}) == 1 else None


# -- members --------------------------------------------------------------------------------------------------------


def _group(text: str, depth: int) -> Kind | None:
    bracketed = _bracketed(text, depth)
    if bracketed is not None:
        return bracketed
    if split_relation(text) is None or "," in text or ";" in text:
        members = split_members(text, bracketed=False)
        if members is not None and len(members) > 1:
            return _listed(members, depth)
    ratio = split_top(text, _RATIO)
    if ratio is not None and ratio[1] and all(ratio[0]):
        items = [_scalar(part) for part in ratio[0]]
        if all(item is not None for item in items):
            return Group(":", tuple(item for item in items if item is not None))
    return None


def _bracketed(text: str, depth: int) -> Kind | None:
    for opening, closing, kind in (("\\{", "\\}", "set"), ("{", "}", "set"), ("\\langle ", "\\rangle", "()")):
        if text.startswith(opening.strip()) and text.endswith(closing):
            inner = text[len(opening.strip()) : -len(closing)].strip()
            members = split_members(inner, bracketed=True)
            if members is not None and (len(members) > 1 or (kind == "set" and opening == "\\{")):
                return Group(kind, tuple(_kind(member, depth + 1) for member in members))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        members = split_members(text[1:-1], bracketed=True)
        if members is not None and len(members) > 1:
            return Group(text[0] + text[-1], tuple(_kind(member, depth + 1) for member in members))
    return None


def _listed(members: list[str], depth: int) -> Kind | None:
    items: list[Kind] = []
    for member in members:
        item = _kind(member, depth + 1)
        items += item.items if isinstance(item, Group) and item.kind == "list" else (item,)
    if any(isinstance(item, Words) and item.text.count(" ") > 2 for item in items):
        return None
    return _gathered(items)


def _gathered(items: list[Kind]) -> Kind:
    """A list; one of values for the same name, `x = 1, x = 2` or `x = 1, 2`, is that name's list of values."""
    first = items[0]
    if isinstance(first, Assigned) and all(
        (isinstance(item, Assigned) and item.name == first.name) or isinstance(item, Scalar) for item in items[1:]
    ):
        values = tuple(item.item if isinstance(item, Assigned) else item for item in items)
        if all(isinstance(value, Scalar) for value in values):
            return Assigned(first.name, Group("list", values), "")
    return Group("list", tuple(items))


def _plus_minus(text: str, depth: int) -> Kind | None:
    signs = _PM.findall(text)
    if not signs or len(signs) > 3:
        return None
    if any("mp" in sign for sign in signs):
        choices = [tuple(first if "pm" in sign else second for sign in signs) for first, second in ("+-", "-+")]
    else:
        choices = list(product("+-", repeat=len(signs)))
    members = []
    for choice in choices:
        remaining = iter(choice)
        member = _PM.sub(lambda _: next(remaining), text).lstrip("+")  # noqa: B023 - used at once
        members.append(_kind(re.sub(r"(?<==)\+", "", member), depth + 1))
    return _gathered(members)


def _union(text: str, depth: int) -> Kind | None:
    found = split_top(text, _CUP)
    if found is None or not found[1] or not all(found[0]):
        return None
    return Group("union", tuple(_kind(part, depth + 1) for part in found[0]))


# -- relations --------------------------------------------------------------------------------------------------------

_NAME_OF_SIDE = re.compile(r"[A-Z]{2,4}|\\angle ?[A-Z]{1,3}|\\text\{[^{}]+\}|[A-Za-z](?:_\{?\w+\}?)?\([a-z](?:,[a-z])*\)|[A-Z]?[a-z]{3,}(?: [a-z]+)*")


def _relation(text: str, depth: int) -> Kind | None:
    before = split_top(text, re.compile(r"\\approx(?![a-zA-Z])"))
    if before is not None and before[1]:
        return _kind(before[0][0], depth + 1) if before[0][0] else None
    found = split_relation(text)
    if found is None:
        return None
    sides, signs = found
    if all(sign == "=" for sign in signs):
        return _equation(text, sides, depth)
    if signs == ["\\in"]:
        name = _name(sides[0])
        return Assigned(name, _kind(sides[1], depth + 1), "") if name else Words(text)
    if any(_scalar(side) is None for side in sides) or "\\in" in signs:
        return None
    return _interval(text, sides, signs) or Relation(text)


def _name(side: str) -> str | None:
    scalar = _scalar(side)
    if scalar is not None and scalar.tree[0] == "sym" and scalar.tree[1] not in ("\\pi", "e", "i"):
        return str(scalar.tree[1])
    return side if _NAME_OF_SIDE.fullmatch(side) and side.lower() not in FUNCTIONS else None


def _equation(text: str, sides: list[str], depth: int) -> Kind | None:
    name = _name(sides[0])
    values = [_kind(side, depth + 1) for side in (sides[1:] if name else sides)]
    constant = {value.value for value in values if isinstance(value, Scalar)}
    amounts = [value.amount if isinstance(value, Quantity) else value for value in values]
    constant = {amount.value if isinstance(amount, Scalar) else None for amount in amounts}
    one_value = len(constant) == 1 and None not in constant
    if name is None:
        other = _name(sides[-1])
        if len(sides) == 2 and other and isinstance(values[0], Scalar) and not symbols(values[0].tree) - {"\\pi", "e", "i"}:
            return Assigned(other, values[0], text)
        if one_value and sides[0] != sides[-1]:
            return values[-1]
    elif len(values) == 1 or one_value:
        value = values[-1]
        if not (isinstance(value, Scalar) and name in symbols(value.tree)):
            return Assigned(name, value, text)
    return Relation(text) if all(_scalar(side) is not None for side in sides) else None


def _interval(text: str, sides: list[str], signs: list[str]) -> Assigned | None:
    """The interval of one name between constants."""
    if signs[0] in FLIPPED:
        sides, signs = sides[::-1], [FLIPPED.get(sign, "") for sign in signs[::-1]]
    if any(sign not in ("<", "\\leq") for sign in signs) or len(sides) > 3:
        return None
    index = next((i for i, side in enumerate(sides) if _name(side)), None)
    if index is None or (len(sides) == 3 and index != 1):
        return None
    infinity = Scalar("\\infty", ("sym", "\\infty"), None, False)
    low = _scalar(sides[index - 1]) if index else Scalar("-\\infty", ("neg", infinity.tree), None, False)
    high = _scalar(sides[index + 1]) if index + 1 < len(sides) else infinity
    if low is None or high is None or any(symbols(end.tree) - {"\\pi", "e", "\\infty"} for end in (low, high)):
        return None
    opening = "[" if index and signs[index - 1] == "\\leq" else "("
    closing = "]" if index + 1 < len(sides) and signs[index] == "\\leq" else ")"
    return Assigned(str(_name(sides[index])), Group(opening + closing, (low, high)), text)


# -- quantities and words ---------------------------------------------------------------------------------------------

_CURRENCY = re.compile(r"(?P<sign>-?)(?:US|USD)?\s*(?P<unit>\\(?:dollar|euro|pound)) ?(?P<head>.+)")
_OF_ANGLES = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_TAIL = re.compile(
    r"(?:(?<= )(?:km|m|mi|ft|cm|mm|g|kg|l|ml)/(?:h|hr|s|sec|min|day|l|ml|m|cm)(?:\^\{?[23]\}?)?(?![A-Za-z])|\s|/|\.(?=\s|\Z)|%|\\%|\\(?:dollar|euro|pound)\s?|\^\\circ ?(?:\\text\{)?[CF]?\}?|\\text\{[^{}\d]*\}(?:\^\{?[23]\}?)?"
    r"|(?<![A-Za-z])[A-Za-z](?= [A-Za-z]{2})|(?<![A-Za-z])[A-Za-z]{2,}(?![A-Za-z])(?:\^\{?[23]\}?)?|-(?=[A-Za-z]{3}))+"
)
_HEAD = re.compile(r"[-+]?(?:\d[\d, ]*\d|\d)?(?:\.\d+)?(?:e[+-]?\d+)?(?:/\d+)?|[-+]?(?:\d+ )?\d+/\d+")


def _quantity(text: str, depth: int) -> Kind | None:
    if len(text) > _MAX_QUANTITY:
        return None
    currency = _CURRENCY.fullmatch(text)
    if currency is not None:
        inner = _kind(f"{currency['sign']}{currency['head']}", depth + 1)
        unit = (currency["unit"][1:],)
        if isinstance(inner, Scalar):
            return Quantity(inner, unit)
        if isinstance(inner, Quantity) and (inner.unit == unit or inner.unit[:1] == ("/",)):
            return Quantity(inner.amount, unit + (inner.unit if inner.unit != unit else ()))
        if isinstance(inner, Quantity) and currency["unit"] == "\\dollar":
            return Quantity(inner.amount, unit + inner.unit)
        return None
    for match in re.finditer(r"(?<=[\d})])(?=[ %/\\^a-zA-Z]|-[a-z]{3})|(?= ?\\text\{| ?%)", text):
        head, tail = text[: match.start()], text[match.start() :]
        if tail.strip() == "^\\circ" and _OF_ANGLES.search(head):
            return None
        if _TAIL.fullmatch(tail) and _is_unit(tail):
            amount = _scalar(head)
            return Quantity(amount, unit_words(tail)) if amount is not None else None
    return None


def _is_unit(tail: str) -> bool:
    r"""True if what follows a number is a unit and not a factor: `\text{...}`, %, a degree sign, a known symbol, or words
    of three letters at least after a space. Letters alone are never units."""
    marked = re.sub(r"\\text\{\s*([^{}]*)\}", "", tail)
    if re.search(r"\\text\{\s*(?:or|and|if|i|e|pi)\s*\}", tail) or _NEGATED.search(tail):
        return False
    if re.match(r"\s*(?:squared|cubed|to the (?:power|\w+(?:th|rd|nd|st))|over)\b", tail):
        return False
    words = re.findall(r"[A-Za-z]+(?:\^\{?\d\}?)?(?:/[A-Za-z]+)?", re.sub(r"\\[a-zA-Z]+", "", marked))
    plain = [re.sub(r"[{}]", "", word) for word in words]
    if any(word in FUNCTIONS or word in ("pi", "infty", "sqrt") for word in plain):
        return False
    if not plain:
        return bool(tail.strip())
    if re.sub(r"[{}\s]", "", marked) in SYMBOLS or plain[0] in SYMBOLS:
        return True
    longest = max(len(word) for word in plain)
    return (tail[:1] in " -/%" or unit_words(plain[0])[0:1] != (plain[0],)) and longest >= 3 and len(plain[0]) != 1


_NEGATED = re.compile(r"\b(?:not|never|no longer|isn't|neither|or|either|nor|except|wrong|incorrect|anything|false|unknown|between\s+\\?\S*\d|times\s+\\?\S*\d|(?:plus|minus|divided|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|and a half|halves|thirds|fourths|factorial|choose|mod|modulo))\b|\bthan\b[^.]*\d", re.I)
_OTHERWISE = re.compile(
    r"\b(?:half|twice|thrice|doubled?|tripled?|quarter|third|less|more|fewer|greater|least|most|under|over|below|above|than|"
    r"up|minus|plus|times|multiple|factors?|root|square|cube|log|negative|without|base|if|percent|every|per)\b",
    re.I,
)
_PHRASE_NUMBER = re.compile(
    r"(?<![\w.^_\\])-?(?:\\(?:dollar|euro|pound) ?)?-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?: ?\d+/\d+|/\d+)?(?![\d^_(]|[a-zA-Z](?![a-zA-Z]))"
)
_FILLER = re.compile(
    r"(?:(?:about|approximately|around|roughly|exactly|only|just|a|an|the|total|of|is|equal|to|equals|so|thus|therefore|"
    r"she|he|they|it|we|has|have|had|will|be|are|there|in|her|his|their|now|then|still|makes?|made|gets?|needs?|"
    r"costs?|pays?|paid|spends?|spent|earns?|earned|received?s?|also|simply|just|that|would|can|must)\s+)*"
)


def _words(text: str) -> Words:
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r"\s+", " ", plain).strip(" .,;:!'\"")
    if "\\" in plain:
        return Words(text, _stated(plain))
    folded = plain.casefold() if re.search(r"[A-Za-z]{3}", plain) or _yes_or_no(plain) else plain
    return Words(folded, _stated(plain))


def _stated(plain: str) -> Scalar | Quantity | None:
    """The one amount that a phrase states: its only number, or the number that it begins with. None when a second number
    stands beside it, or a word that takes it back."""
    if "\\" in plain.replace("\\dollar", "").replace("\\pound", "").replace("\\euro", "") or re.search(r"[=<>{}]", plain):
        return None
    if not re.search(r"[A-Za-z]{2}", plain) or _NEGATED.search(plain):
        return None
    found = [match for match in _PHRASE_NUMBER.finditer(plain) if re.search(r"\d", match[0])]
    if not found or (len(found) > 1 and not _FILLER.fullmatch(plain[: found[0].start()].lower())):
        return None
    if len(found) != len(re.findall(r"\d[\d,./ ]*", plain)) and len(found) < 1:
        return None
    first = found[0]
    before = plain[: first.start()]
    if _OTHERWISE.search(before) or not re.fullmatch(r"[A-Za-z' ,:]*", before):
        return None
    rest = plain[first.end() :]
    if re.search(r"[+*=_|<>]|\^(?![23{])|\bover\s+\d+\s*\Z", rest):
        return None
    if re.match(r"\s+(?:squared|cubed|to the (?:power|\w+(?:th|rd|nd|st))|over)\b|\s*(?:[-+*/^:,;&]\s*)?[\d\\$]|\s*[-+*/^_=]", rest) or (len(found) > 1 and not _apart(plain, found)):
        return None
    read_number = _kind(first[0].strip(), _MAX_DEPTH)
    unit = unit_words(re.split(r"[.,;:]|\s(?:in|for|from|at|on|after|because|since|left|so|when|that|who|and|with)\b|\d", rest)[0])[:1]
    if isinstance(read_number, Scalar):
        return Quantity(read_number, unit) if unit else read_number
    return read_number if isinstance(read_number, Quantity) else None


_PREPOSITION = re.compile(
    r"\b(?:in|for|from|after|per|each|every|at|by|with|on|over|during|within|because|since|when|if|of|to|under|until|that|before)\b"
)


def _apart(plain: str, found: list[re.Match[str]]) -> bool:
    """True if the second number belongs to another phrase: a preposition stands before it, and no "and" or sign."""
    between = plain[found[0].end() : found[1].start()]
    return bool(_PREPOSITION.search(between)) and not re.search(r"(?:\band|\bor|\bto|,|&|\+|-|/|=)\s*\Z", between)

