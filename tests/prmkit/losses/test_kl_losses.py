"""KL estimators against the exact divergence of small categoricals, by enumeration; entropy."""

import math

import pytest
import torch

from prmkit.errors import ConfigError
from prmkit.losses import KL_ESTIMATORS, RowWeights, categorical_kl, entropy_loss, kl_loss, kl_terms, row_weights

P, Q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
KL_PQ = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))
K2_MEAN = sum(p * math.log(p / q) ** 2 / 2 for p, q in zip(P, Q, strict=True))


def logits():
    return torch.tensor(P).log().requires_grad_()


def gradient_of(value, at):
    return torch.autograd.grad(value, at)[0]


def exact(of, at):
    """KL(pi || ref) or KL(ref || pi) from the definition, differentiated by autograd."""
    log_p, log_q = at.log_softmax(0), torch.tensor(Q).log()
    return (log_p.exp() * (log_p - log_q)).sum() if of == "pi" else (log_q.exp() * (log_q - log_p)).sum()


@pytest.mark.parametrize(("estimator", "mean"), [("k1", KL_PQ), ("k2", K2_MEAN), ("k3", KL_PQ), ("k3_k2", KL_PQ)])
def test_expected_values_by_enumeration(estimator, mean):
    terms = kl_terms(torch.tensor(P).log(), torch.tensor(Q).log(), estimator)
    assert float((torch.tensor(P) * terms).sum()) == pytest.approx(mean, rel=1e-5)
    if estimator != "k1":
        assert bool((terms >= 0).all())


@pytest.mark.parametrize(("estimator", "of"), [("k1", None), ("k2", "pi"), ("k3", "reference"), ("k3_k2", "pi")])
def test_expected_gradients_by_enumeration(estimator, of):
    """What the docstring says of each estimator as a loss: tokens are drawn from pi, the draw is not differentiated."""
    at = logits()
    terms = kl_terms(at.log_softmax(0), torch.tensor(Q).log(), estimator)
    got = gradient_of((torch.tensor(P) * terms).sum(), at)
    wanted = torch.zeros(3) if of is None else gradient_of(exact(of, at), at)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    assert of is None or wanted.abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_with_the_ratio_samples_of_another_policy_give_value_and_gradient_of_the_true_divergence(estimator):
    at, behaviour = logits(), torch.tensor([0.1, 0.6, 0.3])
    log_p = at.log_softmax(0)
    ratio = (log_p - behaviour.log()).exp()
    got = kl_loss(
        log_p[:, None],
        torch.tensor(Q).log()[:, None],
        torch.ones(3, 1, dtype=torch.bool),
        RowWeights(behaviour, torch.tensor(1)),  # every letter as often as the policy that wrote draws it
        estimator,
        ratio[:, None],
    )
    assert float(got.loss_sum.detach()) == pytest.approx(KL_PQ, rel=1e-5)
    torch.testing.assert_close(gradient_of(got.loss_sum, at), gradient_of(exact("pi", at), at), atol=1e-6, rtol=1e-5)


def test_k3_by_hand_and_bounded():
    d = torch.tensor([0.0, math.log(2.0), -math.log(2.0), 1e4, -1e4])
    terms = kl_terms(d, torch.zeros(5), "k3")
    assert terms[:3].tolist() == pytest.approx([0.0, 0.5 - 1 + math.log(2), 2.0 - 1 - math.log(2)], abs=1e-6)
    assert bool(torch.isfinite(terms).all())
    assert float(terms[3]) == pytest.approx(19.0)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_loss_sums_what_counts_with_the_weights_of_the_reduction(estimator):
    new = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, math.nan, math.nan]])
    reference = torch.tensor([[-1.5, -1.0, math.nan], [-0.7, math.nan, math.nan]])
    mask = ~new.isnan()
    got = kl_loss(new, reference, mask, row_weights("sequence", mask), estimator)
    f = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
        "k3_k2": lambda d: math.exp(-d) - 1 + d,
    }[estimator]
    assert float(got.loss_sum) == pytest.approx((f(0.5) + f(-1.0)) / 2 + f(0.2), rel=1e-5)
    assert int(got.count) == 2


def test_categorical_kl_is_exact_and_constant_shifts_do_not_matter():
    got = categorical_kl(torch.tensor(P).log() + 3.0, torch.tensor(Q).log() - 5.0)
    assert float(got) == pytest.approx(KL_PQ, rel=1e-5)


def test_entropy_is_rewarded():
    mask = torch.tensor([[True, True, False]])
    entropy = torch.tensor([[0.5, 1.0, math.nan]], requires_grad=True)
    got = entropy_loss(entropy, mask, row_weights("token", mask))
    got.loss_sum.backward()
    assert (float(got.loss_sum.detach()), int(got.count)) == (-1.5, 2)
    assert entropy.grad.tolist() == [[-1.0, -1.0, 0.0]]


def test_refusals():
    with pytest.raises(ConfigError, match=r"kl\.estimator: got 'k4'; accepted: k1 \| k2 \| k3 \| k3_k2"):
        kl_terms(torch.zeros(1), torch.zeros(1), "k4")
