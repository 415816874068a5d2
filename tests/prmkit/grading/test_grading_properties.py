"""Generated answers: one value under all its spellings is equal to itself, two values of one kind are never equal."""

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prmkit.grading import MathGrader, extract_answer

UNITS = ("dollars", "eggs", "people", "km", "hours", "points", "percent", "more apples", "dollars per day", "% of them")
PHRASES = (
    "The answer is {}.", "The answer is {}", "The final answer is {}. I hope it is correct.", "**Answer:** {}",
    "Answer: {}",
    "Final Answer: The final answer is ${}$. I hope it is correct.", "#### {}", "#### Answer: {}",
    "So it is \\boxed{{{}}}.",
    "The answer is ${}$, because 3 < 5.", "The answer is {} because 7 > 2.", "The answer is not 77. The answer is {}.",
    "Thus \\(\\boxed{{{}}}\\).", "The answer is: {}", "The correct answer is **{}**.", "The answer is {} and not 77.",
    "We try 77.\n\nThe answer is\n{}", "The answer is \\({}\\).", "$\\boxed{{{}}}$ is it, not 77.",
)  # fmt: skip
WRAPS = ("{}", "${}$", "\\({}\\)", "\\boxed{{{}}}", " {} ", "{}.", "**{}**", "\\displaystyle {}", "\\left({}\\right)")


@pytest.fixture(scope="module")
def grader():
    with MathGrader() as grader:
        yield grader


# -- spellings: each takes a value and gives texts that all mean it -----------------------------------------------


def spell_number(value: Fraction) -> list[str]:
    sign, size = ("-" if value < 0 else ""), abs(value)
    a, b = size.numerator, size.denominator
    if b == 1:
        forms = [f"{sign}{a}", f"{sign}{a:,}", f"{sign}{a}.0", f"{sign}{a}.00", f"{sign}\\frac{{{2 * a}}}{{2}}"]
        return [
            *forms,
            f"{'−' if sign else ''}{a}",
            f"{sign}{a:,}".replace(",", "{,}"),
            f"{sign}{a:,}".replace(",", "\\,"),
        ]
    forms = [
        f"{sign}{a}/{b}",
        f"{sign}\\frac{{{a}}}{{{b}}}",
        f"{sign}\\dfrac{{{a}}}{{{b}}}",
        f"\\frac{{{sign}{a}}}{{{b}}}",
    ]
    forms += [f"{sign}{3 * a}/{3 * b}", f"{'−' if sign else ''}{a}/{b}", f"{sign}({a})/({b})", f"{sign}{a}*{b}**(-1)"]
    if a > b:
        forms += [f"{sign}{a // b} {a % b}/{b}", f"{sign}{a // b}\\frac{{{a % b}}}{{{b}}}"]
    return forms


def spell_root(whole: int, radicand: int) -> list[str]:
    square = whole * whole * radicand
    return [
        f"{whole}\\sqrt{{{radicand}}}", f"\\sqrt{{{square}}}", f"{whole}√{radicand}", f"{whole}*sqrt({radicand})",
        f"\\sqrt {{{radicand}}} \\cdot {whole}", f"sqrt({square})", f"{whole}\\times\\sqrt{{{radicand}}}",
        f"{square}^{{1/2}}",
    ]  # fmt: skip


def spell_quadratic(a: int, b: int, c: int) -> list[str]:
    terms = f"{a}x^2{b:+d}x{c:+d}"
    plain = f"{a}*x**2{b:+d}*x{c:+d}"
    return [
        terms,
        plain,
        f"{c}{b:+d}x{a:+d}x^{{2}}",
        f"x({a}x{b:+d}){c:+d}",
        terms.replace("x^2", "x²"),
        f"{a} x^2 {b:+d} x {c:+d}",
    ]


def spell_tuple(values: tuple[int, ...]) -> list[str]:
    inner = ", ".join(map(str, values))
    return [f"({inner})", f"\\left({inner}\\right)", f"( {inner} )", "(" + ", ".join(f"{v}.0" for v in values) + ")"]


def spell_set(values: tuple[int, ...]) -> list[str]:
    orders = [values, values[::-1]]
    lists = [", ".join(map(str, order)) for order in orders]
    return [form.format(text) for text in lists for form in ("\\{{{}\\}}", "{}", "\\left\\{{{}\\right\\}}", "{{{}}}")]


def spell_line(slope: int, shift: int) -> list[str]:
    return [
        f"y={slope}x{shift:+d}",
        f"y = {slope}x {shift:+d}",
        f"{slope}x-y{shift:+d}=0",
        f"2y={2 * slope}x{2 * shift:+d}",
    ]


def spell_base(digits: str, base: int) -> list[str]:
    return [
        f"{digits}_{base}" if base < 10 else f"{digits}_{{{base}}}",
        f"{digits}_{{{base}}}",
        f"0{digits}_{{{base}}}",
    ]


numbers = st.fractions(-5000, 5000, max_denominator=40)
values = st.one_of(
    numbers.map(spell_number),
    st.tuples(st.integers(2, 30), st.sampled_from([2, 3, 5, 6, 7, 10, 11])).map(lambda v: spell_root(*v)),
    st.tuples(*[st.integers(2, 30)] * 3).map(lambda v: spell_quadratic(*v)),
    st.lists(st.integers(-50, 50), min_size=2, max_size=4).map(lambda v: spell_tuple(tuple(v))),
    st.lists(st.integers(-50, 50), min_size=2, max_size=4, unique=True).map(lambda v: spell_set(tuple(v))),
    st.tuples(st.integers(2, 9), st.integers(1, 9)).map(lambda v: spell_line(*v)),
    st.tuples(st.text("123", min_size=2, max_size=5), st.sampled_from([4, 5, 7, 8, 12])).map(lambda v: spell_base(*v)),
)
quick = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@quick
@given(values, st.sampled_from(WRAPS[:8]))
def test_all_spellings_are_equal(grader, forms, wrap):
    pairs = [(wrap.format(a), b) for a in forms for b in forms]
    assert [pair for pair, grade in zip(pairs, grader.grade(pairs), strict=True) if not grade.correct] == []


@quick
@given(numbers.map(spell_number), st.sampled_from(PHRASES))
def test_numbers_come_out_of_every_phrase(grader, forms, phrase):
    pairs = [(extract_answer(phrase.format(form)), forms[0]) for form in forms]
    assert [pair for pair, grade in zip(pairs, grader.grade(pairs), strict=True) if not grade.correct] == []


@quick
@given(st.integers(-500, 500).map(str), st.sampled_from(PHRASES), st.sampled_from(UNITS))
def test_units_and_words_around_do_not_matter_for_a_plain_number(grader, number, phrase, unit):
    said = phrase.format(f"\\text{{{number} {unit}}}" if "$" in phrase or "\\" in phrase else f"{number} {unit}")
    answer = extract_answer(said)
    other = str(int(number) + 1)
    assert [grade.correct for grade in grader.grade([(answer, number), (answer, other)])] == [True, False], (
        said,
        answer,
    )


# -- two values of one kind ---------------------------------------------------------------------------------------


def random_kinds(seed: int):
    """Endless (kind, key, spellings): values with different keys are different."""
    pick = random.Random(seed)
    while True:
        small = [pick.randint(-12, 12) for _ in range(4)]
        fraction = Fraction(pick.randint(-60, 60), pick.randint(1, 12))
        positive = [abs(n) + 2 for n in small]
        yield "number", fraction, spell_number(fraction)
        root = (positive[0], pick.choice([2, 3, 5, 6, 7, 10, 11]))
        yield "root", root, spell_root(*root)
        yield "expression", tuple(positive[:3]), spell_quadratic(*positive[:3])
        yield "tuple", tuple(small[:2]), spell_tuple(tuple(small[:2]))
        members = tuple(dict.fromkeys(small[:3]))
        if len(members) > 1:
            yield "set", frozenset(members), spell_set(members)
        yield "equation", tuple(positive[:2]), spell_line(*positive[:2])
        digits = "".join(pick.choice("123") for _ in range(pick.randint(2, 4)))
        base = pick.choice([4, 5, 7, 8, 12])
        yield "base", (digits, base), spell_base(digits, base)
        unit = pick.choice(["cm", "km", "kg", "hours", "dollars"])
        yield "unit", (positive[0], unit), [f"{positive[0]}\\text{{ {unit}}}", f"{positive[0]} {unit}"]
        power = pick.randint(1, 99)
        yield "small", power, [f"2^{{-{power}}}", f"\\frac{{1}}{{2^{{{power}}}}}", f"\\frac{{1}}{{{2**power}}}"]
        yield (
            "variable",
            (positive[0], letter := pick.choice("cdghlmostxyz")),
            [f"{positive[0]}{letter}", f"{positive[0]} \\cdot {letter}"],
        )


def accepted_unequal(grader, pairs: int, seed: int) -> list[tuple[str, str]]:
    pick = random.Random(seed)
    kept: dict[str, list[tuple[object, list[str]]]] = {}
    asked: list[tuple[str, str]] = []
    for kind, key, forms in random_kinds(seed):
        seen = kept.setdefault(kind, [])
        for other, others in pick.sample(seen, min(4, len(seen))):
            if other != key:
                asked.append((pick.choice(forms), pick.choice(others)))
        other_kind = pick.choice(list(kept))
        if (
            kind in ("number", "variable", "tuple", "base", "root")
            and other_kind in ("set", "equation", "tuple")
            and other_kind != kind
        ):
            asked += [(pick.choice(forms), pick.choice(others)) for _, others in kept[other_kind][-1:]]
        seen.append((key, forms))
        del seen[:-200]
        if len(asked) >= pairs:
            break
    return [pair for pair, grade in zip(asked, grader.grade(asked), strict=True) if grade.correct]


def test_unequal_values_are_not_equal(grader):
    assert accepted_unequal(grader, 4000, seed=1) == []


@pytest.mark.slow
def test_a_hundred_thousand_unequal_values_are_not_equal(grader):
    assert accepted_unequal(grader, 100_000, seed=2) == []


def test_votes_are_symmetric_and_transitive(grader):
    pick = random.Random(3)
    pool = [
        "5",
        "x=5",
        "y=5",
        "5 cm",
        "5 m",
        "5.0",
        "10/2",
        "$5",
        "5%",
        "5 dollars",
        "\\{5\\}",
        "(5,5)",
        "5,5",
        "\\text{5 cm}",
        "500 cm",
    ]
    pool += [
        "1<x<2",
        "(1,2)",
        "2>x>1",
        "1,2",
        "\\{1,2\\}",
        "2,1",
        "(E) 5",
        "E",
        "\\sqrt{25}",
        "25^{1/2}",
        "101_4",
        "5x",
        "x5",
        "no",
        "No",
    ]
    pool += [form for _, _, forms in itertools.islice(random_kinds(4), 12) for form in forms[:3]]
    triples = [pick.choices(pool, k=3) for _ in range(3000)]
    same = {
        (a, b): grader.group([a, b]) == [0, 0] for triple in triples for a, b in itertools.product(triple, repeat=2)
    }
    for a, b, c in triples:
        assert same[a, a]
        assert same[a, b] == same[b, a], (a, b)
        if same[a, b] and same[b, c]:
            assert same[a, c], (a, b, c)
