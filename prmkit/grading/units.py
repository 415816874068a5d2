"""Units that answers name, and which of two units is the same one."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["IGNORED", "SYMBOLS", "convert", "unit_words"]

_TABLE: dict[str, tuple[str, dict[Fraction, str]]] = {
    "length": ("m", {
        Fraction(1, 10**9): "nm nanometer nanometre", Fraction(1, 10**6): "micrometer micrometre",
        Fraction(1, 1000): "mm millimeter millimetre", Fraction(1, 100): "cm centimeter centimetre",
        Fraction(1): "m meter metre", Fraction(1000): "km kilometer kilometre",
        Fraction(254, 10000): "inch inche in", Fraction(3048, 10000): "ft foot feet", Fraction(9144, 10000): "yd yard",
        Fraction(1609344, 1000): "mi mile",
    }),
    "time": ("s", {
        Fraction(1): "s sec second", Fraction(60): "min minute", Fraction(3600): "h hr hour",
        Fraction(86400): "day", Fraction(7 * 86400): "week", Fraction(1, 1000): "ms millisecond",
    }),
    "mass": ("g", {
        Fraction(1): "g gram gramme", Fraction(1000): "kg kilogram kilo", Fraction(1, 1000): "mg milligram",
        Fraction(45359237, 100000): "lb lbs pound", Fraction(45359237, 1600000): "oz ounce",
        Fraction(10**6): "ton tonne",
    }),
    "volume": ("l", {
        Fraction(1): "l liter litre", Fraction(1, 1000): "ml milliliter millilitre",
        Fraction(3785411784, 10**9): "gal gallon",
    }),
    "money": ("dollar", {Fraction(1): "dollar buck usd", Fraction(1, 100): "cent penny pennie"}),
    "angle": ("degree", {Fraction(1): "degree deg"}),
    "share": ("percent", {Fraction(1): "percent percentage pct"}),
    "months": ("month", {Fraction(1): "month", Fraction(12): "year yr"}),
    "count": ("", {Fraction(12): "dozen"}),
}  # fmt: skip
_UNITS: dict[str, tuple[str, Fraction]] = {
    word: (dimension, factor)
    for dimension, (_, rows) in _TABLE.items()
    for factor, words in rows.items()
    for word in words.split()
}
SYMBOLS = frozenset(
    [
        "km",
        "cm",
        "mm",
        "nm",
        "kg",
        "mg",
        "ml",
        "km/h",
        "kmh",
        "kph",
        "mph",
        "m/s",
        "km/hr",
        "ft",
        "lb",
        "lbs",
        "oz",
        "hr",
        "hrs",
        "min",
        "sec",
        "yd",
        "mi",
        "cm^2",
        "m^2",
        "km^2",
        "cm^3",
        "m^3",
        "mm^2",
        "ft^2",
        "ft^3",
        "in^2",
        "in^3",
        "inches",
        "inch",
        "feet",
    ]
)
"""Units that may follow a number in plain text although they are written with few letters; single letters may not."""

IGNORED = frozenset(("dollar", "percent", "degree"))
"""Units that votes ignore: an answer with one and an answer without are counted together."""

_FILLERS = frozenset(
    ["of", "a", "an", "the", "in", "total", "all", "altogether", "more", "left", "each", "per", "every"]
)
_POWER = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}


def unit_words(text: str) -> tuple[str, ...]:
    """The unit in a text as words without plural: "cubic meters per hour" gives ("m^3", "/", "h")."""
    text = re.sub(r"\\(dollar|euro|pound)\s*", r" \1 ", text).replace("^\\circ", " degree ").replace("%", " percent ")
    text = re.sub(r"\^\{(\d)\}", r"^\1", text)
    text = re.sub(r"\\text\{([^{}]*)\}(\^\d)?", r" \1\2 ", text)
    words: list[str] = []
    power = ""
    for word in re.findall(r"[^\W\d_]+(?:\^\d)?|/", text.replace("mph", "miles per hour").replace("km/hr", "km/h")):
        small = word.lower()
        if small in _POWER:
            power = _POWER[small]
        elif small == "per" and words:
            words.append("/")
        elif small == "squared" and words:
            words[-1] += "^2"
        elif small == "cubed" and words:
            words[-1] += "^3"
        elif small not in _FILLERS:
            words.append(_singular(small) + power)
            power = ""
    return tuple(words)


def _singular(word: str) -> str:
    stem, caret, power = word.partition("^")
    for form in (stem, stem.removesuffix("s"), stem.removesuffix("es")):
        if form in _UNITS:
            dimension, factor = _UNITS[form]
            stem = next(words.split()[0] for row, words in _TABLE[dimension][1].items() if row == factor)
            break
    else:
        if len(stem) > 3 and stem.endswith("s") and not stem.endswith("ss"):
            stem = stem.removesuffix("s")
    return stem + caret + power


def convert(unit: tuple[str, ...], other: tuple[str, ...]) -> Fraction | None:
    """How many of `other` one `unit` is; None when they are not of one dimension. A longer description agrees with a
    shorter one that it begins with: ("dollar", "day") with ("dollar",)."""
    if unit == other:
        return Fraction(1)
    short, long = sorted((unit, other), key=len)
    if long[: len(short)] == short and "/" not in long[len(short) :]:
        return Fraction(1)
    if len(unit) != len(other):
        return None
    factor = Fraction(1)
    inverse = False
    for first, second in zip(unit, other, strict=True):
        step = _factor(first, second)
        if step is None:
            return None
        factor = factor / step if inverse else factor * step
        inverse = first == "/"
    return factor


def _factor(first: str, second: str) -> Fraction | None:
    if first == second:
        return Fraction(1)
    (stem, _, power), (other, _, other_power) = first.partition("^"), second.partition("^")
    if power != other_power or stem not in _UNITS or other not in _UNITS:
        return None
    (dimension, factor), (other_dimension, other_factor) = _UNITS[stem], _UNITS[other]
    if dimension != other_dimension:
        return None
    return (factor / other_factor) ** int(power or 1)
