"""From prompts to rollouts with rewards, with policies and PRMs whose every answer is known."""

import asyncio
from dataclasses import replace

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.records import Problem, SamplingParams, Step, StepScores, Trace
from prmkit.rl.rewards import ImplicitConfig, KLConfig, OutcomeConfig, ProcessConfig, Reward, RewardsConfig
from prmkit.rl.rollouts import DynamicSampling, Judge, Rollout, has_signal, roll_out, rollout_sums, sample_group
from prmkit.scoring import TableScorer

SAMPLING = SamplingParams(32)


def coin(steps):
    """A first step, then an answer that follows from it in nine of ten cases; sometimes nothing at all."""
    if not steps:
        return {"heads": 0.5, "tails": 0.5}
    return {("=1" if steps[0] == "heads" else "=0"): 1.0} if len(steps) == 1 else {}


def prompts(*numbers: int) -> list[tuple[int, Problem]]:
    return [(number, Problem(f"p{number}", "q", "1")) for number in numbers]


@pytest.fixture
def judge(last_step_grader):
    def make(config=None, **parts):
        return Judge(config or RewardsConfig(), last_step_grader, **parts)

    return make


def run(numbers, engine, judge, size=4, sampling=SAMPLING, seed=0):
    return asyncio.run(roll_out(prompts(*numbers), engine, judge, size, sampling, seed))


def test_groups_keep_ids_logprobs_and_rewards_together(tree_policy, judge):
    groups = run((3, 5), tree_policy(coin), judge())
    assert [[rollout.group for rollout in group] for group in groups] == [[3] * 4, [5] * 4]
    for rollout in (r for group in groups for r in group):
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert tuple(token for step in rollout.trace.steps for token in step.token_ids) == rollout.token_ids
        right = rollout.trace.steps[0].text == "heads"
        assert rollout.reward.total == float(right)
        assert rollout.parts == {"outcome": float(right)}


def test_a_group_depends_on_its_number_and_the_seed_alone(tree_policy, judge):
    engine = tree_policy(coin)
    whole = {group[0].group: group for group in run(range(8), engine, judge())}
    for number, alone in ((6, run((6,), engine, judge())), (2, run((2, 7), engine, judge())[:1])):
        assert alone == [whole[number]]
    assert run((6,), engine, judge(), seed=1) != [whole[6]]
    assert len({tuple(r.token_ids for r in group) for group in whole.values()}) > 1


def test_scores_are_asked_once_and_travel_with_the_trace(tree_policy, judge):
    asked = []

    def score(question, steps):
        asked.append(steps)
        return 0.25 * len(steps)

    config = RewardsConfig(OutcomeConfig(weight=0.0), ProcessConfig(form="raw"))
    (group,) = run((0,), tree_policy(coin), judge(config, scorer=TableScorer(score)), size=6)
    assert all(rollout.trace.scores.values == (0.25, 0.5) for rollout in group)
    assert all(rollout.reward.total == 0.75 and rollout.reward.steps == (0.25, 0.5) for rollout in group)
    assert len(asked) == 2 * len({tuple(s.text for s in r.trace.steps) for r in group})


def test_kl_reward_sees_the_reference_of_every_token(tree_policy, judge):
    def reference(rollouts):
        return {"reference_logprobs": [tuple(value - 0.5 for value in rollout.logprobs) for rollout in rollouts]}

    config = RewardsConfig(None, kl=KLConfig(weight=2.0))
    (group,) = run((0,), tree_policy(coin), judge(config, token_scores=reference))
    for rollout in group:
        assert rollout.reward.total == pytest.approx(-2.0 * 0.5 * len(rollout.token_ids))


def test_nothing_but_an_end_of_sequence_keeps_its_token(tree_policy, judge):
    (group,) = run((0,), tree_policy(lambda steps: {}), judge(), size=2)
    assert [rollout.trace.steps for rollout in group] == [(), ()]
    assert all(len(rollout.token_ids) == 1 and rollout.reward.total == 0.0 for rollout in group)


def test_parts_without_what_they_need_are_refused_before_any_rollout(judge):
    for config, message in (
        (RewardsConfig(process=ProcessConfig()), "rewards.process: got"),
        (RewardsConfig(kl=KLConfig()), "rewards.kl: got"),
        (RewardsConfig(implicit=ImplicitConfig()), "rewards.implicit: got"),
    ):
        with pytest.raises(ConfigError, match=message):
            judge(config)


def test_truncated_sampling_is_refused(tree_policy):
    for change in ({"top_p": 0.9}, {"top_k": 5}):
        with pytest.raises(ConfigError, match=r"rollouts.sampling.top_p, top_k: got"):
            asyncio.run(sample_group(Problem("p", "q", "1"), 0, tree_policy(coin), 2, replace(SAMPLING, **change), 0))


def test_a_reward_that_is_nan_is_an_error_that_names_the_part(tree_policy, judge):
    class Broken:
        async def score(self, question, steps):
            return StepScores((float("nan"),) * len(steps))

    with pytest.raises(DataError, match=r"rewards.process: nan for a trace of problem p0"):
        run((0,), tree_policy(coin), judge(RewardsConfig(process=ProcessConfig()), scorer=Broken()))


def rollouts(*totals: float | None) -> list[Rollout]:
    """A group with these outcomes; None has no reward."""
    trace = Trace("p", (Step("a", (1, 2)), Step("b", (3,))), "stop")
    blank = Rollout(Problem("p", "q", "1"), 0, (0,), (1, 2, 3), (0.0,) * 3, trace)
    return [replace(blank, reward=None if t is None else Reward(t), parts={"outcome": t}) for t in totals]


@pytest.mark.parametrize(
    ("totals", "config", "kept"),
    [
        ((0.0, 1.0), DynamicSampling(), True),
        ((1.0, 1.0), DynamicSampling(), False),
        ((0.0, None), DynamicSampling(), False),
        ((None, 0.0, 1.0), DynamicSampling(), True),
        ((0.3, 0.3 + 1e-9), DynamicSampling(), False),
        ((0.0, 0.0, 0.0, 1.0), DynamicSampling(low=0.2, high=0.8), True),
        ((0.0,) * 7 + (1.0,), DynamicSampling(low=0.2, high=0.8), False),
        ((1.0,) * 7 + (0.0,), DynamicSampling(low=0.2, high=0.8), False),
        ((1.0,) * 7 + (0.0,), DynamicSampling(low=0.2), True),
    ],
)
def test_signal(totals, config, kept):
    assert has_signal(rollouts(*totals), config) is kept


def test_signal_of_a_part_that_is_not_there():
    with pytest.raises(ConfigError, match=r"dynamic_sampling.part: got 'process'; accepted: outcome"):
        has_signal(rollouts(0.0, 1.0), DynamicSampling("process"))


@pytest.mark.parametrize("change", [{"oversample": 0.5}, {"max_waves": 0}, {"low": 0.8, "high": 0.2}])
def test_settings_out_of_range(change):
    with pytest.raises(ConfigError, match="dynamic_sampling"):
        DynamicSampling(**change)


def test_sums_add_up_over_processes():
    rows = rollouts(1.0, 0.0, None)
    whole = rollout_sums(rows)
    parts = [rollout_sums(rows[:1]), rollout_sums(rows[1:])]
    for name, (total, count) in whole.items():
        assert total == sum(p[name][0] for p in parts if name in p)
        assert count == sum(p[name][1] for p in parts if name in p)
    assert whole["reward"] == whole["outcome"] == (1.0, 2)
    assert whole["length"] == (9.0, 3)
    assert whole["steps"] == (6.0, 3)
    assert whole["step_length"] == (9.0, 6)
    assert whole["missing"] == (1.0, 3)
    assert whole["truncated"] == (0.0, 3)
