"""Surrogates, reductions and ratios: hand-worked numbers, slow twins, gradients by hand, invariances."""

import math

import pytest
import torch

from prmkit.errors import ConfigError, DataError
from prmkit.losses import (
    LossOutput,
    MetricSum,
    PolicyLossConfig,
    group_totals,
    importance_ratio,
    normalise,
    policy_loss,
    row_weights,
)
from prmkit.rl.advantages import grpo

NAN = math.nan


def one(value):
    return torch.tensor([[float(value)]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "config", "loss", "gradient"),
    [
        # ratio, A: loss is -min(rho A, clip(rho) A); its gradient in log pi is -rho A or, where clipped, 0.
        (1.0, 2.0, {}, -2.0, -2.0),
        (1.1, 2.0, {}, -2.2, -2.2),
        (1.5, 2.0, {}, -2.4, 0.0),
        (1.25, 2.0, {"clip_high": 0.28}, -2.5, -2.5),
        (1.5, 2.0, {"clip_high": 0.28}, -2.56, 0.0),
        (0.5, 2.0, {}, -1.0, -1.0),
        (0.5, -2.0, {}, 1.6, 0.0),
        (1.5, -2.0, {}, 3.0, 3.0),
        (5.0, -2.0, {}, 10.0, 10.0),
        (5.0, -2.0, {"dual_clip": 3.0}, 6.0, 0.0),
        (2.0, -2.0, {"dual_clip": 3.0}, 4.0, 4.0),
        (5.0, 2.0, {"dual_clip": 3.0}, -2.4, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, config, loss, gradient):
    new = one(math.log(ratio) - 1.0).requires_grad_()
    got = policy_loss(new, one(-1.0), one(advantage), one(1).bool(), PolicyLossConfig(**config))
    got.loss.loss_sum.backward()
    assert float(got.loss.loss_sum.detach()) == pytest.approx(loss, rel=1e-5)
    assert float(new.grad) == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize(("ratio", "weight"), [(1.0, 1.0), (1.1, 1.1), (3.0, 1.2), (0.1, 0.1)])
def test_cispo_by_hand(ratio, weight):
    new = one(math.log(ratio) - 1.0).requires_grad_()
    config = PolicyLossConfig("cispo", clip_low=1.0)
    got = policy_loss(new, one(-1.0), one(-2.0), one(1).bool(), config)
    got.loss.loss_sum.backward()
    assert float(got.loss.loss_sum.detach()) == pytest.approx(weight * 2.0 * (math.log(ratio) - 1.0), rel=1e-5)
    assert float(new.grad) == pytest.approx(weight * 2.0, rel=1e-5), "no token loses its gradient"


def test_gspo_ratio_is_the_geometric_mean_and_its_gradient_that_of_the_sequence():
    new = torch.tensor([[-1.0, -2.0, NAN, -0.5]]).requires_grad_()
    old = torch.tensor([[-1.2, -1.9, NAN, -0.8]])
    mask = torch.tensor([[True, True, False, True]])
    ratio = importance_ratio(torch.where(mask, new, 0.0), torch.where(mask, old, 0.0), mask, "sequence")
    s = math.exp((0.2 - 0.1 + 0.3) / 3)
    assert ratio.tolist() == [pytest.approx([s, s, 1.0, s])]
    config = PolicyLossConfig(ratio="sequence", clip_low=0.5, clip_high=0.5, reduction="sequence")
    got = policy_loss(new, old, torch.tensor([[2.0]]), mask, config).loss
    got.loss_sum.backward()
    assert float(got.loss_sum.detach()) == pytest.approx(-2.0 * s, rel=1e-5)
    # d/d log pi_t of -A exp(mean log ratio) = -A s / 3 for each of the three tokens.
    assert new.grad.tolist() == [pytest.approx([-2 * s / 3, -2 * s / 3, 0.0, -2 * s / 3], rel=1e-5)]
    new.grad = None
    tight = PolicyLossConfig(ratio="sequence", clip_low=3e-4, clip_high=4e-4, reduction="sequence")
    clipped = policy_loss(new, old, torch.tensor([[2.0]]), mask, tight)
    clipped.loss.loss_sum.backward()
    assert float(clipped.loss.loss_sum.detach()) == pytest.approx(-2.0 * 1.0004)
    assert new.grad.abs().sum() == 0, "the sequence is clipped as a whole"
    assert float(clipped.metrics["clipped_high"].mean) == 1.0


def test_gspo_gives_every_token_its_own_advantage():
    """The per-token form: the value is the sequence's ratio, the gradient at token t is -A_t s / L."""
    new = torch.tensor([[-1.0, -2.0]]).requires_grad_()
    config = PolicyLossConfig(ratio="sequence", clip_low=1.0, clip_high=1.0, reduction="sequence")
    every = torch.ones(1, 2, dtype=torch.bool)
    got = policy_loss(new, torch.tensor([[-1.2, -2.2]]), torch.tensor([[3.0, -1.0]]), every, config)
    got.loss.loss_sum.backward()
    s = math.exp(0.2)
    assert new.grad.tolist() == [pytest.approx([-3.0 * s / 2, s / 2], rel=1e-5)]


KINDS = {
    "ppo": {},
    "dapo": {"clip_high": 0.28, "dual_clip": 3.0},
    "grpo": {"reduction": "sequence"},
    "group": {"reduction": "group"},
    "dr_grpo": {"reduction": "constant", "max_tokens": 11},
    "gspo": {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04, "reduction": "sequence"},
    "cispo": {"kind": "cispo", "clip_low": 1.0},
}


def case(seed=0, b=12, t=7):
    """Rows with ragged masks (one of them empty), NaN wherever nothing counts, groups of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    mask = torch.arange(t) < lengths[:, None]
    mask[3] = False
    mask[5, 0] = False
    old = -torch.rand(b, t, generator=generator) * 2 - 0.1
    new = old + 0.4 * torch.randn(b, t, generator=generator)
    advantages = torch.randn(b, t, generator=generator)
    correction = torch.rand(b, t, generator=generator) + 0.5
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 0])
    filled = mask.any(1)
    group_tokens = torch.stack([mask[groups == g].sum() for g in groups])
    group_rows = torch.stack([filled[groups == g].sum() for g in groups])
    assert [x.tolist() for x in group_totals(mask, groups)] == [group_tokens.tolist(), group_rows.tolist()]
    hide = [x.where(mask, NAN) for x in (new, old, advantages, correction)]
    return [*hide, mask, group_tokens, group_rows]


def run(config, rows, new, old, advantages, correction, mask, group_tokens, group_rows):
    return policy_loss(
        new[rows],
        old[rows],
        advantages[rows],
        mask[rows],
        config,
        correction=correction[rows],
        group_tokens=group_tokens[rows],
        group_rows=group_rows[rows],
    )


def slow(config, new, old, advantages, correction, mask, group_tokens, group_rows):
    """(mean loss) in plain Python, straight from the definitions."""
    total = 0.0
    lengths = [sum(m) for m in mask]
    rows = sum(n > 0 for n in lengths)
    for i, length in enumerate(lengths):
        kept = [t for t in range(len(mask[i])) if mask[i][t]]
        logs = {t: new[i][t] - old[i][t] for t in kept}
        if config.ratio == "sequence" and kept:
            logs = dict.fromkeys(kept, sum(logs.values()) / length)
        for t in kept:
            rho, a = math.exp(logs[t]), advantages[i][t]
            clipped = min(max(rho, 1 - config.clip_low), 1 + config.clip_high)
            if config.kind == "cispo":
                term = -clipped * a * new[i][t]
            else:
                term = -min(rho * a, clipped * a)
                if config.dual_clip is not None and a < 0:
                    term = min(term, -config.dual_clip * a)
            divisor = {
                "token": sum(lengths),
                "sequence": length * rows,
                "group": group_tokens[i] / max(group_rows[i], 1) * rows,
                "constant": rows * (config.max_tokens or 0),
            }[config.reduction]
            total += term * correction[i][t] / divisor
    return total


@pytest.mark.parametrize("name", KINDS)
def test_losses_equal_the_slow_twin(name):
    config = PolicyLossConfig(**KINDS[name])
    data = case()
    got = run(config, slice(None), *data).loss
    wanted = slow(config, *(x.tolist() for x in data))
    assert float(got.mean) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("split", [[12], [1] * 12, [5, 7], [3, 1, 8]])
def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches(name, split):
    config = PolicyLossConfig(**KINDS[name])
    data = case(1)
    leaf = data[0].clone().requires_grad_()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)) if len(split) > 1 else torch.arange(12)
    total = row_weights(
        config.reduction, data[4], group_tokens=data[5], group_rows=data[6], max_tokens=config.max_tokens
    ).count
    losses, counts, ratios = 0.0, 0, None
    for rows in order.split(split):
        got = run(config, rows, leaf, *data[1:])
        part = normalise(got.loss.loss_sum, total, accumulation=len(split), ranks=1)
        (part / len(split)).backward()
        losses, counts = losses + float(part.detach()) / len(split), counts + int(got.loss.count)
        ratios = got.metrics["ratio"] if ratios is None else ratios + got.metrics["ratio"]
    assert counts == int(total)
    assert losses == pytest.approx(slow(config, *(x.tolist() for x in data)), rel=1e-4)
    whole = data[0].clone().requires_grad_()
    reference = run(config, slice(None), whole, *data[1:])
    normalise(reference.loss.loss_sum, total, ranks=1).backward()
    torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-5, atol=1e-7)
    assert torch.isfinite(leaf.grad).all()
    torch.testing.assert_close(ratios.mean, reference.metrics["ratio"].mean)


@pytest.mark.parametrize("name", KINDS)
def test_padding_changes_nothing(name):
    config = PolicyLossConfig(**KINDS[name])
    data = case(2)
    pad = torch.full((12, 4), NAN)
    padded = [torch.cat([pad, x, pad], 1) for x in data[:4]] + [
        torch.cat([pad > 0, data[4], pad > 0], 1),
        *data[5:],
    ]
    one, other = run(config, slice(None), *data), run(config, slice(None), *padded)
    torch.testing.assert_close(one.loss.loss_sum, other.loss.loss_sum)
    assert int(one.loss.count) == int(other.loss.count)
    for name in one.metrics:
        torch.testing.assert_close(one.metrics[name].mean, other.metrics[name].mean)


def test_reductions_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False], [False] * 3])
    token = row_weights("token", mask)
    assert (token.weights.tolist(), int(token.count)) == ([1.0, 1.0, 0.0], 4)
    sequence = row_weights("sequence", mask)
    assert (sequence.weights.tolist(), int(sequence.count)) == ([pytest.approx(1 / 3), 1.0, 0.0], 2)
    constant = row_weights("constant", mask, max_tokens=3)
    assert (constant.weights.tolist(), int(constant.count)) == ([1.0, 1.0, 0.0], 6)
    # One group of all: 2 rows with 4 tokens. The loss is then the mean over tokens, as "token" has it.
    group = row_weights("group", mask, group_tokens=torch.tensor([4, 4, 4]), group_rows=torch.tensor([2, 2, 2]))
    assert (group.weights.tolist(), int(group.count)) == ([0.5, 0.5, 0.0], 2)


def test_one_pass_without_clipping_is_the_plain_policy_gradient():
    """A policy over 3 letters, solutions of 2 letters: the gradient of GRPO on logits equals the sum of
    A (1[letter] - pi) / (letters), worked out without autograd."""
    logits = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    letters = torch.tensor([[0, 1], [2, 2], [1, 0], [2, 0]])
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    advantages = grpo(rewards, torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)).advantages
    new = logits.log_softmax(0)[letters]
    mask = torch.ones(4, 2, dtype=torch.bool)
    config = PolicyLossConfig(reduction="sequence", clip_low=1.0, clip_high=math.inf)
    got = policy_loss(new, new.detach(), advantages[:, None], mask, config)
    normalise(got.loss.loss_sum, got.loss.count, ranks=1).backward()
    pi = [math.exp(x) / sum(math.exp(y) for y in (0.3, -0.2, 0.5)) for x in (0.3, -0.2, 0.5)]
    wanted = [0.0, 0.0, 0.0]
    mean, std = 0.5, math.sqrt(1 / 3)
    for row, reward in zip(letters.tolist(), rewards.tolist(), strict=True):
        for letter in row:
            for v in range(3):
                wanted[v] -= (reward - mean) / std * ((v == letter) - pi[v]) / 8
    assert logits.grad.tolist() == pytest.approx(wanted, abs=1e-5)
    for kind in KINDS.values():  # on the first pass every surrogate has this direction
        logits.grad = None
        again = logits.log_softmax(0)[letters]
        all_in_one = torch.tensor([8, 8, 8, 8]), torch.tensor([4, 4, 4, 4])
        out = policy_loss(
            again,
            again.detach(),
            advantages[:, None],
            mask,
            PolicyLossConfig(**kind),
            group_tokens=all_in_one[0],
            group_rows=all_in_one[1],
        )
        out.loss.loss_sum.backward()
        scale = float(logits.grad @ torch.tensor(wanted)) / sum(w * w for w in wanted)
        assert (logits.grad / scale).tolist() == pytest.approx(wanted, abs=1e-5)


def test_metrics_by_hand():
    new = torch.tensor([[math.log(1.5), math.log(0.5), math.log(4.0), 0.0]])
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    mask = torch.tensor([[True, True, True, False]])
    got = policy_loss(new, torch.zeros(1, 4), advantages, mask, PolicyLossConfig(dual_clip=3.0)).metrics
    means = {name: float(metric.mean) for name, metric in got.items()}
    assert means["ratio"] == pytest.approx(2.0)
    assert means["clipped_high"] == pytest.approx(1 / 3)
    assert means["clipped_low"] == pytest.approx(1 / 3)
    assert means["clipped_dual"] == pytest.approx(1 / 3)
    logs = [math.log(x) for x in (1.5, 0.5, 4.0)]
    assert means["log_ratio_squared"] == pytest.approx(sum(x * x for x in logs) / 3)
    assert means["approximate_kl"] == pytest.approx(sum(math.exp(x) - 1 - x for x in logs) / 3)
    both = got["ratio"] + MetricSum(torch.tensor(1.0), torch.tensor(1))
    assert float(both.mean) == pytest.approx(7.0 / 4)


def test_log_ratios_are_bounded():
    new = torch.tensor([[0.0, -100.0]], requires_grad=True)
    old = torch.tensor([[-100.0, 0.0]])
    config = PolicyLossConfig(clip_low=1.0, clip_high=math.inf)
    got = policy_loss(new, old, torch.ones(1, 1), torch.ones(1, 2, dtype=torch.bool), config)
    got.loss.loss_sum.backward()
    assert float(got.loss.loss_sum.detach()) == pytest.approx(-math.exp(20.0), rel=1e-5)
    assert torch.isfinite(new.grad).all()


def test_nothing_that_counts_gives_zero_with_a_graph():
    new = torch.zeros(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    got = policy_loss(new, new.detach(), torch.ones(2, 1), nothing, PolicyLossConfig())
    got.loss.loss_sum.backward()
    assert (float(got.loss.loss_sum.detach()), int(got.loss.count)) == (0.0, 0)
    assert new.grad.abs().sum() == 0
    assert isinstance(got.loss, LossOutput)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "ppo"}, "kind"),
        ({"ratio": "step"}, "ratio"),
        ({"reduction": "mean"}, "reduction"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"dual_clip": 1.0}, "dual_clip"),
        ({"kind": "cispo", "dual_clip": 3.0}, "dual_clip"),
        ({"reduction": "constant"}, "max_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_bad_configurations_name_the_field(options, field):
    with pytest.raises(ConfigError, match=rf"policy_loss\.{field}"):
        PolicyLossConfig(**options)


def test_group_reduction_needs_to_know_the_groups():
    with pytest.raises(DataError, match="needs group_tokens and group_rows"):
        row_weights("group", torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"policy_loss\.reduction"):
        row_weights("mean", torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"policy_loss\.max_tokens"):
        row_weights("constant", torch.ones(1, 1, dtype=torch.bool))
