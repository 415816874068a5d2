"""Rewards of traces, as parts that are mixed: what RL maximises. Framework-free, over whole batches of traces."""

from prmkit.rewards.config import RewardsConfig, build_rewards
from prmkit.rewards.group_outcomes import GroupCounts, count_groups
from prmkit.rewards.mixture import BatchRewards, RewardMixture, RewardSum, WeightedPart
from prmkit.rewards.outcome import (
    FormatConfig,
    FormatReward,
    LengthConfig,
    LengthReward,
    OutcomeConfig,
    OutcomeReward,
)
from prmkit.rewards.process import PROCESS_FORMS, ProcessConfig, ProcessForm, ProcessReward, step_rewards
from prmkit.rewards.process_weight import ChangingWeight, ProcessWeight
from prmkit.rewards.records import Reward, RewardInput, RewardPart, step_ends, token_rewards
from prmkit.rewards.tokens import ImplicitConfig, ImplicitReward, KLConfig, KLReward

__all__ = [
    "PROCESS_FORMS",
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
    "RewardInput",
    "RewardMixture",
    "RewardPart",
    "RewardSum",
    "RewardsConfig",
    "WeightedPart",
    "build_rewards",
    "count_groups",
    "step_ends",
    "step_rewards",
    "token_rewards",
]
