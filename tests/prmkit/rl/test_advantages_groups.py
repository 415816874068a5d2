"""Group-relative advantages: hand-worked groups, exact slow twins, ragged groups, invariances."""

import math
import statistics

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.rl.advantages import (
    GroupConfig,
    Moments,
    dr_grpo,
    group_relative,
    grpo,
    outcome_advantages,
    process_advantages,
    process_group_relative,
    rloo,
    token_baseline,
)

NAN = math.nan


def rows(*values):
    return torch.tensor(values)


def counts(result):
    return int(result.groups), int(result.alone), int(result.same), int(result.excluded)


def all_of(rewards):
    return torch.ones(len(rewards), dtype=torch.bool)


def test_by_hand():
    # Two groups, interleaved: (1, 0, 0, 1) has mean 1/2 and variance 4 (1/4) / 3 = 1/3; (3, 1) has mean 2, variance 2.
    rewards = rows(1.0, 3.0, 0.0, 0.0, 1.0, 1.0)
    groups = rows(7, 4, 7, 7, 4, 7)
    unit = 0.5 * math.sqrt(3)
    got = grpo(rewards, groups, all_of(rewards))
    expected = [unit, 1 / math.sqrt(2), -unit, -unit, -1 / math.sqrt(2), unit]
    assert got.advantages.tolist() == pytest.approx(expected, abs=1e-5)
    assert dr_grpo(rewards, groups, all_of(rewards)).advantages.tolist() == [0.5, 1.0, -0.5, -0.5, -1.0, 0.5]
    # Leave one out: 1 - 1/3, 3 - 1, 0 - 2/3, 0 - 2/3, 1 - 3, 1 - 1/3.
    got = rloo(rewards, groups, all_of(rewards)).advantages.tolist()
    assert got == pytest.approx([2 / 3, 2.0, -2 / 3, -2 / 3, -2.0, 2 / 3])


def slow(rewards, groups, mask, leave_one_out, scale):
    out = []
    for i, r in enumerate(rewards):
        members = [j for j in range(len(rewards)) if groups[j] == groups[i] and mask[j]]
        kept = [rewards[j] for j in members]
        if not mask[i] or len(members) < 2 or max(kept) == min(kept):
            out.append(0.0)
            continue
        base = [rewards[j] for j in members if j != i] if leave_one_out else kept
        spread = statistics.stdev(kept) + 1e-6 if scale else 1.0
        out.append((r - statistics.fmean(base)) / spread)
    return out


def random_groups(seed, b=40):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 3, (b,), generator=generator) / 2
    groups = torch.randint(0, 12, (b,), generator=generator) * 1000 - 3000
    return rewards, groups, torch.rand(b, generator=generator) < 0.7


@pytest.mark.parametrize(("leave_one_out", "scale"), [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("seed", range(4))
def test_ragged_groups_equal_the_slow_twin(seed, leave_one_out, scale):
    rewards, groups, mask = random_groups(seed)
    got = group_relative(rewards, groups, mask, leave_one_out=leave_one_out, scale=scale)
    wanted = slow(rewards.tolist(), groups.tolist(), mask.tolist(), leave_one_out, scale)
    assert got.advantages.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("method", [grpo, dr_grpo, rloo])
def test_missing_rewards_leave_the_baseline(method):
    rewards = rows(1.0, NAN, 0.0, 5.0, NAN, 2.0, 2.0)
    groups = rows(0, 0, 0, 1, 1, 2, 2)
    mask = ~rewards.isnan()
    got = method(rewards, groups, mask)
    alone = method(rows(1.0, 0.0), rows(0, 0), all_of([1, 0]))
    assert got.advantages[[0, 2]].tolist() == alone.advantages.tolist()
    assert got.advantages[[1, 3, 4, 5, 6]].tolist() == [0.0] * 5
    assert got.signal.tolist() == [True, False, True, False, False, False, False]
    assert counts(got) == (3, 1, 1, 2)
    assert counts(method(rows(NAN, NAN), rows(3, 4), rows(False, False))) == (2, 2, 0, 2)


def test_equal_rewards_give_exactly_nothing():
    rewards = torch.full((8,), 0.1) * 3  # .3 is no binary fraction
    noisy = rewards + torch.tensor([0.0, 1e-8] * 4)
    for values in (rewards, noisy):
        got = grpo(values, torch.zeros(8, dtype=torch.long), all_of(values))
        assert got.advantages.tolist() == [0.0] * 8
        assert counts(got) == (1, 0, 1, 0)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo", "batch"])
def test_neither_the_order_of_rows_nor_the_names_of_groups_matter(method):
    rewards, groups, mask = random_groups(9)
    wanted = outcome_advantages(method, rewards, groups, mask).advantages
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(1))
    shuffled = outcome_advantages(method, rewards[order], 7 - groups[order], mask[order]).advantages
    torch.testing.assert_close(shuffled, wanted[order], rtol=0, atol=1e-6)


def test_batch_relative_is_one_group_and_takes_the_moments_of_other_ranks():
    rewards, groups, mask = random_groups(11)
    got = outcome_advantages("batch", rewards, groups, mask)
    kept = rewards[mask].tolist()
    mean, std = statistics.fmean(kept), statistics.stdev(kept)
    wanted = [(r - mean) / std if m else 0.0 for r, m in zip(rewards.tolist(), mask.tolist(), strict=True)]
    assert got.advantages.tolist() == pytest.approx(wanted, abs=1e-5)
    halves = [slice(0, 17), slice(17, 40)]
    moments = Moments.of(rewards[halves[0]], mask[halves[0]]) + Moments.of(rewards[halves[1]], mask[halves[1]])
    parts = [outcome_advantages("batch", rewards[h], groups[h], mask[h], moments).advantages for h in halves]
    torch.testing.assert_close(torch.cat(parts), got.advantages)


def test_process_form_by_hand():
    # Group of step rewards (1, 0) and (1, 1, 2): mean 1, squared deviations 0 1 0 0 1, variance 2/4, std 1/sqrt 2.
    step_rewards = torch.tensor([[1.0, 0.0, NAN], [1.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    root = math.sqrt(2)
    got = process_group_relative(step_rewards, mask, rows(0, 0), rows(True, True))
    assert got.advantages[0].tolist() == pytest.approx([-root, -root, 0.0], abs=1e-5)
    assert got.advantages[1].tolist() == pytest.approx([root, root, root], abs=1e-5)
    plain = process_group_relative(step_rewards, mask, rows(0, 0), rows(True, True), scale=False)
    assert plain.advantages.tolist() == [[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]
    # Less the mean the rewards are (0, -1) and (0, 0, 1).
    for gamma, wanted in ((0.5, [[-0.5, -1.0, 0.0], [0.25, 0.5, 1.0]]), (0.0, [[0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])):
        discounted = process_group_relative(step_rewards, mask, rows(0, 0), rows(True, True), scale=False, gamma=gamma)
        assert discounted.advantages.tolist() == wanted


def test_a_level_that_depends_on_the_number_of_the_step_only_is_no_signal_with_a_step_baseline():
    drifting = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    tokens = torch.full((2, 3), 6)
    still = process_advantages("step_baseline", drifting, tokens, rows(0, 0), rows(True, True), 0.0)
    assert not still.signal.any()
    assert still.advantages.abs().max() == 0
    drifting[0, 2] = 0.0
    got = process_advantages("step_baseline", drifting, tokens, rows(0, 0), rows(True, True), 0.0).advantages
    assert got[0, 2] < 0 < got[1, 2]
    assert got[:, :2].abs().max() == 0
    # The mean of all steps takes a level for a merit.
    assert process_advantages("grpo", drifting, tokens, rows(0, 0), rows(True, True), 0.0).advantages[0, 0] > 0


def slow_process(rewards, tokens, groups, row_mask, method, gamma):
    """Token by token, from the definitions."""
    out = []
    for i in range(len(rewards)):
        members = [j for j in range(len(rewards)) if groups[j] == groups[i] and row_mask[j] and any(tokens[j])]
        row = [0.0] * len(rewards[i])
        if i in members and len(members) > 1:
            steps = [s for s, n in enumerate(tokens[i]) if n]
            if method == "token_baseline":
                others = [j for j in members if j != i]
                earned = sum(rewards[j][s] for j in others for s, n in enumerate(tokens[j]) if n)
                rate = earned / sum(sum(tokens[j]) for j in others)
                own = {s: rewards[i][s] - tokens[i][s] * rate for s in steps}
            elif method == "step_baseline":
                means = {
                    s: statistics.fmean(rewards[j][s] for j in members if tokens[j][s])
                    for s in range(5)
                    if any(tokens[j][s] for j in members)
                }
                pool = [rewards[j][s] - means[s] for j in members for s, n in enumerate(tokens[j]) if n]
                scale = math.sqrt(sum(x * x for x in pool) / (len(pool) - 1)) + 1e-6
                own = {s: (rewards[i][s] - means[s]) / scale for s in steps}
            else:
                pool = [rewards[j][s] for j in members for s, n in enumerate(tokens[j]) if n]
                scale = statistics.stdev(pool) + 1e-6 if method == "grpo" else 1.0
                own = {s: (rewards[i][s] - statistics.fmean(pool)) / scale for s in steps}
            for s in steps:
                row[s] = sum(gamma ** (later - s) * value for later, value in own.items() if later >= s)
        out.append(row)
    return out


def random_steps(seed, b=24, s=5):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 9, (b, s), generator=generator)
    lengths = torch.randint(0, s + 1, (b,), generator=generator)
    tokens = torch.where(torch.arange(s) < lengths[:, None], tokens, 0)
    rewards = torch.rand(b, s, generator=generator).where(tokens > 0, NAN)
    groups = torch.randint(0, 6, (b,), generator=generator)
    return rewards, tokens, groups, torch.rand(b, generator=generator) < 0.8


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "step_baseline", "token_baseline"])
@pytest.mark.parametrize(("seed", "gamma"), [(0, 1.0), (1, 1.0), (2, 0.7), (3, 0.0)])
def test_process_methods_equal_the_slow_twin(seed, method, gamma):
    rewards, tokens, groups, row_mask = random_steps(seed)
    got = process_advantages(method, rewards, tokens, groups, row_mask, gamma)
    wanted = slow_process(*(x.tolist() for x in (rewards, tokens, groups, row_mask)), method, gamma)
    torch.testing.assert_close(got.advantages, torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    excluded = (~(row_mask & (tokens > 0).any(1))).sum()
    assert int(got.excluded) == int(excluded)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "step_baseline", "token_baseline"])
def test_process_methods_do_not_depend_on_padding_or_order(method):
    rewards, tokens, groups, row_mask = random_steps(5)
    wanted = process_advantages(method, rewards, tokens, groups, row_mask).advantages
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    pad = torch.zeros(24, 3, dtype=torch.long)
    padded = process_advantages(
        method,
        torch.cat([rewards, pad + NAN], 1)[order],
        torch.cat([tokens, pad], 1)[order],
        -groups[order],
        row_mask[order],
    ).advantages
    torch.testing.assert_close(padded[:, :5], wanted[order])
    assert padded[:, 5:].abs().sum() == 0


def test_a_baseline_per_token_pays_neither_for_long_steps_nor_for_many_steps():
    # Every token is worth the same, however it is cut into steps: nobody has an advantage.
    tokens = torch.tensor([[10, 0, 0, 0], [2, 3, 5, 0], [1, 1, 1, 7]])
    rewards = tokens * 0.1
    groups, every = rows(0, 0, 0), rows(True, True, True)
    fair = token_baseline(rewards, tokens, groups, every)
    assert fair.advantages.abs().max() < 1e-6
    assert counts(fair) == (1, 0, 1, 0)
    # Every step is worth the same: against a baseline per step nobody gains; per token, many short steps gain, one
    # long step loses.
    per_step = torch.where(tokens > 0, 1.0, 0.0)
    assert process_group_relative(per_step, tokens > 0, groups, every).advantages.abs().max() == 0
    by_token = token_baseline(per_step, tokens, groups, every).advantages
    assert float(by_token[0, 0]) == pytest.approx(1 - 10 * 7 / 20)
    assert float(by_token[2, 0]) == pytest.approx(4 - 10 * 4 / 20)


def test_group_of_one_is_refused_where_groups_are_compared():
    with pytest.raises(ConfigError, match=r"advantage\.size: got 1; accepted: an integer of at least 2.*nothing to be"):
        GroupConfig(size=1)
    assert GroupConfig(size=1, outcome="batch").size == 1
    with pytest.raises(ConfigError, match=r"advantage\.size"):
        GroupConfig(size=0, outcome="batch")
    with pytest.raises(ConfigError, match=r"advantage\.outcome"):
        GroupConfig(outcome="mean")
    with pytest.raises(ConfigError, match=r"advantage\.process"):
        GroupConfig(process="sum")
    with pytest.raises(ConfigError, match=r"advantage\.gamma"):
        GroupConfig(gamma=1.1)
    one = rows(1.0), rows(0), rows(True)
    with pytest.raises(ConfigError, match=r"advantage\.outcome"):
        outcome_advantages("mean", *one)
    with pytest.raises(ConfigError, match=r"advantage\.process"):
        process_advantages("sum", one[0][:, None], one[1][:, None], *one[1:])
