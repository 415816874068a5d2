"""Losses of policy optimisation on the tokens of sampled solutions: clipped surrogates, CISPO, GSPO.

Everything is per token, [B, T], one row a solution. A loss returns a weighted sum and a count, and figures for the logs
as sums; `prmkit.losses.normalising` divides by the count over all micro-batches and ranks. What is divided by what is
the reduction (`row_weights`): it needs nothing from other micro-batches but, for "group", the tokens and rows of a
row's whole group, which whoever makes the batch knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prmkit.errors import ConfigError, DataError
from prmkit.losses.output import LossOutput, MetricSum
from prmkit.plugins import POLICY_LOSSES, PolicyLossName

__all__ = [
    "LOG_RATIO_LIMIT",
    "REDUCTIONS",
    "PolicyLossConfig",
    "PolicyLossOutput",
    "Reduction",
    "RowWeights",
    "cispo_loss",
    "cispo_terms",
    "clip_loss",
    "clipped_terms",
    "group_totals",
    "importance_ratio",
    "policy_loss",
    "row_weights",
    "weighted_sum",
]

Reduction = Literal["token", "sequence", "group", "constant"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +- this before exp; beyond it no gradient flows."""


@dataclass(frozen=True)
class PolicyLossConfig:
    """Which surrogate, and what it is divided by.

    GRPO: the defaults with reduction "sequence". DAPO: clip_high .28, reduction "token". Dr. GRPO: "constant". GSPO:
    ratio "sequence", clip_low 3e-4, clip_high 4e-4, reduction "sequence". CISPO: kind "cispo", clip_low 1, reduction
    "token". PPO: the defaults.

    Attributes:
        kind: "clip" (`clipped_terms`), "cispo" (`cispo_terms`), or a loss registered from outside
            (`prmkit.plugins.register_loss`).
        ratio: of "token" probabilities, or one for the "sequence" (GSPO).
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; 0 <= clip_low <= 1, clip_high >= 0.
        dual_clip: bound above 1 on the loss of tokens with a negative advantage, in units of -advantage; 3 is usual.
            None sets none. Only with "clip".
        reduction: "token": mean over tokens. "sequence": mean over solutions of their means over tokens. "group": mean
            over groups of their means over tokens. "constant": sum over tokens by (solutions x max_tokens).
        max_tokens: the constant length of "constant", at least 1; None otherwise.
    """

    kind: PolicyLossName = "clip"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    reduction: Reduction = "token"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        POLICY_LOSSES.name_of(self.kind, "policy_loss.kind")
        choices = {"ratio": ("token", "sequence"), "reduction": REDUCTIONS}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ConfigError(f"policy_loss.{name}", getattr(self, name), " | ".join(accepted))
        if not 0.0 <= self.clip_low <= 1.0:
            raise ConfigError("policy_loss.clip_low", self.clip_low, "a number in [0, 1]")
        if not self.clip_high >= 0.0:
            raise ConfigError("policy_loss.clip_high", self.clip_high, "a number of at least 0")
        if self.dual_clip is not None and (self.kind != "clip" or not self.dual_clip > 1.0):
            raise ConfigError("policy_loss.dual_clip", self.dual_clip, "a number above 1 with kind = clip, or None")
        if (self.reduction == "constant") != (self.max_tokens is not None and self.max_tokens >= 1):
            raise ConfigError(
                "policy_loss.max_tokens",
                self.max_tokens,
                "an integer of at least 1 with reduction = constant, else None",
            )


@dataclass(frozen=True, slots=True)
class PolicyLossOutput:
    """A loss before normalisation, with figures for the logs.

    Attributes:
        loss: sum and count.
        metrics: by name.
    """

    loss: LossOutput
    metrics: Mapping[str, MetricSum]


@dataclass(frozen=True, slots=True)
class RowWeights:
    """How a reduction weighs the tokens of each row, and what the weighted sum is to be divided by.

    Attributes:
        weights: [B] float32, one for all tokens of a row; 0 for rows without tokens.
        count: scalar, int64. Adds up over micro-batches and ranks; the loader's window count is the sum of these.
    """

    weights: Tensor
    count: Tensor


def row_weights(
    reduction: Reduction,
    mask: Tensor,
    *,
    group_tokens: Tensor | None = None,
    group_rows: Tensor | None = None,
    max_tokens: int | None = None,
) -> RowWeights:
    """Weights and count of a reduction. With L_i the tokens of row i and rows without tokens left out:

    - "token": weight 1, count sum L_i. DAPO (arXiv 2503.14476, equation 8), over the global batch.
    - "sequence": weight 1 / L_i, count the rows. GRPO (arXiv 2402.03300, equation 3).
    - "group": weight n_g / N_g with n_g the rows and N_g the tokens of the row's group, count the rows. A mean over
      groups of their token means, each group weighing as much as it has rows.
    - "constant": weight 1, count rows x max_tokens. Dr. GRPO (arXiv 2503.20783, section 3).

    Args:
        reduction: one of REDUCTIONS.
        mask: [B, T] bool, True where a token counts.
        group_tokens, group_rows: [B] tokens that count, and rows that have any, in the row's whole group over all
            micro-batches and ranks; only for "group".
        max_tokens: only for "constant".

    Raises:
        ConfigError: unknown reduction, or "constant" without max_tokens.
        DataError: "group" without group_tokens and group_rows.
    """
    lengths = mask.sum(1)
    filled = lengths > 0
    match reduction:
        case "token":
            return RowWeights(filled.float(), lengths.sum())
        case "sequence":
            return RowWeights(filled / lengths.clamp(min=1), filled.sum())
        case "group":
            if group_tokens is None or group_rows is None:
                raise DataError('reduction "group" needs group_tokens and group_rows of every row\'s whole group')
            return RowWeights(filled * group_rows / group_tokens.clamp(min=1), filled.sum())
        case "constant":
            if max_tokens is None:
                raise ConfigError("policy_loss.max_tokens", None, "an integer with reduction = constant")
            return RowWeights(filled.float(), filled.sum() * max_tokens)
    raise ConfigError("policy_loss.reduction", reduction, " | ".join(REDUCTIONS))


def group_totals(mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that count, and rows that have any, of each row's group: two [B] int64, for reduction "group".

    Args:
        mask: [B, T] bool of all rows of a window, over micro-batches and ranks.
        groups: [B] integer ids.
    """
    ids, inverse = groups.unique(return_inverse=True)
    lengths = mask.sum(1)
    tokens, rows = (
        torch.zeros(len(ids), dtype=torch.int64, device=mask.device).index_add_(0, inverse, values)[inverse]
        for values in (lengths, (lengths > 0).long())
    )
    return tokens, rows


def weighted_sum(terms: Tensor, mask: Tensor, rows: RowWeights) -> LossOutput:
    """Sum over tokens that count of weight times term, and the reduction's count.

    Args:
        terms: [B, T]; what stands where mask is False, NaN included, does not matter.
        mask: [B, T] bool, True where a token counts.
        rows: from `row_weights`.
    """
    kept = torch.where(mask, terms.float(), 0.0)
    return LossOutput((kept.sum(1) * rows.weights).sum(), rows.count)


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: Literal["token", "sequence"] = "token"
) -> Tensor:
    """rho = pi / pi_old per token, [B, T] in float32, its logarithm clamped to +-20; 1 where mask is False.

    "sequence" is GSPO's (arXiv 2507.18071, equation 7): one ratio a row, the geometric mean of its tokens' ratios, in
    the paper's per-token form: every token has the row's value, and the gradient of its own log-probability. Weighed
    by 1 / L_i its gradient is that of the row's ratio.

    Args:
        logprobs: [B, T] under the policy that is trained; carries the gradient.
        old_logprobs: [B, T] under the policy at the beginning of the iteration.
        mask: [B, T] bool, True where a token counts.
        level: see above.
    """
    difference = torch.where(mask, logprobs.float() - old_logprobs.detach().float(), 0.0)
    if level == "sequence":
        mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        difference = torch.where(mask, mean.detach() + difference - difference.detach(), 0.0)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_terms(
    ratio: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) for every token, [B, T] (PPO, arXiv 1707.06347, equation 7;
    different bounds: DAPO, arXiv 2503.14476, equation 8).

    With `dual_clip` c, tokens with A < 0 lose at most -c A, so that a large ratio cannot blow the loss up (arXiv
    1912.09729, equation 5).
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    terms = torch.maximum(-ratio * advantages, -clipped * advantages)
    if dual_clip is None:
        return terms
    return torch.where(advantages < 0, torch.minimum(terms, -dual_clip * advantages), terms)


def cispo_terms(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float = 1.0, clip_high: float = 0.2
) -> Tensor:
    """-sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log pi for every token, [B, T] (CISPO, arXiv 2506.13585, equations
    4 and 5). No gradient passes through the ratio, and no token loses its gradient to the clip."""
    return -ratio.detach().clamp(1.0 - clip_low, 1.0 + clip_high) * advantages * logprobs.float()


def clip_loss(logprobs: Tensor, ratio: Tensor, advantages: Tensor, config: PolicyLossConfig) -> Tensor:
    """The loss "clip" of POLICY_LOSSES: `clipped_terms` with the bounds of a configuration, [B, T]."""
    del logprobs
    return clipped_terms(ratio, advantages, config.clip_low, config.clip_high, config.dual_clip)


def cispo_loss(logprobs: Tensor, ratio: Tensor, advantages: Tensor, config: PolicyLossConfig) -> Tensor:
    """The loss "cispo" of POLICY_LOSSES: `cispo_terms` with the bounds of a configuration, [B, T]."""
    return cispo_terms(logprobs, ratio, advantages, config.clip_low, config.clip_high)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: PolicyLossConfig,
    *,
    correction: Tensor | None = None,
    group_tokens: Tensor | None = None,
    group_rows: Tensor | None = None,
) -> PolicyLossOutput:
    """The surrogate of a configuration on one micro-batch of whole solutions.

    Metrics, over tokens: "ratio", "log_ratio_squared" (twice the k2 estimate of KL(old || new)), "approximate_kl" (its
    k3 estimate), "clipped_low" and "clipped_high" (share of tokens whose gradient a bound removed; for "cispo", whose
    weight it changed), and with `dual_clip` "clipped_dual".

    Args:
        logprobs: [B, T] under the policy that is trained; carries the gradient.
        old_logprobs: [B, T] under the policy at the beginning of the iteration, by the trainer.
        advantages: [B, T], or [B, 1] for one a row.
        mask: [B, T] bool, True where a token counts. Rows to be left out (no reward, truncated) are False throughout.
        config: see PolicyLossConfig.
        correction: [B, T] importance weights of generator against trainer (`prmkit.losses.policy_correction`); None is
            1.
        group_tokens, group_rows: for reduction "group", see `row_weights`.
    """
    safe_old = torch.where(mask, old_logprobs.detach().float(), 0.0)
    safe_new = torch.where(mask, logprobs.float(), 0.0)
    advantages = torch.where(mask, advantages.detach().float(), 0.0)
    ratio = importance_ratio(safe_new, safe_old, mask, config.ratio)
    terms = POLICY_LOSSES.find(config.kind, "policy_loss.kind")(safe_new, ratio, advantages, config)
    if terms.shape != ratio.shape:
        raise DataError(f"policy loss {config.kind!r} gave terms {list(terms.shape)} for tokens {list(ratio.shape)}")
    if correction is not None:
        terms = terms * torch.where(mask, correction.detach().float(), 0.0)
    rows = row_weights(
        config.reduction, mask, group_tokens=group_tokens, group_rows=group_rows, max_tokens=config.max_tokens
    )
    return PolicyLossOutput(
        weighted_sum(terms, mask, rows),
        _metrics(ratio.detach(), safe_new.detach() - safe_old, advantages, mask, config),
    )


def _metrics(
    ratio: Tensor, log_ratio: Tensor, advantages: Tensor, mask: Tensor, config: PolicyLossConfig
) -> dict[str, MetricSum]:
    low, high = ratio < 1.0 - config.clip_low, ratio > 1.0 + config.clip_high
    if config.kind == "clip":
        low, high = low & (advantages < 0), high & (advantages > 0)
    clamped = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    figures = {
        "ratio": ratio,
        "log_ratio_squared": clamped.square(),
        "approximate_kl": clamped.exp() - 1.0 - clamped,
        "clipped_low": low,
        "clipped_high": high,
    }
    if config.dual_clip is not None:
        figures["clipped_dual"] = (advantages < 0) & (ratio > config.dual_clip)
    return {name: MetricSum.over(values, mask) for name, values in figures.items()}
