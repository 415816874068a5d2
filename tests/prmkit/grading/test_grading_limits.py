"""Hostile answers: bounded in time, no crash, and never equal to anything but themselves."""

import time

import pytest

from prmkit.grading import MathGrader, extract_answer
from prmkit.grading.reading import describe

DIGITS = "7" * 5000
ROWS = "\\\\".join("&".join(str(i * j) for j in range(100)) for i in range(100))
HOSTILE = {
    "tower": "9^9^9^9",
    "tower of braces": "9^{9^{9^{9}}}",
    "long tower": "^".join("9" * 300),
    "negative tower": "2^{-9^{9^{9}}}",
    "tower of roots": "9^{9^{\\sqrt{9}}}",
    "scientific": "1e999999999",
    "small scientific": "1e-999999999",
    "decimal scientific": "1.5e99999999999999999999",
    "factorial": "100000000!",
    "factorial of a tower": "(10^{10})!",
    "factorials": "9" + "!" * 500,
    "factorials of factorials": "((9!)!)!",
    "binomial": "\\binom{10^9}{5\\cdot 10^8}",
    "product of powers": "\\cdot".join(["99^{999}"] * 150),
    "power of an expression": "(x+y+z+1)^{100000}",
    "variable tower": "x^{x^{x^{x^{x^{x}}}}}",
    "huge integer": DIGITS,
    "huge fraction": f"\\frac{{{DIGITS}}}{{{DIGITS}8}}",
    "huge decimal": f"0.{DIGITS}",
    "huge power": f"2^{{{DIGITS}}}",
    "huge root": f"\\sqrt[{DIGITS}]{{2}}",
    "huge separators": ",".join(["7", *["777"] * 1500]),
    "huge base": DIGITS + "_8",
    "huge period": f"0.\\overline{{{DIGITS}}}",
    "short huge period": f"0.\\overline{{{'7' * 900}}}",
    "brackets": "(" * 400 + "1" + ")" * 400,
    "open brackets": "(" * 5000,
    "square brackets": "[" * 900 + "]" * 900,
    "braces": "{" * 900 + "}" * 900,
    "sets": "\\{" * 300 + "1" + "\\}" * 300,
    "tuples": "(1," * 300 + "1" + ")" * 300,
    "fractions": "\\frac{" * 300 + "1" + "}{2}" * 300,
    "open fractions": "\\frac{" * 300,
    "fractions without braces": "\\frac" * 400 + "12",
    "roots": "\\sqrt" * 300 + "2",
    "signs": "-" * 1999 + "5",
    "plus and minus": "\\pm" * 300 + "1",
    "sum of signs": "\\pm 1" * 300,
    "bars": "|" * 900,
    "equals": "=".join("x" * 500),
    "relations": "<".join("abcdefgh" * 60),
    "unions": "\\cup".join(["(1,2)"] * 200),
    "members": ",".join(map(str, range(400))),
    "symbolic members": ", ".join(f"x+{i}" for i in range(150)),
    "matrix": f"\\begin{{pmatrix}}{ROWS}\\end{{pmatrix}}",
    "open matrices": "\\begin{pmatrix}" * 100,
    "letters": "ab" * 900,
    "long text": "and so on " * 1000,
    "words and numbers": "1 apple 2 pears " * 120,
    "spaces": "1" + " " * 1900 + "2",
    "unit tail": "5" + " km/h" * 300,
    "unit letters": "5 " + "m " * 900,
    "text commands": "\\text{a}" * 250,
    "boxes": "\\boxed{" * 280 + "5" + "}" * 280,
    "dollars": "$" * 1900,
    "stars": "*" * 1900,
    "choices": "(A) " * 450,
    "commands": "\\" * 1999,
    "integral": "\\int_0^1 \\int_0^1 \\int_0^1 e^{x^{y^{z}}} dx dy dz",
    "series": "\\sum_{n=1}^{10^{12}} \\frac{1}{n^{\\sin n}}",
    "products": "\\prod_{n=1}^{99999999} n^{n^n}",
    "limit": "\\lim_{x\\to 0} " * 40 + "x",
    "null bytes": "5\x00\x000\x00",
    "null byte": "\x00",
    "marks": "\x000\x01 \x001\x01",
    "surrogate": "5\ud800",
    "unicode": "".join(map(chr, range(0x2190, 0x2600))),
    "digits of the world": "٣٤٥ ५६७ ²³ ⅷ ㊿ 𝟙𝟚",
    "controls": "".join(map(chr, range(32))),
    "right to left": "\u202e5\u202c" * 50,
    "accents": "e" + "\u0301" * 1500,
    "superscripts": "2" + "⁹" * 1500,
    "code": "__import__('os').system('sleep 60')",
    "loop": "while True: pass",
    "lambda": "(lambda f: f(f))(lambda f: f(f))",
}
GOLDS = (
    "5",
    "x^2+1",
    "(1,2)",
    "\\{1,2\\}",
    "x=5",
    "31_4",
    "5\\text{ cm}",
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "\\text{no}",
)


@pytest.fixture(scope="module")
def grader():
    with MathGrader(timeout=1.0, workers=1) as grader:
        grader.grade([("x+x", "2x"), ("\\int_0^1 x dx", "\\sum_{n=1}^{3} n")])  # started, math-verify loaded
        yield grader


@pytest.mark.parametrize("name", HOSTILE)
def test_bounded_and_unequal(grader, name):
    text = HOSTILE[name]
    begin = time.monotonic()
    grades = grader.grade([(text, gold) for gold in GOLDS])
    back = grader.grade([(gold, text) for gold in GOLDS])
    classes = grader.group([text, *GOLDS, text])
    extract_answer(f"The answer is {text}.")
    describe(text[:2000])
    # one limit of processor time, which a loaded machine stretches five times, and the start of the next worker
    assert time.monotonic() - begin < 25.0
    assert not any(grade.correct for grade in [*grades, *back]), name
    assert classes[0] == classes[-1]
    assert classes.count(0) == 2


def test_a_long_text_is_searched_in_a_moment():
    filler = {
        "boxes": "\\boxed{",
        "dollars": "$1 ",
        "hashes": "#### ",
        "numbers": "1,234 ",
        "answers": "the answer is (",
    }
    for piece in (*filler.values(), "\\(", "1/", "-", "$", "a total of 3 ", "**", "\n"):
        begin = time.monotonic()
        extract_answer(piece * (100_000 // len(piece)))
        extract_answer("so the answer is " + piece * (10_000 // len(piece)))
        assert time.monotonic() - begin < 5.0, piece
