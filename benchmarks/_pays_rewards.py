"""The rewards that benchmarks/pays.py compares, as settings of configs/grpo/accumulator.yaml."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["REWARDS", "UPDATES", "Reward"]

UPDATES = 30
PRMKind = Literal["", "own", "short", "shuffled", "other"]


def pull(weight: float) -> tuple[str, ...]:
    """The pull to the reference, with a gradient that does not level off."""
    return ("--model.kl.weight", str(weight), "--model.kl.estimator", "k3_k2")


def steps(weight: float | dict[str, Any]) -> tuple[str, ...]:
    """Process rewards, every step judged by its own score; a weight, or how it changes."""
    form = ("--data.rewards.process.form", "raw", "--model.advantage.gamma", "0")
    return (*form, "--model.process_weight", json.dumps(weight))


@dataclass(frozen=True)
class Reward:
    """What a policy is trained on.

    Attributes:
        settings: of `prm fit`.
        prm: which PRM scores the steps; "" for none, "own" for that of the policy's labels, "short" for one of labels
            of problems of 4 to 7 operations only, "shuffled" for one that was trained on the same labels dealt to the
            wrong solutions, "other" for that of another seed's policy.
        lengths: (operations from, to, share of the tokens) of the prompts, one run after the other; 0 stands for the
            length that is measured, which () is all of.
    """

    settings: tuple[str, ...]
    prm: PRMKind = ""
    lengths: tuple[tuple[int, int, float], ...] = ()


OUTCOME = pull(0.1)
BOTH = (*steps(0.5), *pull(0.1))
REWARDS = {
    "outcome": Reward(OUTCOME),
    "outcome_large_groups": Reward((*OUTCOME, "--model.advantage.size", "32", "--data.iteration.prompts", "8")),
    "outcome_dynamic": Reward((*OUTCOME, "--data.dynamic_sampling", json.dumps({"max_waves": 2}))),
    "curriculum_short": Reward(OUTCOME, "", ((4, 10, 0.5), (0, 0, 0.5))),
    "curriculum_shortest": Reward(OUTCOME, "", ((4, 7, 0.5), (0, 0, 0.5))),
    "curriculum_sequential": Reward(OUTCOME, "", ((4, 7, 0.15), (8, 12, 0.2), (13, 18, 0.3), (0, 0, 0.35))),
    "curriculum_mixed": Reward(OUTCOME, "", ((4, 0, 1.0),)),
    "prm": Reward((*steps(1.0), *pull(0.6), "--data.rewards.outcome.weight", "0"), "own"),
    "both": Reward(BOTH, "own"),
    "both_mixed": Reward(BOTH, "own", ((4, 0, 1.0),)),
    "both_strong": Reward((*steps(1.0), *pull(0.1)), "own"),
    "both_linear": Reward((*steps({"follow": "linear", "start": 1.0, "updates": UPDATES}), *pull(0.1)), "own"),
    "both_unsolved": Reward((*steps({"follow": "unsolved", "start": 1.0}), *pull(0.1)), "own"),
    "both_short_labels": Reward(BOTH, "short"),
    "both_step_baseline": Reward((*BOTH, "--model.advantage.process", "step_baseline"), "own"),
    "both_shuffled": Reward(BOTH, "shuffled"),
    "both_other": Reward(BOTH, "other"),
}
