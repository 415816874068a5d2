"""Parts of the reward against numbers worked by hand."""

import asyncio
import math

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.grading.exact import ExactGrader
from prmkit.records import Grade, Problem, Step, StepScores, Trace
from prmkit.rl.rewards import (
    FormatConfig,
    FormatReward,
    ImplicitConfig,
    ImplicitReward,
    KLConfig,
    KLReward,
    LengthConfig,
    LengthReward,
    OutcomeConfig,
    OutcomeReward,
    ProcessConfig,
    ProcessReward,
    Reward,
    RewardInput,
    step_ends,
    step_rewards,
    token_rewards,
)
from prmkit.scoring import TableScorer

PROBLEM = Problem("p", "q", "2")


def item(*steps, finish="stop", scores=None, answer=None, **logprobs):
    """Steps are texts, or (text, log-probabilities of its tokens)."""
    made = []
    for step in steps:
        text, logs = step if isinstance(step, tuple) else (step, (-0.5,) * len(step))
        made.append(Step(text, tuple(range(len(logs))), tuple(logs)))
    scored = None if scores is None else StepScores(tuple(scores))
    return RewardInput(PROBLEM, Trace("p", tuple(made), finish, answer, scored), **logprobs)


def ask(part, *items):
    return asyncio.run(part(list(items)))


class Grader(ExactGrader):
    """Counts what it is asked; the answer "slow" takes too long."""

    def __init__(self):
        super().__init__(lambda text: text.rpartition("=")[2] if "=" in text else None)
        self.asked = []

    def grade(self, pairs):
        self.asked.append(list(pairs))
        grades = super().grade(pairs)
        return [Grade(False, True) if answer == "slow" else g for g, (answer, _) in zip(grades, pairs, strict=True)]


def test_outcome_grades_each_distinct_answer_once():
    grader = Grader()
    batch = [item("a", "=2"), item("=3"), item("b", "=2"), item("none"), item("=slow"), item("=3", answer="2")]
    rewards = ask(OutcomeReward(grader, "\n", OutcomeConfig(right=1.0, wrong=-1.0)), *batch)
    values = [None if r is None else r.outcome for r in rewards]
    assert values == [1.0, -1.0, 1.0, -1.0, None, 1.0]
    assert grader.asked == [[("2", "2"), ("3", "2"), (None, "2"), ("slow", "2")]]


@pytest.mark.parametrize(("truncated", "reward"), [("wrong", 0.0), ("missing", None), ("grade", 1.0)])
def test_outcome_of_a_solution_that_was_cut_off(truncated, reward):
    (got,) = ask(OutcomeReward(Grader(), config=OutcomeConfig(truncated=truncated)), item("=2", finish="length"))
    assert got == (None if reward is None else Reward(reward))


def test_soft_overlong_punishment():
    part = LengthReward(LengthConfig(max_tokens=10, buffer=4))
    got = [r.outcome for r in ask(part, *(item("x" * n) for n in (1, 6, 7, 8, 10, 11, 100)))]
    assert got == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0])


def test_format():
    part = FormatReward(Grader(), "\n", FormatConfig(step_pattern=r"[a-z]*=?\d?"))
    batch = [item("ab", "=2"), item("ab", "c d", "=2"), item("ab"), item("=2", finish="length"), item()]
    assert [r.outcome for r in ask(part, *batch)] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert ask(FormatReward(Grader(), config=FormatConfig(answer=False)), item("ab")) == [Reward(1.0)]


SCORES = (0.9, 0.2, 0.6)
# centred .8, -.6, .2; at temperature 1 the shares are proportional to exp(-.8), exp(.6), exp(-.2)
WEIGHTS = (math.exp(-0.8), math.exp(0.6), math.exp(-0.2))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"form": "raw"}, (0.9, 0.2, 0.6)),
        ({"form": "centred"}, (0.8, -0.6, 0.2)),
        ({"form": "progress"}, (0.4, -0.7, 0.4)),
        ({"form": "progress", "start": 0.0}, (0.9, -0.7, 0.4)),
        ({"form": "last"}, (0.0, 0.0, 0.6)),
        (
            {"form": "min", "temperature": 1.0},
            tuple(w / sum(WEIGHTS) * c for w, c in zip(WEIGHTS, (0.8, -0.6, 0.2), strict=True)),
        ),
    ],
)
def test_process_forms_by_hand(config, expected):
    assert step_rewards(SCORES, ProcessConfig(**config)) == pytest.approx(expected)
    assert ask(ProcessReward(None, ProcessConfig(**config)), item("a", "b", "c", scores=SCORES))[
        0
    ].steps == pytest.approx(expected)


def test_min_form_is_close_to_the_minimum_and_progress_telescopes():
    assert sum(step_rewards(SCORES, ProcessConfig(form="min"))) == pytest.approx(-0.6, abs=1e-3)
    assert sum(step_rewards((0.0, 1.0), ProcessConfig(form="min", temperature=1e-3))) == -1.0, "no overflow"
    assert sum(step_rewards(SCORES, ProcessConfig(form="progress"))) == pytest.approx(0.6 - 0.5)


@pytest.mark.parametrize(
    ("form", "reward"), [("raw", 0.0), ("centred", -1.0), ("progress", -0.5), ("min", -1.0), ("last", 0.0)]
)
def test_writing_nothing_is_as_bad_as_the_worst_step(form, reward):
    part = ProcessReward(None, ProcessConfig(form=form))
    assert ask(part, item(scores=())) == [Reward(outcome=reward)]
    assert reward == sum(step_rewards((0.0,), ProcessConfig(form=form)))


def test_the_scorer_is_asked_once_for_each_distinct_trace_without_scores():
    class Counting(TableScorer):
        asked = ()

        async def score(self, question, steps):
            self.asked = (*self.asked, tuple(steps))
            return await super().score(question, steps)

    scorer = Counting({"a": 0.1, "b": 0.2})
    got = ask(ProcessReward(scorer), item("a", "b"), item("b"), item("a", "b"), item("b", scores=(0.7,)))
    assert [r.steps for r in got] == [(0.1, 0.2), (0.2,), (0.1, 0.2), (0.7,)]
    assert scorer.asked == (("a", "b"), ("b",))


def test_a_scorer_out_of_reach_gives_no_reward_and_says_so(caplog):
    class Flaky(TableScorer):
        async def score(self, question, steps):
            if steps[0] == "b":
                raise TimeoutError("no answer within 3 s")
            return await super().score(question, steps)

    got = ask(ProcessReward(Flaky({"a": 0.1})), item("a"), item("b"))
    assert got == [Reward(steps=(0.1,)), None]
    assert "TimeoutError: no answer within 3 s" in caplog.text
    with pytest.raises(ConfigError, match="a step that the table names"):
        ask(ProcessReward(Flaky({"a": 0.1})), item("c"))


def test_implicit_rewards_by_hand():
    it = item(
        ("a", (0.0, 0.0)),
        ("b", (0.0,)),
        prm_logprobs=(-1.0, -2.0, -3.0),
        prm_reference_logprobs=(-2.0, -1.5, -3.5),
    )
    assert ask(ImplicitReward(ImplicitConfig(beta=0.1)), it)[0].tokens == pytest.approx((0.1, -0.05, 0.05))
    assert ask(ImplicitReward(ImplicitConfig(beta=0.1, per="step")), it)[0].steps == pytest.approx((0.05, 0.05))


@pytest.mark.parametrize(
    ("form", "first", "second"),
    [("k1", -1.0, 0.5), ("k2", -0.5, -0.125), ("k3", -math.exp(-1.0), -(math.exp(0.5) - 1.5))],
)
def test_kl_rewards_by_hand(form, first, second):
    it = item(("a", (-1.0, -2.0)), reference_logprobs=(-2.0, -1.5))  # differences 1 and -.5
    assert ask(KLReward(KLConfig(form=form)), it)[0].tokens == pytest.approx((first, second))


def test_rewards_fall_on_the_last_tokens_of_their_steps():
    trace = item("ab", "c", "def").trace
    assert step_ends(trace) == (1, 2, 5)
    reward = Reward(outcome=10.0, steps=(1.0, 2.0, 3.0), tokens=(0.1,) * 6)
    placed = token_rewards(reward, trace)
    assert placed == pytest.approx((0.1, 1.1, 2.1, 0.1, 0.1, 13.1))
    assert sum(placed) == pytest.approx(reward.total)
    assert token_rewards(Reward(outcome=1.0), trace) == (0, 0, 0, 0, 0, 1.0)
    assert token_rewards(Reward(outcome=1.0), item().trace) == ()


def test_rewards_that_do_not_fit_are_refused():
    trace = item("ab", "c").trace
    with pytest.raises(DataError, match="rewards for 1 steps; the trace has 2"):
        token_rewards(Reward(steps=(1.0,)), trace)
    with pytest.raises(DataError, match="rewards for 2 tokens; the trace has 3"):
        token_rewards(Reward(tokens=(1.0, 2.0)), trace)
    with pytest.raises(DataError, match="step 1: no token ids"):
        step_ends(Trace("p", (Step("a"),), "stop"))
    with pytest.raises(DataError, match="problem p: 1 scores for 2 steps"):
        ask(ProcessReward(), item("a", "b", scores=(0.5,)))
    with pytest.raises(DataError, match="no scores and there is no scorer"):
        ask(ProcessReward(), item("a"))
    with pytest.raises(DataError, match="reference_logprobs: 0 values for 1 tokens"):
        ask(KLReward(), item("a"))
    with pytest.raises(DataError, match="prm_logprobs: 0 values"):
        ask(ImplicitReward(), item("a"))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OutcomeConfig(right=0.0), "outcome.right"),
        (lambda: OutcomeConfig(truncated="no"), "outcome.truncated"),
        (lambda: LengthConfig(1, 1), "length.max_tokens"),
        (lambda: LengthConfig(8, 8), "length.buffer"),
        (lambda: FormatConfig(step_pattern="("), "format.step_pattern"),
        (lambda: ProcessConfig(form="sum"), "process.form"),
        (lambda: ProcessConfig(temperature=0.0), "process.temperature"),
        (lambda: ProcessConfig(start=2.0), "process.start"),
        (lambda: ImplicitConfig(beta=0.0), "implicit.beta"),
        (lambda: ImplicitConfig(per="word"), "implicit.per"),
        (lambda: KLConfig(weight=-1.0), "kl.weight"),
        (lambda: KLConfig(form="k4"), "kl.form"),
    ],
)
def test_bad_configurations_name_the_field(make, field):
    with pytest.raises(ConfigError, match=rf"rewards\.{field}"):
        make()
