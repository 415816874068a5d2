r"""Search for holes of a grader: cheap strings that are no answer to a problem and are accepted all the same.

For every problem hundreds of strings are tried that a policy finds without solving it: constants, parts of the gold
answer and changes to it, all answers at once, intervals that contain it, the question. A string that has the gold's own
value by an independent reading (equal text, or equal fraction) is no hole and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from prmkit.protocols import Grader

__all__ = ["Hole", "Target", "attack", "strings"]

_CONSTANTS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "3",
        "10",
        "100",
        "x",
        "n",
        "y",
        "a",
        "A",
        "B",
        "C",
        "D",
        "E",
        "i",
        "\\pi",
        "\\infty",
        "-\\infty",
    ),
    *(
        "",
        " ",
        "?",
        ".",
        "...",
        "-",
        "+",
        "=",
        "()",
        "[]",
        "\\boxed{}",
        "\\text{}",
        "\\{\\}",
        "$$",
        "nan",
        "inf",
        "None",
    ),
    *(
        "True",
        "False",
        "null",
        "\\emptyset",
        "\\mathbb{R}",
        "(-\\infty,\\infty)",
        "any",
        "all",
        "\\text{answer}",
        "\\ldots",
    ),
    *(
        "unknown",
        "the answer",
        "it depends",
        "x=x",
        "1=1",
        "0=0",
        "x=y",
        "0/0",
        "1/0",
        "9^{9^{9}}",
        "\\frac{0}{0}",
        "\\pm 1",
    ),
    *("0, 1", "0, 1, 2", "0 1 2 3 4 5 6 7 8 9", "A, B, C, D, E", "A or B or C or D", "ABCDE", "yes or no", "yes, no"),
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Target:
    """A problem to attack: its gold answer and, when known, its question."""

    gold: str
    question: str = ""


@dataclass(frozen=True)
class Hole:
    """An accepted string that is no answer.

    Attributes:
        gold: the gold answer.
        text: the string, as an answer.
        family: how it was made.
    """

    gold: str
    text: str
    family: str


def attack(grader: Grader, targets: Sequence[Target]) -> tuple[int, list[Hole]]:
    """Try all strings of every target. Returns how many were tried and those that were accepted."""
    tried: list[Hole] = []
    for target in targets:
        seen: set[str] = set()
        for family, text in strings(target):
            if text not in seen and not _has_the_value(text, target.gold):
                seen.add(text)
                tried.append(Hole(target.gold, text, family))
    holes: list[Hole] = []
    for start in range(0, len(tried), 20_000):  # bounded memory for the verdicts of one call
        part = tried[start : start + 20_000]
        verdicts = grader.grade([(hole.text, hole.gold) for hole in part])
        holes += [hole for hole, verdict in zip(part, verdicts, strict=True) if verdict.correct]
    return len(tried), holes


def strings(target: Target) -> Iterator[tuple[str, str]]:
    """Pairs (family, string) for one target."""
    gold = target.gold
    yield from (("constant", text) for text in _CONSTANTS)
    yield from (("counting", str(number)) for number in range(4, 21))
    yield from (("sides", side.strip()) for side in re.split(r"\\leq|\\geq|\\le|\\ge|\\in|[=<>]", gold)[:-1])
    if len(re.findall(r"=", gold)) == 1 and not re.fullmatch(
        r"\s*(?:[a-zA-Z]|[a-zA-Z]\([a-z]\))\s*", gold.split("=")[0]
    ):
        yield "sides", gold.split("=")[1].strip()
    yield from (("letters", letter) for letter in sorted(set(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", gold))))
    yield from (("numbers", number) for number in dict.fromkeys(_NUMBER.findall(gold)))
    yield from (("pieces", gold[:end]) for end in range(1, min(len(gold), 12)))
    yield from (("pieces", gold[start:]) for start in range(1, min(len(gold), 12)))
    yield from (("alternatives", text) for text in _alternatives(gold))
    yield from (("wrapped", text) for text in _changed(gold))
    if _PLAIN.fullmatch(gold.strip()):
        yield from (("near", text) for text in _near(gold.strip()))
    yield from (("members", text) for text in _members(gold))
    if target.question:
        yield "question", target.question
        yield from (("question", number) for number in dict.fromkeys(_NUMBER.findall(target.question)))


def _alternatives(gold: str) -> Iterator[str]:
    for other in {"0", "1", "x", "7"} - {gold.strip()}:
        yield from (
            f"{gold} or {other}",
            f"{other} or {gold}",
            f"{gold}, {other}",
            f"{other}, {gold}",
            f"{gold}; {other}",
        )
        yield from (f"{gold} and {other}", f"{gold}\\text{{ or }}{other}", f"either {gold} or {other}")
        yield f"{gold} or {other} apples"
    yield from (f"not {gold}", f"not equal to {gold}", f"anything but {gold}", f"{gold} is wrong", f"less than {gold}")
    if not re.fullmatch(r"(?:\\text\{)?\(?[A-Z]\)?\}?", gold.strip()):  # after a choice letter, words are the choice
        yield from (
            f"{gold} {word}"
            for word in ("million", "thousand", "dozen", "squared", "plus 1", "minus 2", "times 3", "over 2")
        )
    yield from (
        f"{gold} and a half",
        f"{gold} hundred apples",
        f"twice {gold}",
        f"half of {gold}",
        f"{gold} divided by 7",
    )
    yield ", ".join(map(str, range(30)))
    yield " or ".join(map(str, range(30)))
    yield " ".join(map(str, range(30)))


def _changed(gold: str) -> Iterator[str]:
    yield from (f"(-\\infty,{gold}]", f"[{gold},\\infty)", f"[{gold},{gold}]", f"({gold},{gold})", f"x\\geq {gold}")
    yield from (f"x\\leq {gold}", f"x\\neq {gold}", f"{gold} \\pm 1", f"\\sim {gold}", f">{gold}")
    yield from (
        f"{gold}={gold}+1",
        f"{gold}+1={gold}",
        f"{gold}+1",
        f"({gold})+10^{{-12}}",
        f"({gold})+10^{{-60}}",
        f"{gold}.{gold}",
    )
    if gold.strip() != "0":
        yield from (f"({gold})(1+10^{{-12}})", f"\\pm {gold}", f"{gold} 3 1")
    yield from (f"{gold}+x", f"{gold}+x-y", f"-({gold})+\\pi", f"1/({gold})+7", f"{gold}{gold}")
    yield from (
        f"\\{{x : x={gold}\\}} \\cup \\{{0\\}}",
        f"{gold} \\cup \\mathbb{{R}}",
        f"{gold}_2",
        f"{gold}_{{7}}",
        f"{gold}:1",
    )
    yield from (f"f({gold})", f"|{gold}|+|x|", f"\\boxed{{{gold}}} or \\boxed{{0}}", f"{gold}/0", f"0\\cdot {gold}/0")
    for pattern, replacement in (
        (r"_\{?\d+\}?", ""),
        (r"_\{?\d+\}?", "_9"),
        (r"[\\{}()\[\], ]", ""),
        (r"-", ""),
        (r"\d", "7"),
    ):
        yield re.sub(pattern, replacement, gold)
    if "," in gold:
        yield from (gold.replace("(", "[").replace(")", "]"), gold.replace("[", "(").replace("]", ")"))
    yield from (
        gold.swapcase(),
        gold.replace("<", "\\leq "),
        gold.replace("\\cup", ","),
        gold.replace("i", ""),
        gold.replace("x", "z"),
    )


def _near(gold: str) -> Iterator[str]:
    value = Fraction(gold)
    if value == 0:  # a product with zero is zero
        return
    if abs(value) not in (1, 2):  # their factorials are themselves
        yield from (f"{gold}!", f"{gold}!!")
    for other in (value + 1, value - 1, -value, value * 10, value / 10, value * 100, value / 100, 2 * value, value**2):
        yield str(other)
    yield from (
        f"{gold}0",
        f"{gold}.0001",
        f"{gold}.5",
        f"1{gold}",
        f"{gold}e1",
        f"{gold}t",
        f"{gold}m",
        f"{gold} m",
        f"{gold}c",
    )
    yield from (f"{gold}x", f"{gold}i", f"{gold}%+1", f"{gold}/100", f"{gold}, 000", f"{gold} {gold}")
    yield f"{float(value) * (1 + 1e-9):.15g}"


def _members(gold: str) -> Iterator[str]:
    inner = re.sub(r"\A[\[(]|[\])]\Z|\\left|\\right|\\[{}]", "", gold)
    parts = [part.strip() for part in re.split(r",|;|\\cup|\\text\{ ?(?:and|or) ?\}", inner) if part.strip()]
    if len(parts) < 2:
        return
    yield from parts
    yield from ("".join(parts), ", ".join(parts[:-1]), ", ".join([*parts, parts[0], "0"]), " ".join(parts))
    if gold.lstrip().startswith(("(", "[")) and parts != parts[::-1]:
        yield from (
            f"({', '.join(parts[::-1])})",
            f"[{', '.join(parts)}]" if gold[0] == "(" else f"({', '.join(parts)})",
        )
    yield f"({', '.join([*parts, '0'])})"
    if all("=" in part for part in parts) and len({part.split("=")[0].strip() for part in parts}) == len(parts):
        yield ", ".join(part.split("=")[1] for part in parts[::-1])


def _has_the_value(text: str, gold: str) -> bool:
    """True if a string is the gold answer by an independent reading."""
    plain = [re.sub(r"\\left|\\right|\\text|\\mathrm|[\s{}()$\\]|\bleft\b", "", value) for value in (text, gold)]
    if plain[0] == plain[1]:
        return True
    if re.fullmatch(r"[a-zA-Z](?:[a-z])?=|[a-z]in", plain[1].removesuffix(plain[0])) and plain[1].endswith(plain[0]):
        return True  # the value of a name
    values = [_fraction(value) for value in (text, gold)]
    return values[0] is not None and values[0] == values[1]


def _fraction(text: str) -> Fraction | None:
    text = re.sub(r"\s*\\!\s*", "", text)
    text = re.sub(r"\\[dt]?frac\s*\{?(-?\d+)\}?\s*\{?(\d+)\}?", r"\1/\2", text.strip().strip("$"))
    text = re.sub(
        r"\\(?:text|mbox|mathrm)\{.*?\}(?:\^\{?\d\}?)?|\\\Z|\\(?:circ|%|\$|!)|[\^{}%]|(?<=\d),(?=\d{3}(?!\d))|[A-Za-z]\s*=",
        "",
        text,
    ).replace(" ", "")
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
