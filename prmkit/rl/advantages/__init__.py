"""Advantages: pure functions on tensors, with a critic (GAE) or relative to a group. Masks are True where it counts."""

from prmkit.rl.advantages.critic import Estimates, GAEConfig, TwoLevelEstimates, gae, two_level_gae
from prmkit.rl.advantages.groups import (
    OUTCOME_METHODS,
    PROCESS_METHODS,
    GroupAdvantages,
    GroupConfig,
    OutcomeMethod,
    ProcessMethod,
    batch_relative,
    dr_grpo,
    group_relative,
    grpo,
    outcome_advantages,
    process_advantages,
    process_group_relative,
    rloo,
    token_baseline,
)
from prmkit.rl.advantages.moments import Moments, whiten
from prmkit.rl.advantages.steps import StepTable, rewards_to_go, spread_steps, step_index, step_table, step_token_counts

__all__ = [
    "OUTCOME_METHODS",
    "PROCESS_METHODS",
    "Estimates",
    "GAEConfig",
    "GroupAdvantages",
    "GroupConfig",
    "Moments",
    "OutcomeMethod",
    "ProcessMethod",
    "StepTable",
    "TwoLevelEstimates",
    "batch_relative",
    "dr_grpo",
    "gae",
    "group_relative",
    "grpo",
    "outcome_advantages",
    "process_advantages",
    "process_group_relative",
    "rewards_to_go",
    "rloo",
    "spread_steps",
    "step_index",
    "step_table",
    "step_token_counts",
    "token_baseline",
    "two_level_gae",
    "whiten",
]
