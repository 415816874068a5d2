"""The mixture: weighted sums, missing rewards, order of rows, bad parts."""

import asyncio
import math

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.grading.exact import ExactGrader
from prmkit.records import Problem, Step, StepScores, Trace
from prmkit.rl.rewards import (
    FormatConfig,
    ImplicitConfig,
    KLConfig,
    LengthConfig,
    OutcomeConfig,
    ProcessConfig,
    Reward,
    RewardInput,
    RewardMixture,
    RewardsConfig,
    RewardSum,
    WeightedPart,
    build_rewards,
)


class Fixed:
    """Gives what a table says for a problem's id."""

    def __init__(self, table):
        self.table = table
        self.seen = []

    async def __call__(self, batch):
        self.seen += [item.problem.id for item in batch]
        return [self.table[item.problem.id] for item in batch]


def item(name, finish="stop"):
    return RewardInput(Problem(name, "q", "2"), Trace(name, (Step("=2", (1, 2), (-1.0, -1.0)),), finish))


def run(parts, *items):
    return asyncio.run(RewardMixture(parts)(list(items)))


ONE = {"a": Reward(1.0), "b": Reward(0.0), "c": None}
TWO = {"a": Reward(steps=(0.5,)), "b": None, "c": Reward(tokens=(1.0, 2.0))}


def test_weighted_sum_and_values_of_the_parts():
    got = run({"one": WeightedPart(Fixed(ONE), 2.0), "two": WeightedPart(Fixed(TWO), -1.0)}, item("a"))
    assert got.rewards == (Reward(2.0, steps=(-0.5,)),)
    assert got.rewards[0].total == 1.5
    assert got.parts == {"one": (Reward(1.0),), "two": (Reward(steps=(0.5,)),)}


def test_a_missing_part_makes_the_reward_missing_and_is_counted():
    got = run({"one": WeightedPart(Fixed(ONE)), "two": WeightedPart(Fixed(TWO))}, item("a"), item("b"), item("c"))
    assert got.row_mask == (True, False, False)
    assert got.missing == {"one": 1, "two": 1}
    assert got.sums == {"one": RewardSum(1.0, 2), "two": RewardSum(3.5, 2), "reward": RewardSum(1.5, 1)}


def test_a_part_of_weight_0_is_logged_and_excludes_nobody():
    got = run({"one": WeightedPart(Fixed(ONE)), "two": WeightedPart(Fixed(TWO), 0.0)}, item("a"), item("b"))
    assert got.rewards == (Reward(1.0), Reward(0.0))
    assert got.missing == {"one": 0, "two": 1}
    assert got.sums["two"] == RewardSum(0.5, 1)


def test_aborted_traces_are_not_judged():
    part = Fixed(ONE)
    got = run({"one": WeightedPart(part, 0.0)}, item("a", "abort"), item("b"), item("c", "abort"))
    assert part.seen == ["b"]
    assert got.rewards == (None, Reward(), None)
    assert (got.aborted, got.missing) == (2, {"one": 0})


def test_rows_do_not_depend_on_their_order():
    parts = {"one": WeightedPart(Fixed(ONE)), "two": WeightedPart(Fixed(TWO), 0.5)}
    rows = [item("a"), item("b"), item("c"), item("a", "abort")]
    forward, backward = run(parts, *rows), run(parts, *rows[::-1])
    assert forward.rewards == backward.rewards[::-1]


@pytest.mark.parametrize("bad", [Reward(math.nan), Reward(steps=(math.nan,)), Reward(tokens=(0.0, math.nan))])
def test_nan_is_an_error_that_names_the_part_unless_it_is_declared_missing(bad):
    with pytest.raises(DataError, match=r"rewards\.mine: nan for a trace of problem a"):
        run({"mine": WeightedPart(Fixed({"a": bad}))}, item("a"))
    got = run({"mine": WeightedPart(Fixed({"a": bad}), nan_is_missing=True)}, item("a"))
    assert (got.rewards, got.missing) == ((None,), {"mine": 1})
    with pytest.raises(DataError, match=r"rewards\.mine: inf"):
        run({"mine": WeightedPart(Fixed({"a": Reward(math.inf)}), nan_is_missing=True)}, item("a"))


def test_refusals():
    class Short:
        async def __call__(self, batch):
            return []

    with pytest.raises(DataError, match=r"rewards\.short: 0 rewards for 1 traces"):
        run({"short": WeightedPart(Short())}, item("a"))
    with pytest.raises(DataError, match=r"rewards\.one: 2 step rewards for a trace of problem a with 1 steps"):
        run({"one": WeightedPart(Fixed({"a": Reward(steps=(1.0, 2.0))}))}, item("a"))
    with pytest.raises(DataError, match=r"rewards\.one: 1 token rewards .* with 2 tokens"):
        run({"one": WeightedPart(Fixed({"a": Reward(tokens=(1.0,))}))}, item("a"))
    with pytest.raises(ConfigError, match="at least one part"):
        RewardMixture({})
    with pytest.raises(ConfigError, match=r"rewards\.reward"):
        RewardMixture({"reward": WeightedPart(Fixed(ONE))})
    with pytest.raises(ConfigError, match=r"rewards\.one\.weight: got nan"):
        RewardMixture({"one": WeightedPart(Fixed(ONE), math.nan)})
    with pytest.raises(ConfigError, match="at least one of outcome"):
        RewardsConfig(outcome=None)


def test_the_whole_configuration_by_hand():
    config = RewardsConfig(
        outcome=OutcomeConfig(weight=1.0),
        process=ProcessConfig(weight=0.5, form="centred"),
        implicit=ImplicitConfig(weight=2.0, beta=0.1),
        kl=KLConfig(weight=0.01),
        length=LengthConfig(max_tokens=4, buffer=2, weight=3.0),
        format=FormatConfig(weight=0.25),
    )
    grader = ExactGrader(lambda text: text.rpartition("=")[2] if "=" in text else None)
    steps = (Step("a", (1,), (-1.0,)), Step("=2", (2, 3), (-1.0, -1.0)))
    trace = Trace("p", steps, "stop", scores=StepScores((0.5, 1.0)))
    row = RewardInput(Problem("p", "q", "2"), trace, (-2.0, -1.0, -1.0), (-1.0, -1.0, -0.5), (-1.0, -2.0, -1.0))
    got = asyncio.run(build_rewards(config, grader)([row]))
    assert list(got.parts) == ["outcome", "process", "implicit", "kl", "length", "format"]
    (reward,) = got.rewards
    assert reward.outcome == pytest.approx(1.0 - 3.0 * 0.5 + 0.25)  # right, 3 tokens of 2..4, good form
    assert reward.steps == pytest.approx((0.0, 0.5))
    assert reward.tokens == pytest.approx((2 * 0.0 - 0.01, 2 * 0.1, 2 * 0.05))
