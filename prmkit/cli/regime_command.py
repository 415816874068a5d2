"""The command that follows a verdict of `prm regime`, as words of a shell; a word in capitals is for the user."""

from __future__ import annotations

import json
from dataclasses import dataclass

from prmkit.cli.options import ProblemSource
from prmkit.evaluation.regime_verdict import Verdict
from prmkit.tasks import BUILT_IN_TASKS
from prmkit.types import Task

__all__ = ["LookedAt", "training_command"]


@dataclass(frozen=True)
class LookedAt:
    """What a verdict is about.

    Attributes:
        policy, prms: folders or names.
        source: the problems, its split named.
        task: that they are of.
        max_tokens: limit of a solution.
    """

    policy: str
    prms: tuple[str, ...]
    source: ProblemSource
    task: Task
    max_tokens: int

    @property
    def small(self) -> bool:
        return self.source.task in BUILT_IN_TASKS


def training_command(found: Verdict, what: LookedAt) -> list[str]:
    """SFT, harder problems, the loop that makes a PRM from easier problems, or a fit by GRPO."""
    if found.regime == "solved":
        return ["prm", "regime", "--policy", what.policy, "--task", what.source.task, "--task_options", "HARDER"]
    if found.reward == "nothing":
        if what.small:
            return ["prm", "fit", "--config", f"configs/sft/{what.source.task}.yaml"]
        return ["prm", "fit", "--config", "configs/sft/qwen2.5-math.yaml", "--model.source.path", what.policy]
    if found.reward == "prm_or_curriculum":
        return ["prm", "loop", "--config", "configs/loop/easy_to_hard.yaml", "--sft", "null", "--start", what.policy]
    config = "configs/grpo/accumulator.yaml" if what.small else "configs/grpo/qwen2.5-math-1.5b.yaml"
    words = ["prm", "fit", "--config", config, "--model.source.path", what.policy, *_problems(what)]
    words += ["--data.max_tokens", str(what.max_tokens)]
    if not what.small:
        words += ["--model.step_format", "null"]
    if found.process_weight is None:
        return words if what.small else [*words, "--data.rewards.process", "null", "--data.prm", "null"]
    path = what.prms[0] if len(what.prms) == 1 else json.dumps(what.prms)
    words += ["--data.prm.path", path, "--data.rewards.process.form", "raw", "--model.advantage.gamma", "0"]
    return [*words, "--model.process_weight", found.process_weight]


def _problems(what: LookedAt) -> list[str]:
    """Settings of the problems to train and to validate on: those of the split `train`, where there is one."""
    words: list[str] = []
    source, splits = what.source, what.task.splits
    train = "train" if "train" in splits else str(source.split)
    for where, split in (("prompts", train), ("validation", str(source.split))):
        options = dict(source.task_options)
        if split != source.split and source.split == "hard" and source.task == "accumulator":
            options["hard_share"] = 1.0  # the same lengths, of other problems
        words += [f"--data.{where}.task", source.task, f"--data.{where}.split", split]
        words += [] if source.data is None else [f"--data.{where}.data", source.data]
        words += [f"--data.{where}.task_options", json.dumps(options)] if options else []
    return words
