"""Advantages that GRPO and PPO make of an experience, by hand; what sharing prefixes needs."""

import pytest
import torch

from datamodules.experience_records import Experience, make_experience
from lightning_modules.grpo import GRPO
from lightning_modules.ppo import PPO
from prmkit.advantages import GAEConfig, GroupConfig
from prmkit.errors import ConfigError
from prmkit.models import ModelSource, build_policy
from prmkit.rewards import Reward
from prmkit.rollouts import Rollout
from prmkit.types import Problem, Step, Trace

CONFIG = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 16, "tie_word_embeddings": True}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")


def experience(*rewards: Reward, steps: tuple[int, ...] = (2, 1)) -> Experience:
    """Solutions of one prompt of two tokens, each with steps of these many tokens."""
    made = tuple(Step("x", tuple(range(n))) for n in steps)
    ids = tuple(token for step in made for token in step.token_ids) or (1,)
    rows = [
        Rollout(Problem("p", "q", "1"), 0, (5, 6), ids, (0.0,) * len(ids), Trace("p", made, "stop"), reward)
        for reward in rewards
    ]
    return make_experience(rows, 0)


def test_prime_advantages_by_hand():
    """A_t = sum_(s >= t) (r_s - mean reward a token of the others) + outcome - mean outcome of the others."""
    module = GRPO(SOURCE, advantage=GroupConfig(3, "rloo", "token_baseline"), credit="tokens")
    made = experience(
        Reward(1.0, tokens=(0.1, 0.2, 0.3)), Reward(0.0, tokens=(0.0, 0.0, -0.3)), Reward(1.0, tokens=(0.3, 0.3, 0.0))
    )
    found, _ = module.advantages(made)
    rate = (-0.3 + 0.6) / 6
    wanted = [0.6 - 3 * rate + 0.5, 0.5 - 2 * rate + 0.5, 0.3 - rate + 0.5]
    assert found["advantages"][0].tolist() == pytest.approx([0.0, 0.0, *wanted])


def test_credit_of_tokens_counts_a_steps_reward_at_its_end():
    module = GRPO(SOURCE, advantage=GroupConfig(2, "rloo", "dr_grpo"), credit="tokens")
    found, _ = module.advantages(experience(Reward(steps=(0.4, 0.0)), Reward(steps=(0.0, 0.2))))
    assert found["advantages"][0].tolist() == pytest.approx([0, 0, 0.4 - 0.3, 0.4 - 0.2, -0.1])
    assert found["advantages"][1].tolist() == pytest.approx([0, 0, 0.2 - 0.3, 0.2 - 0.2, 0.2 - 0.1])


@pytest.mark.parametrize(("gamma", "first"), [(1.0, (0.25 - 0.15, -0.15 + 0.05)), (0.0, (0.25, -0.15))])
def test_steps_are_credited_with_discounted_later_ones(gamma, first):
    """Mean of the four steps .15; an outcome for one solution only, whose advantage all its tokens share."""
    advantage = GroupConfig(2, "rloo", "dr_grpo", gamma)
    module = GRPO(SOURCE, advantage=advantage, process_weight=0.5)
    found, _ = module.advantages(experience(Reward(1.0, (0.4, 0.0)), Reward(0.0, (0.0, 0.2))))
    one, other = (0.5 * value for value in first)
    assert found["advantages"][0].tolist() == pytest.approx([0, 0, 1 + one, 1 + one, 1 + 0.5 * -0.15])
    assert found["advantages"][1].tolist() == pytest.approx([0, 0, other - 1, other - 1, 0.5 * 0.05 - 1])


def test_ppo_over_steps_by_hand():
    module = PPO(
        SOURCE, levels="steps", whiten=False, advantage=GAEConfig(gamma=1.0, lam=0.5, step_gamma=0.9, step_lam=0.5)
    )
    made = experience(Reward(1.0, (0.5, 0.0), (0.01, 0.02, 0.03)))
    made = made.filled(
        {
            "old_values": torch.tensor([[9.0, 9.0, 0.1, 0.2, 0.3]]),
            "old_step_values": torch.tensor([[9.0, 9.0, 0.4, 9.0, 0.6]]),
        }
    )
    found, _ = module.advantages(made)
    second = 1.0 - 0.6
    first = 0.5 + 0.9 * 0.6 - 0.4 + 0.45 * second
    end = first + 0.02
    assert found["advantages"][0].tolist() == pytest.approx([0, 0, 0.01 + 0.2 - 0.1 + 0.5 * end, end, second + 0.03])
    assert found["step_starts"][0].tolist() == [False, False, True, False, True]
    assert found["step_returns"][0].tolist() == pytest.approx([0, 0, first + 0.4, 0, 1.0])


@pytest.mark.parametrize("levels", ["tokens", "steps"])
def test_ppo_weighs_the_rewards_of_steps_and_nothing_else(levels):
    """As if the PRM had given half of what it gave."""

    def advantages(weight: float, *steps: float) -> list[float]:
        module = PPO(SOURCE, levels=levels, whiten=False, process_weight=weight)
        made = experience(Reward(1.0, steps, (0.01, 0.02, 0.03)))
        zeros = torch.zeros(made.action_mask.shape)
        found, _ = module.advantages(made.filled({"old_values": zeros, "old_step_values": zeros}))
        return found["advantages"][0].tolist()

    assert advantages(0.5, 0.5, 0.25) == pytest.approx(advantages(1.0, 0.25, 0.125))


def test_a_solution_without_steps_is_one_step():
    module = PPO(SOURCE, levels="steps", whiten=False)
    made = experience(Reward(-1.0), steps=())
    zeros = torch.zeros(made.action_mask.shape)
    found, _ = module.advantages(made.filled({"old_values": zeros, "old_step_values": zeros}))
    assert found["advantages"][0].tolist() == [0, 0, -1.0]
    assert found["step_starts"].sum() == 1


def test_sharing_needs_an_attention_that_takes_masks():
    module = GRPO(SOURCE, share_prefixes=True)
    module.model = build_policy(SOURCE, module.tokenizer)
    module.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"model.share_prefixes: got True"):
        module.build_beside()
