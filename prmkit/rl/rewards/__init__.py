"""Rewards of traces, as parts that are mixed: what RL maximises. Framework-free, over whole batches of traces.

`register_reward` adds a part from outside.
"""

from prmkit.rl.rewards.config import (
    REWARDS,
    RewardContext,
    RewardsConfig,
    WeightConfig,
    build_rewards,
    register_reward,
)
from prmkit.rl.rewards.group_outcomes import GroupCounts, count_groups
from prmkit.rl.rewards.mixture import BatchRewards, RewardMixture, RewardSum, WeightedPart
from prmkit.rl.rewards.outcome import (
    FormatConfig,
    FormatReward,
    LengthConfig,
    LengthReward,
    OutcomeConfig,
    OutcomeReward,
)
from prmkit.rl.rewards.process import PROCESS_FORMS, ProcessConfig, ProcessForm, ProcessReward, step_rewards
from prmkit.rl.rewards.process_weight import ChangingWeight, ProcessWeight
from prmkit.rl.rewards.records import Reward, RewardInput, RewardPart, step_ends, token_rewards
from prmkit.rl.rewards.tokens import ImplicitConfig, ImplicitReward, KLConfig, KLReward

__all__ = [
    "PROCESS_FORMS",
    "REWARDS",
    "BatchRewards",
    "ChangingWeight",
    "FormatConfig",
    "FormatReward",
    "GroupCounts",
    "ImplicitConfig",
    "ImplicitReward",
    "KLConfig",
    "KLReward",
    "LengthConfig",
    "LengthReward",
    "OutcomeConfig",
    "OutcomeReward",
    "ProcessConfig",
    "ProcessForm",
    "ProcessReward",
    "ProcessWeight",
    "Reward",
    "RewardContext",
    "RewardInput",
    "RewardMixture",
    "RewardPart",
    "RewardSum",
    "RewardsConfig",
    "WeightConfig",
    "WeightedPart",
    "build_rewards",
    "count_groups",
    "register_reward",
    "step_ends",
    "step_rewards",
    "token_rewards",
]
