"""GAE over tokens, over steps and over both: hand-worked numbers, the definition as a sum, and invariances."""

import math

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.rl.advantages import GAEConfig, gae, step_index, two_level_gae

NAN = math.nan


def twin(rewards, values, mask, gamma, lam, bootstrap):
    """The definition: A_t = sum_k (gamma lambda)^k delta_(t+k), over the entries that count, in plain Python."""
    rows = []
    for r, v, m, last in zip(rewards, values, mask, bootstrap, strict=True):
        kept = [t for t, counts in enumerate(m) if counts]
        following = [v[t] for t in kept[1:]] + [last]
        deltas = [r[t] + gamma * nxt - v[t] for t, nxt in zip(kept, following, strict=True)]
        row = [0.0] * len(r)
        for i, t in enumerate(kept):
            row[t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:]))
        rows.append(row)
    return rows


def random_case(seed, b=5, t=9):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(b, t, generator=generator), torch.randn(b, t, generator=generator)
    mask = torch.rand(b, t, generator=generator) < 0.6
    return rewards, values, mask, torch.randn(b, generator=generator)


def test_by_hand():
    # delta: 0 + .5 * 2 - 1 = 0;  0 + .5 * 4 - 2 = 0;  8 - 4 = 4.  A: 0 + .25 * 1 = .25;  0 + .25 * 4 = 1;  4.
    got = gae(
        torch.tensor([[0.0, 0.0, 8.0]]),
        torch.tensor([[1.0, 2.0, 4.0]]),
        torch.ones(1, 3, dtype=torch.bool),
        gamma=0.5,
        lam=0.5,
    )
    assert got.advantages.tolist() == [[0.25, 1.0, 4.0]]
    assert got.returns.tolist() == [[1.25, 3.0, 8.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_equals_the_definition(gamma, lam):
    rewards, values, mask, bootstrap = random_case(0)
    got = gae(rewards, values, mask, gamma, lam, bootstrap)
    wanted = twin(rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam, bootstrap.tolist())
    torch.testing.assert_close(got.advantages, torch.tensor(wanted))
    torch.testing.assert_close(got.returns, torch.where(mask, torch.tensor(wanted) + values, 0.0))


def test_lambda_0_is_the_td_error_and_lambda_1_is_return_minus_value():
    rewards, values, _, bootstrap = random_case(1)
    every = torch.ones_like(rewards, dtype=torch.bool)
    following = torch.cat([values[:, 1:], bootstrap[:, None]], 1)
    td = gae(rewards, values, every, 0.9, 0.0, bootstrap).advantages
    torch.testing.assert_close(td, rewards + 0.9 * following - values)
    returns = torch.zeros_like(rewards)
    for t in range(9):
        powers = 0.9 ** torch.arange(9 - t)
        returns[:, t] = (rewards[:, t:] * powers).sum(1) + 0.9 ** (9 - t) * bootstrap
    monte_carlo = gae(rewards, values, every, 0.9, 1.0, bootstrap)
    torch.testing.assert_close(monte_carlo.advantages, returns - values)
    torch.testing.assert_close(monte_carlo.returns, returns)


def test_what_the_mask_hides_does_not_matter_and_padding_changes_nothing():
    rewards, values, mask, bootstrap = random_case(2)
    wanted = gae(rewards, values, mask, 0.9, 0.8, bootstrap)
    hidden = gae(rewards.where(mask, NAN), values.where(mask, NAN), mask, 0.9, 0.8, bootstrap)
    torch.testing.assert_close(hidden.advantages, wanted.advantages)
    torch.testing.assert_close(hidden.returns, wanted.returns)
    left, right = torch.full((5, 3), NAN), torch.full((5, 2), NAN)
    padded = gae(
        torch.cat([left, rewards, right], 1),
        torch.cat([left, values, right], 1),
        torch.cat([left > 0, mask, right > 0], 1),
        0.9,
        0.8,
        bootstrap,
    )
    assert torch.equal(padded.advantages[:, 3:12], wanted.advantages)


def test_a_mask_with_the_wrong_polarity_is_noticed():
    rewards, values, mask, bootstrap = random_case(3)
    right = gae(rewards, values, mask, 1.0, 0.95, bootstrap).advantages
    wrong = gae(rewards, values, ~mask, 1.0, 0.95, bootstrap).advantages
    assert torch.equal(right != 0, mask)
    assert torch.equal(wrong != 0, ~mask)


def test_estimates_are_constants():
    rewards, values, mask, _ = random_case(4)
    got = gae(rewards.requires_grad_(), values.requires_grad_(), mask)
    assert not got.advantages.requires_grad
    assert not got.returns.requires_grad


def slow_two_level(sr, sv, tr, tv, index, c, last):
    """One row in plain Python: step advantages by the definition, tokens of each step backwards from them."""
    steps = twin([sr], [sv], [[True] * len(sr)], c.step_gamma, c.step_lam, [last])[0]
    tokens = [0.0] * len(tr)
    for s, advantage in enumerate(steps):
        own = [t for t, step in enumerate(index) if step == s]
        following = None
        for t in reversed(own):
            if following is None:
                tokens[t] = tr[t] + advantage
            else:
                delta = tr[t] + c.gamma * tv[following] - tv[t]
                tokens[t] = delta + c.gamma * c.lam * tokens[following]
            following = t
    return steps, tokens


def test_two_levels_equal_the_slow_twin():
    generator = torch.Generator().manual_seed(5)
    config = GAEConfig(gamma=0.97, lam=0.9, step_gamma=0.8, step_lam=0.6)
    index = torch.tensor([[-1, 0, 0, 1, -1, 1, 2, -1], [0, 1, 1, 1, 2, 2, 2, 2]])
    sr, sv = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    tr, tv = torch.randn(2, 8, generator=generator), torch.randn(2, 8, generator=generator)
    last = torch.tensor([0.0, 0.7])
    got = two_level_gae(sr, sv, torch.ones(2, 3, dtype=torch.bool), tr, tv, index, config, last)
    for row in range(2):
        steps, tokens = slow_two_level(*(x[row].tolist() for x in (sr, sv, tr, tv, index)), config, float(last[row]))
        assert got.step.advantages[row].tolist() == pytest.approx(steps, abs=1e-6)
        assert got.token.advantages[row].tolist() == pytest.approx(tokens, abs=1e-6)
    torch.testing.assert_close(got.token.returns, torch.where(index >= 0, got.token.advantages + tv, 0.0))
    torch.testing.assert_close(got.step.returns, got.step.advantages + sv)


def test_two_levels_by_hand_and_one_token_a_step():
    # Steps: rewards 0, 1; values .5, .25; gamma lambda 1: A = (0 + .25 - .5) + (1 - .25) = .5, .75.
    config = GAEConfig(1.0, 1.0, 1.0, 1.0)
    every = torch.ones(1, 2, dtype=torch.bool)
    sr, sv = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    one = two_level_gae(sr, sv, every, torch.zeros(1, 2), torch.randn(1, 2), step_index([(0, 1)], 2), config)
    assert one.token.advantages.tolist() == one.step.advantages.tolist() == [[0.5, 0.75]]
    # Step 0 has two tokens, values 3 and 4, the first with a reward of .1: A = .1 + 4 - 3 + .5.
    tokens = (torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([[3.0, 4.0, 9.0]]))
    two = two_level_gae(sr, sv, every, *tokens, step_index([(1, 2)], 3), config)
    assert two.token.advantages.tolist() == [pytest.approx([1.6, 0.5, 0.75])]


def test_refusals():
    for name in ("gamma", "lam", "step_gamma", "step_lam"):
        with pytest.raises(ConfigError, match=rf"advantage\.{name}: got 1\.1"):
            GAEConfig(**{name: 1.1})
