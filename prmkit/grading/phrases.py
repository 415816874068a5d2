r"""Amounts with units, and phrases that state one amount."""

from __future__ import annotations

import re

from prmkit.grading.kinds import Inner, Kind, Quantity, Scalar, Words, read_scalar
from prmkit.grading.tokens import FUNCTIONS
from prmkit.grading.units import SYMBOLS, unit_words

__all__ = ["NEGATED", "is_short_word", "read_quantity", "read_words"]

_MAX_QUANTITY = 120
_CURRENCY = re.compile(r"(?P<sign>-?)(?:US|USD)?\s*(?P<unit>\\(?:dollar|euro|pound)) ?(?P<head>.+)")
_OF_ANGLES = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_TAIL = re.compile(
    r"(?:(?<= )(?:km|m|mi|ft|cm|mm|g|kg|l|ml)/(?:h|hr|s|sec|min|day|l|ml|m|cm)(?:\^\{?[23]\}?)?(?![A-Za-z])|\s|/"
    r"|\.(?=\s|\Z)|%|\\%|\\(?:dollar|euro|pound)\s?|\^\\circ ?(?:\\text\{)?[CF]?\}?|\\text\{[^{}\d]*\}(?:\^\{?[23]\}?)?"
    r"|(?<![A-Za-z])[A-Za-z](?= [A-Za-z]{2})|(?<![A-Za-z])[A-Za-z]{2,}(?![A-Za-z])(?:\^\{?[23]\}?)?|-(?=[A-Za-z]{3}))+"
)


def read_quantity(text: str, inner: Inner) -> Kind | None:
    """An amount with a unit; None for anything else."""
    if len(text) > _MAX_QUANTITY:
        return None
    currency = _CURRENCY.fullmatch(text)
    if currency is not None:
        return _money(currency["unit"], inner(f"{currency['sign']}{currency['head']}"))
    for match in re.finditer(r"(?<=[\d})])(?=[ %/\\^a-zA-Z]|-[a-z]{3})|(?= ?\\text\{| ?%)", text):
        head, tail = text[: match.start()], text[match.start() :]
        if tail.strip() == "^\\circ" and _OF_ANGLES.search(head):
            return None
        if _TAIL.fullmatch(tail) and _is_unit(tail):
            amount = read_scalar(head)
            return Quantity(amount, unit_words(tail)) if amount is not None else None
    return None


def _money(currency: str, amount: Kind) -> Quantity | None:
    """An amount after the sign of a currency; a unit after it says what the money is for, "$5 per day"."""
    unit = (currency[1:],)
    if isinstance(amount, Scalar):
        return Quantity(amount, unit)
    if not isinstance(amount, Quantity):
        return None
    if amount.unit == unit:
        return amount
    return Quantity(amount.amount, unit + amount.unit) if amount.unit[:1] == ("/",) or currency == "\\dollar" else None


def _is_unit(tail: str) -> bool:
    r"""True if what follows a number is a unit and not a factor.

    A unit is `\text{...}`, %, a degree sign, a known symbol, or words of three letters at least after a space. Letters
    alone are never units.
    """
    marked = re.sub(r"\\text\{\s*([^{}]*)\}", "", tail)
    if re.search(r"\\text\{\s*(?:or|and|if|i|e|pi)\s*\}", tail) or NEGATED.search(tail):
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


NEGATED = re.compile(
    r"\b(?:not|never|no longer|isn't|neither|or|either|nor|except|wrong|incorrect|anything|false|unknown"
    r"|between\s+\\?\S*\d|times\s+\\?\S*\d|plus|minus|divided|hundreds?|thousands?|millions?|billions?|trillions?|dozens?"
    r"|and a half|halves|thirds|fourths|factorial|choose|mod|modulo)\b|\bthan\b[^.]*\d",
    re.I,
)
_OTHERWISE = re.compile(
    r"\b(?:half|twice|thrice|doubled?|tripled?|quarter|third|less|more|fewer|greater|least|most|under|over|below|above|than|"
    r"up|minus|plus|times|multiple|factors?|root|square|cube|log|negative|without|base|if|percent|every|per)\b",
    re.I,
)
_CURRENCY_SIGN = re.compile(r"\\(?:dollar|pound|euro)")
_CALCULATED = re.compile(r"[+*=_|<>]|\^(?![23{])|\bover\s+\d+\s*\Z")
_CONTINUED = re.compile(
    r"\s+(?:squared|cubed|to the (?:power|\w+(?:th|rd|nd|st))|over)\b|\s*(?:[-+*/^:,;&]\s*)?[\d\\$]|\s*[-+*/^_=]"
)
_UNIT_END = re.compile(r"[.,;:]|\s(?:in|for|from|at|on|after|because|since|left|so|when|that|who|and|with)\b|\d")
_PHRASE_NUMBER = re.compile(
    r"(?<![\w.^_\\])-?(?:\\(?:dollar|euro|pound) ?)?-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?: ?\d+/\d+|/\d+)?(?![\d^_(]|[a-zA-Z](?![a-zA-Z]))"
)
_FILLER = re.compile(
    r"(?:(?:about|approximately|around|roughly|exactly|only|just|a|an|the|total|of|is|equal|to|equals|so|thus|therefore|"
    r"she|he|they|it|we|has|have|had|will|be|are|there|in|her|his|their|now|then|still|makes?|made|gets?|needs?|"
    r"costs?|pays?|paid|spends?|spent|earns?|earned|received?s?|also|simply|just|that|would|can|must)\s+)*"
)


def read_words(text: str, inner: Inner) -> Words:
    """Text, with the amount that it states."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r"\s+", " ", plain).strip(" .,;:!'\"")
    if "\\" in plain:
        return Words(text, _stated(plain, inner))
    folded = plain.casefold() if re.search(r"[A-Za-z]{3}", plain) or is_short_word(plain) else plain
    return Words(folded, _stated(plain, inner))


def _stated(plain: str, inner: Inner) -> Scalar | Quantity | None:
    """The one amount that a phrase states: its only number, or the number that it begins with.

    None when a second number stands beside it, or a word that takes it back.
    """
    if "\\" in _CURRENCY_SIGN.sub("", plain) or re.search(r"[=<>{}]", plain):
        return None
    if not re.search(r"[A-Za-z]{2}", plain) or NEGATED.search(plain):
        return None
    found = [match for match in _PHRASE_NUMBER.finditer(plain) if re.search(r"\d", match[0])]
    if not found:
        return None
    before, rest = plain[: found[0].start()], plain[found[0].end() :]
    if len(found) > 1 and not (_FILLER.fullmatch(before.lower()) and _apart(plain, found)):
        return None
    if _OTHERWISE.search(before) or not re.fullmatch(r"[A-Za-z' ,:]*", before):
        return None
    if _CALCULATED.search(rest) or _CONTINUED.match(rest):
        return None
    amount = inner(found[0][0].strip())
    unit = unit_words(_UNIT_END.split(rest)[0])[:1]
    if isinstance(amount, Scalar):
        return Quantity(amount, unit) if unit else amount
    return amount if isinstance(amount, Quantity) else None


_PREPOSITION = re.compile(
    r"\b(?:in|for|from|after|per|each|every|at|by|with|on|over|during|within|because|since|when|if|of|to|under|until|that"
    r"|before)\b"
)


def _apart(plain: str, found: list[re.Match[str]]) -> bool:
    """True if the second number belongs to another phrase: a preposition stands before it, and no "and" or sign."""
    between = plain[found[0].end() : found[1].start()]
    return bool(_PREPOSITION.search(between)) and not re.search(r"(?:\band|\bor|\bto|,|&|\+|-|/|=)\s*\Z", between)


def is_short_word(text: str) -> bool:
    """True for a word of two letters that would else be a product of letters."""
    return text.lower() in ("yes", "no", "up", "it", "he", "me", "we", "us")
