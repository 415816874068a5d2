import pytest

from prmkit.errors import ConfigError
from prmkit.grading import extract_answer
from prmkit.grading.extract import (
    extract_answer_is,
    extract_boxed,
    extract_final_equation,
    extract_hashes,
    extract_last_number,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{\frac{2", "1"),  # the last one never closes
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),  # an escaped brace does not count
        (r"$\boxed 5$", "5"),
        (r"\fbox{ 7 }", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", None),
        ("boxed{5}", None),
    ],
)
def test_boxed(text, answer):
    assert extract_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\n#### 18", "18"),
        ("#### 1\n#### 1,234\nbye", "1234"),
        ("#### $2,000", "$2000"),
        ("####\n5", None),
        ("# 5", None),
    ],
)
def test_hashes(text, answer):
    assert extract_hashes(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is 3.5.", "3.5"),
        ("The answer is: (A). I hope it is correct.", "(A)"),
        ("The answer is 1.\nNo: the final answer is $\\frac12$.", "$\\frac12$"),
        ("**Answer:** 7", "7"),
        ("Answer: -4", "-4"),
        ("there is no such thing", None),
    ],
)
def test_answer_is(text, answer):
    assert extract_answer_is(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12 apples and -3.5 pears", "-3.5"),
        ("costs $1,234.50.", "1234.50"),
        ("a ratio of 3/4", "3/4"),
        ("x=-50", "-50"),
        ("5-3", "3"),
        (".5", ".5"),
        ("version2", None),
        ("none", None),
    ],
)
def test_last_number(text, answer):
    assert extract_last_number(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"), [("C=+1\n=-50", "-50"), ("= x+1 \n", "x+1"), ("a=5", None), ("=5\nend", None)]
)
def test_final_equation(text, answer):
    assert extract_final_equation(text) == answer


def test_order_and_choice():
    text = "The answer is 4.\n#### 5\nso \\boxed{6} of 7"
    assert extract_answer(text) == "6"
    assert extract_answer(text, ("hashes", "boxed")) == "5"
    assert extract_answer(text, ("last_number",)) == "7"
    assert extract_answer("nothing") is None


def test_bad_names():
    with pytest.raises(ConfigError, match=r"grader\.extractors: got 'regex'; accepted: boxed \| hashes"):
        extract_answer("5", ("regex",))
    with pytest.raises(ConfigError, match="at least one of"):
        extract_answer("5", ())
