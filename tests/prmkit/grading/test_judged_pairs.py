r"""Hand-judged pairs: data/judged_pairs.jsonl has the kind each stands for, an answer or a whole text, the gold answer
and whether a mathematician calls them equal. Changing a verdict there needs a reason in docs/grading.md."""

import json
from collections import Counter
from pathlib import Path

import pytest

from prmkit.grading import MathGrader

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "data" / "judged_pairs.jsonl").open()]
# what the grader rejects although it is equal, with the reason; none is accepted that is not
DISAGREEMENTS: dict[tuple[str, str], str] = {
    ("1.2 m", "120\\text{ cm}"): "a single letter after a number may be a variable",
    ("3x cm", "3x"): "a unit in plain text follows a number only",
    ("The answer is 5 (five).", "5"): "two values side by side may be a hedge",
}


@pytest.fixture(scope="module")
def verdicts():
    with MathGrader() as grader:
        answers = [pair["answer"] if "answer" in pair else grader.extract(pair["text"]) for pair in PAIRS]
        grades = grader.grade([(answer, pair["gold"]) for answer, pair in zip(answers, PAIRS, strict=True)])
    return [grade.correct for grade in grades]


def test_pairs_are_many_and_of_every_kind():
    kinds = Counter(pair["kind"] for pair in PAIRS)
    assert len(PAIRS) >= 400
    assert len({json.dumps(pair) for pair in PAIRS}) == len(PAIRS)
    assert {"number", "relation", "list", "set", "tuple", "matrix", "base", "unit", "complex", "text", "box"} <= set(
        kinds
    )


def test_agreement(verdicts):
    wrong = [pair for pair, verdict in zip(PAIRS, verdicts, strict=True) if verdict != pair["equal"]]
    accepted = [pair for pair in wrong if not pair["equal"]]
    assert accepted == []
    assert {(pair.get("answer", pair.get("text")), pair["gold"]) for pair in wrong} == set(DISAGREEMENTS)
    assert 1 - len(wrong) / len(PAIRS) >= 0.97
