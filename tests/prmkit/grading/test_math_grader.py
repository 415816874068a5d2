import json
import os
import time
from fractions import Fraction

import pytest

from prmkit.errors import ConfigError
from prmkit.grading import ExactGrader, MathGrader
from prmkit.grading.normal import normalise, number
from prmkit.grading.pool import ComparisonPool
from prmkit.grading.reading import describe

BOMB = "9^{9^{9}}"


@pytest.fixture(scope="module")
def grader():
    with MathGrader(timeout=2.0) as grader:
        yield grader


EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac12", ".50"),
    ("1 1/2", "3/2"),
    (r"1\frac{1}{2}", "1.5"),
    ("-3/4", r"-\frac{3}{4}"),
    ("1,2,3", "3,2,1"),
    (r"\{1, 2\}", "2, 1"),
    ("1 and 2", "2, 1"),
    (r"1 \pm \sqrt{2}", r"1-\sqrt{2}, 1+\sqrt{2}"),
    (r"\pm 5", "-5, 5"),
    ("(1, 2), (3, 4)", "(3,4),(1,2)"),
    ("1,234", "1234"),
    (r"11,\! 520", "11520"),
    (r"\$18.00", "18"),
    (r"50\%", "50"),
    (r"90^\circ", "90"),
    (r"5\text{ cm}^2", "5"),
    (r"\text{(C)}", "C"),
    (r"\text{Friday}", "Friday"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    (r"\sqrt{8}", r"2\sqrt2"),
    ("2^{10}", "1024"),
    ("x=5", "5"),
    ("(x+1)^2", "x^2 + 2x + 1"),
    (r"(-\infty,1)\cup(2,3)", r"(2,3)\cup(-\infty,1)"),
    ("1<x<2", "(1,2)"),
    ("x>3", "3<x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]

DIFFERENT = [
    (".5", "50"),
    (r"50\%", ".5"),
    ("(0,1)", "[0,1]"),
    (r"(-\infty,1]\cup(2,3)", r"(-\infty,1)\cup(2,3)"),
    ("a+1", "c+1"),
    ("x", "y"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "1,2"),
    ("1,2", "1,2,2"),
    ("2", "42"),
    ("5 dogs and 6", "5"),
    ("0.333333", "1/3"),
    ("1/0", "0"),
    ("11/2", "1 1/2"),
    ("tea", "eat"),
    ("", ""),
    ("", "0"),
    ("1<x<2", "[1,2]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("__import__('os').system('touch owned')", "0"),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal(grader, left, right):
    assert [grade.correct for grade in grader.grade([(left, right), (right, left)])] == [True, True]


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different(grader, left, right):
    grades = grader.grade([(left, right), (right, left)])
    assert [(grade.correct, grade.timed_out) for grade in grades] == [(False, False)] * 2


def test_all_at_once_and_none(grader):
    pairs = EQUAL + DIFFERENT
    together = [grade.correct for grade in grader.grade([(None, "1"), *pairs])]
    assert together == [False] + [True] * len(EQUAL) + [False] * len(DIFFERENT)


def test_math500_gold_solutions(grader, data_dir):
    records = [json.loads(line) for line in (data_dir / "math" / "math500.jsonl").open()]
    answers = [grader.extract(record["solution"]) for record in records]
    assert (
        sum(g.correct for g in grader.grade([(a, r["answer"]) for a, r in zip(answers, records, strict=True)])) == 500
    )
    assert all(grade.correct for grade in grader.grade([(r["answer"], r["answer"]) for r in records]))
    # a neighbour's answer is right in three places: 7 after 7, 3 after 3, x=5 after 5
    shifted = [record["answer"] for record in records[1:] + records[:1]]
    assert sum(grade.correct for grade in grader.grade(list(zip(answers, shifted, strict=True)))) == 3


def test_gsm8k_gold_solutions(grader, data_dir):
    records = [json.loads(line) for line in (data_dir / "gsm8k" / "test.jsonl").open()]
    pairs = [(grader.extract(r["answer"]), r["answer"].split("####")[1].strip()) for r in records]
    assert sum(grade.correct for grade in grader.grade(pairs)) == len(pairs) == 1319


@pytest.mark.parametrize(
    "hostile", [BOMB, "[" * 50_000 + "]" * 50_000, "(" * 700 + ")" * 700, r"\frac{" * 300, "while True: pass"]
)
def test_hostile_input_is_bounded_and_survived(hostile):
    with MathGrader(timeout=1.0, workers=1) as grader:
        assert grader.grade([("x+x", "2x")])[0].correct  # started
        begin = time.monotonic()
        grades = grader.grade([(hostile, "5"), ("5", hostile), (hostile, "x+1")])
        assert time.monotonic() - begin < 30.0
        assert not any(grade.correct for grade in grades)
        assert all(grade.timed_out for grade in grades) or hostile not in (BOMB, "[" * 50_000 + "]" * 50_000)
        assert grader.grade([(hostile, hostile)])[0].correct
        assert grader.grade([("y+y", "2y")])[0].correct


def test_a_hostile_answer_costs_one_time_limit_whatever_the_number_of_partners():
    with MathGrader(timeout=1.0, workers=1) as grader:
        grader.grade([("x+x", "2x")])
        begin = time.monotonic()
        assert grader.group([f"x+{i}" for i in range(6)] + [BOMB]) == list(range(7))
        assert time.monotonic() - begin < 25.0


def test_group(grader):
    answers = ["1/2", None, "0.5", "x+1", BOMB, "1+x", r"\frac{2}{4}", "3", "3.0", BOMB, "(1,2)", "(2,1)"]
    assert grader.group(answers) == [0, -1, 0, 1, 2, 1, 0, 3, 3, 2, 4, 5]
    assert grader.group([]) == []


def test_verdicts_are_remembered():
    with MathGrader(timeout=1.0, workers=1) as grader:
        pair = [(BOMB, "5")]
        first = grader.grade(pair)
        begin = time.monotonic()
        assert [grader.grade(pair) for _ in range(100)] == [first] * 100
        assert time.monotonic() - begin < 0.5


def test_a_small_cache_changes_nothing():
    pairs = [(f"x+{i}", f"{i}+x") for i in range(8)]
    with MathGrader(workers=1, cache_size=1) as grader:
        assert all(grade.correct for grade in grader.grade(pairs) + grader.grade(pairs))


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (r" $\dfrac{1}{2}$. ", r"\frac{1}{2}"),
        (r"\( \tfrac 3 4 \)", r"\frac{3}{4}"),
        (r"\boxed{ x + 1 }", "x+1"),
        (r"\pi r^2", r"\pi r^2"),
        (r"2 \cdot x", r"2\cdot x"),
        ("1  1/2", "1 1/2"),
        (r"6\text{ and }7", "6, 7"),
        (r"\leftarrow", r"\leftarrow"),
        ("3.", "3"),
    ],
)
def test_normalise(text, spelling):
    assert normalise(text) == spelling
    assert normalise(spelling) == spelling


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", 7),
        ("-.5", Fraction(-1, 2)),
        ("+2", 2),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1,23", None),
        ("-1 1/2", Fraction(-3, 2)),
        (r"-2\frac{1}{3}", Fraction(-7, 3)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        ("1/0", None),
        ("--1", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_number(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7100", "number"),
        ("7, 100", "list"),
        ("7,100", "number"),
        (r"\{7,100\}", "set"),
        ("(1,2)", "tuple ()"),
        ("[0,1)", "tuple [)"),
        ("31_4", "digits in a base"),
        ("x_1", "expression"),
        ("2t", "expression"),
        ("2 cm", "quantity"),
        ("x=5", "value of a name"),
        ("0<x<5", "value of a name"),
        ("x+y=5", "relation"),
        ("f(1,2)", "expression"),
        ("(x+1)(x-2)", "expression"),
        ("(1,2", "text"),
        ("3:30 pm", "time of day"),
        ("2:3", "ratio"),
        ("(E) 7/2", "choice with its value"),
        ("she has 18 eggs left", "phrase with a number"),
        ("tea", "text"),
    ],
)
def test_kinds(text, kind):
    assert describe(text) == kind


def test_exact_grader():
    grader = ExactGrader(lambda text: text[-1:] or None)
    assert grader.extract("abc") == "c"
    assert [g.correct for g in grader.grade([("C", " C "), ("C", "c"), (None, "C")])] == [True, False, False]
    assert grader.group(["a", None, "b", "a "]) == [0, -1, 1, 0]


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"workers": 0}, {"memory_mb": 1}, {"cache_size": 0}, {"max_chars": 0}]
)
def test_bad_options(options):
    with pytest.raises(ConfigError, match=rf"grader\.{next(iter(options))}"):
        MathGrader(**options)


def test_workers_end_with_the_grader():
    pool = ComparisonPool(workers=2, timeout=5.0, memory_mb=2048)
    assert pool.run([("x+x", "2x"), ("x", "y"), ("x=2",), ("3/4",), ("while(",)]) == [
        *(True, False, True),
        *((0.75, 0.0), False),
    ]
    pids = [worker.process.pid for worker in pool._workers]
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert pool.run([("a+b", "b+a")]) == [True]  # and start again when needed
    pool.close()


def test_a_worker_that_dies_is_replaced():
    pool = ComparisonPool(workers=1, timeout=5.0, memory_mb=2048)
    assert pool.run([("x+x", "2x")]) == [True]
    pool._workers[0].process.kill()
    pool._workers[0].process.wait()
    assert pool.run([("x+x", "2x"), ("y+y", "2y")]) == [None, True]
    pool.close()
