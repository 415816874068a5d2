"""Several scorers as one, by hand-worked numbers."""

import asyncio

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.protocols import StepScorer
from prmkit.records import StepScores
from prmkit.scoring import EnsembleScorer, TableScorer
from prmkit.scoring.ensemble import pessimistic


def score(scorer, *steps):
    return asyncio.run(scorer.score("q", steps))


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", (0.6, 0.5, 0.5)), ("mean-std", (0.4, 0.5, 0.0)), ("min", (0.4, 0.5, 0.0))]
)
def test_scores_of_two(how, expected):
    one, other = TableScorer({"a": 0.4, "b": 0.5, "c": 1.0}), TableScorer({"a": 0.8, "b": 0.5, "c": 0.0})
    scorer = EnsembleScorer([one, other], how)
    assert isinstance(scorer, StepScorer)
    assert score(scorer, "a", "b", "c").values == pytest.approx(expected, abs=1e-15)


def test_three_disagree():
    """Mean 0.6, variance ((0.3)^2 + 0 + (0.3)^2) / 3 = 0.06."""
    assert pessimistic([0.3, 0.6, 0.9], "mean-std") == pytest.approx(0.6 - 0.06**0.5)
    assert pessimistic([0.0, 0.0, 1.0], "mean-std") == 0.0, "never below 0"
    assert pessimistic([0.1, 0.1, 0.1], "mean") == 0.1
    assert pessimistic([1.0, 1.0, 1.0], "mean-std") == 1.0


def test_one_member_is_itself_and_all_are_paid_for():
    table = {"a": 0.3, "b": 0.7}
    for how in ("mean", "mean-std", "min"):
        assert score(EnsembleScorer([TableScorer(table)], how), "a", "b").values == (0.3, 0.7)
    scorer = EnsembleScorer([TableScorer(table, tokens_per_step=3), TableScorer(table, tokens_per_step=4)])
    assert score(scorer, "a", "b").encoded_tokens == 14
    assert score(scorer, "a", "b").encoded_tokens == 0
    assert score(scorer).values == ()


class Short:
    async def score(self, question, steps):
        return StepScores((0.5,) * (len(steps) - 1))


def test_refusals():
    with pytest.raises(ConfigError, match=r"pessimism: got 'max'; accepted: mean \| mean-std \| min"):
        EnsembleScorer([TableScorer({})], "max")
    with pytest.raises(ConfigError, match=r"ensemble\.members"):
        EnsembleScorer([])
    with pytest.raises(DataError, match=r"\[2, 1\] scores for 2 steps"):
        score(EnsembleScorer([TableScorer({}, default=0.5), Short()]), "a", "b")
    with pytest.raises(ConfigError, match="table: got 'a'"):
        score(EnsembleScorer([TableScorer({"b": 1.0}), TableScorer({})]), "a")
