"""The loop: annotate, train the PRM, train the policy, evaluate, publish, gate; again with what came of it.

`config` says what a loop is, `settings` resolves it for an iteration, `plan` makes stages of it, `replay` mixes older
annotations in, `status` reads a run folder. Stages are processes (`prmkit.jobs.stages`); nothing here imports torch or
the registry.
"""

from prmkit.loop.config import HarderConfig, LoopConfig, StageConfig

__all__ = ["HarderConfig", "LoopConfig", "StageConfig"]
