"""The gate: a pair is promoted only when it is better by more than noise and its PRM still holds.

Better: the mean difference of per-problem results to the reference, paired by problem, resampled with replacement
(paired bootstrap, Efron and Tibshirani 1993, chapter 16); the lower end of its one-sided confidence interval must
lie above `min_gain`. The PRM: its AUROC and calibration error on traces of the new policy against those of the
reference's PRM on the reference's policy, within a tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prmkit.errors import ConfigError
from registry.metrics import ACCURACY, AUROC, CALIBRATION, Figure, Metrics

__all__ = ["GateConfig", "GateDecision", "evaluate_gate", "gate_word"]


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What a pair has to reach.

    Attributes:
        confidence: of the one-sided interval of the gain, in (0.5, 1).
        min_gain: the interval's lower end must lie above it; in units of `accuracy`.
        min_problems: problems that both were measured on, at least; at least 2.
        resamples: of the bootstrap; at least 100.
        seed: of the bootstrap.
        auroc_tolerance: how far the PRM's AUROC may fall below the reference's; at least 0.
        calibration_tolerance: how far its calibration error may rise above the reference's; at least 0.
        require_prm: the PRM's figures must be there.
    """

    confidence: float = 0.95
    min_gain: float = 0.0
    min_problems: int = 50
    resamples: int = 10_000
    seed: int = 0
    auroc_tolerance: float = 0.02
    calibration_tolerance: float = 0.02
    require_prm: bool = True

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1.0:
            raise ConfigError("gate.confidence", self.confidence, "a number in (0.5, 1)")
        if self.min_problems < 2:
            raise ConfigError("gate.min_problems", self.min_problems, "an integer of at least 2")
        if self.resamples < 100:
            raise ConfigError("gate.resamples", self.resamples, "an integer of at least 100")
        for name in ("auroc_tolerance", "calibration_tolerance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"gate.{name}", getattr(self, name), "a number of at least 0")


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate said, with the numbers it rests on.

    Attributes:
        passed: whether the pair may be promoted.
        reference: the version it was compared with, e.g. `math@3`; None for the first pair.
        dataset: the held-out set; None without metrics.
        reasons: each condition in words with its numbers, the met ones too.
        numbers: the same for machines.
        config: the conditions.
    """

    passed: bool
    reference: str | None
    dataset: str | None
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]
    config: GateConfig


def gate_word(passed: bool) -> str:
    """The word for a decision, the same everywhere: `passed` or `refused`."""
    return "passed" if passed else "refused"


class _Verdict:
    """Collects conditions."""

    def __init__(self) -> None:
        self.passed = True
        self.reasons: list[str] = []
        self.numbers: dict[str, float] = {}

    def add(self, met: bool, text: str, **numbers: float) -> None:
        self.passed = self.passed and met
        self.reasons.append(f"{'ok' if met else 'not met'}: {text}")
        self.numbers.update(numbers)


def evaluate_gate(
    candidate: Metrics | None, reference: Metrics | None, reference_name: str | None, config: GateConfig | None = None
) -> GateDecision:
    """The decision on a candidate.

    Args:
        candidate: its metrics; None does not pass.
        reference: metrics of the version to beat; None when there is no such version, or it has none.
        reference_name: that version; None when there is none, which leaves the gain out.
        config: the conditions; None takes the defaults.
    """
    config = config or GateConfig()
    verdict = _Verdict()
    if candidate is None:
        verdict.add(False, "there are no metrics; publish with them")
    elif reference_name is None:
        _enough(verdict, len(candidate.results), config)
        verdict.add(True, "there is no earlier version to be better than")
        _prm(verdict, candidate, None, config)
    elif reference is None:
        verdict.add(False, f"{reference_name} has no metrics to compare with")
    elif differing := _differing(candidate, reference):
        verdict.add(False, f"{reference_name} was measured otherwise: {', '.join(differing)}")
    else:
        _gain(verdict, candidate, reference, reference_name, config)
        _prm(verdict, candidate, reference, config)
    return GateDecision(
        passed=verdict.passed,
        reference=reference_name,
        dataset=candidate.dataset if candidate is not None else None,
        reasons=tuple(verdict.reasons),
        numbers=verdict.numbers,
        config=config,
    )


def _differing(one: Metrics, other: Metrics) -> list[str]:
    """What was measured otherwise, in words; nothing when figures may be compared."""
    found = [] if one.dataset == other.dataset else [f"on {other.dataset}, not {one.dataset}"]
    for key in sorted((set(one.protocol) | set(other.protocol)) - {"seed"}):
        mine, theirs = one.protocol.get(key), other.protocol.get(key)
        if mine != theirs:
            found.append(f"{key} {theirs!r}, not {mine!r}")
    return found


def _enough(verdict: _Verdict, problems: int, config: GateConfig) -> bool:
    met = problems >= config.min_problems
    verdict.add(met, f"{problems} problems, at least {config.min_problems} wanted", problems=problems)
    return met


def _gain(verdict: _Verdict, candidate: Metrics, reference: Metrics, name: str, config: GateConfig) -> None:
    import numpy as np

    from registry.bootstrap import resampled_means

    common = sorted(candidate.results.keys() & reference.results.keys())
    if not _enough(verdict, len(common), config):
        return
    mine = np.array([candidate.results[problem] for problem in common])
    theirs = np.array([reference.results[problem] for problem in common])
    means = resampled_means(mine - theirs, config.resamples, config.seed)
    gain, low = float((mine - theirs).mean()), float(np.quantile(means, 1 - config.confidence))
    high = float(np.quantile(means, config.confidence))
    # Never 0: the observed sample counts as one of the resamples.
    chance = (1 + int((means <= config.min_gain).sum())) / (1 + config.resamples)
    verdict.add(
        low > config.min_gain,
        f"{ACCURACY} {mine.mean():.4f} against {theirs.mean():.4f} of {name}: gain {gain:+.4f}, "
        f"{config.confidence:.0%} sure of at least {low:+.4f}, wanted above {config.min_gain:+.4f}",
        gain=gain,
        gain_low=low,
        gain_high=high,
        p_value=chance,
        candidate=float(mine.mean()),
        reference=float(theirs.mean()),
    )


def _prm(verdict: _Verdict, candidate: Metrics, reference: Metrics | None, config: GateConfig) -> None:
    worst = {AUROC: (-1.0, config.auroc_tolerance), CALIBRATION: (1.0, config.calibration_tolerance)}
    for name, (sign, tolerance) in worst.items():
        mine = candidate.figures.get(name)
        theirs = reference.figures.get(name) if reference is not None else None
        if mine is None:
            verdict.add(not config.require_prm, f"{name} was not measured")
        elif theirs is None:
            verdict.add(True, f"{name} {mine.value:.4f}, nothing to compare with", **{name: mine.value})
        else:
            _not_worse(verdict, name, mine, theirs, sign, tolerance)


def _not_worse(verdict: _Verdict, name: str, mine: Figure, theirs: Figure, sign: float, tolerance: float) -> None:
    """Whether a figure is worse by no more than the tolerance; `sign` is +1 where more is worse."""
    worse = sign * (mine.value - theirs.value)
    verdict.add(
        worse <= tolerance,
        f"{name} {mine.value:.4f} against {theirs.value:.4f}, may be worse by {tolerance:g}",
        **{name: mine.value, f"{name}_reference": theirs.value},
    )
