import asyncio

import pytest

from prmkit.errors import ConfigError
from prmkit.protocols import StepScorer
from prmkit.scoring import TableScorer


def score(scorer, *steps):
    return asyncio.run(scorer.score("q", steps))


def test_looks_up_steps_and_counts_new_ones():
    scorer = TableScorer({"a": 0.25, "b": 1}, default=0.5, tokens_per_step=3)
    assert isinstance(scorer, StepScorer)
    assert score(scorer, "a", "b", "z").values == (0.25, 1.0, 0.5)
    assert score(scorer, "a", "b", "a").encoded_tokens == 3
    assert score(scorer, "a", "b").encoded_tokens == 0
    assert score(scorer).values == ()


def test_a_function_sees_question_and_steps():
    scorer = TableScorer(lambda question, steps: len(question + "".join(steps)) / 10)
    assert score(scorer, "a", "bb").values == (0.2, 0.4)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [(TableScorer({}), "table: got 'a'"), (TableScorer({"a": 1.5}), r"table: got 1.5; accepted: a score in \[0, 1\]")],
)
def test_refusals(scorer, message):
    with pytest.raises(ConfigError, match=message):
        score(scorer, "a")
