"""The gradient of policy optimisation: by hand, for every split of a step into micro-batches and processes.

Run as a script (by torchrun) it writes the gradients of both modules over two processes; see the last test.
"""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from datamodules.experience import ExperienceDataModule, IterationConfig
from datamodules.prompts import PromptConfig, PromptStream, open_prompts
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_critic import CriticConfig
from lightning_modules.policy_implicit import ImplicitPRMConfig
from lightning_modules.ppo import PPO
from prmkit.engines import HFEngine
from prmkit.errors import ConfigError
from prmkit.losses import PolicyLossConfig
from prmkit.models import ModelSource
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.rl.advantages import GAEConfig, GroupConfig
from prmkit.rl.policy_step import KLPenalty
from prmkit.rl.rewards import FormatConfig, ImplicitConfig, LengthConfig, OutcomeConfig, RewardsConfig
from prmkit.seeding import derive_seed

SOURCE = ModelSource(
    config={
        "model_type": "qwen2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    },
    tokenizer="accumulator",
)
OTHER = replace(SOURCE, seed=7)
PROMPTS, SIZE, LONGEST = 4, 4, 12
OPTIMIZER = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0)
# A random policy solves nothing; its length is something that solutions differ in.
REWARDS = RewardsConfig(OutcomeConfig(weight=0.0, truncated="grade"), length=LengthConfig(LONGEST, LONGEST - 1))


class Gradients(Callback):
    """Of every optimiser step."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.found.append({n: p.grad.clone() for n, p in pl_module.named_parameters()})


def grpo(**changes) -> GRPO:
    values = {"advantage": GroupConfig(SIZE, "dr_grpo"), "loss": PolicyLossConfig(clip_low=1.0, clip_high=1e9)}
    return GRPO(SOURCE, optimizer=OPTIMIZER, **{**values, **changes})


def ppo(**changes) -> PPO:
    return PPO(SOURCE, optimizer=OPTIMIZER, samples=SIZE, **{"critic": CriticConfig(lr=2e-3), **changes})


MODULES = {
    "grpo": lambda: grpo(loss=PolicyLossConfig(reduction="sequence")),
    "grpo-kl-group": lambda: grpo(
        loss=PolicyLossConfig(reduction="group"), kl=KLPenalty(0.1), reference=OTHER, entropy_weight=0.01
    ),
    "ppo": lambda: ppo(kl=KLPenalty(0.1)),
    "ppo-steps": lambda: ppo(levels="steps", critic=CriticConfig(lr=2e-3, clip=None)),
    "prime": lambda: grpo(
        advantage=GroupConfig(SIZE, "rloo", "token_baseline"), credit="tokens", implicit=ImplicitPRMConfig(OTHER)
    ),
}
DATA = {"prime": {"rewards": replace(REWARDS, implicit=ImplicitConfig(beta=0.5))}}


def train(module, accumulation: int = 1, world: int = 1, updates: int = 1, passes: int = 1, **data):
    callback = Gradients()
    module_data = ExperienceDataModule(
        PromptConfig(count=8),
        iteration=IterationConfig(PROMPTS, updates, passes),
        max_tokens=LONGEST,
        **{"rewards": REWARDS, **data},
    )
    trainer = Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulation,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, module_data)
    return callback.found, {name: float(value) for name, value in trainer.callback_metrics.items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(w.abs().max()) for w in wanted.values())
    assert scale > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def plain_policy_gradient() -> dict[str, Tensor]:
    """mean over tokens of -A log pi, one row at a time with transformers, A = length reward minus the group's mean."""
    module = grpo()
    module.configure_model()
    model, fmt = module.model, module.bound_format
    _, problems = open_prompts(PromptConfig(count=8))
    stream, engine = PromptStream(problems, 0), HFEngine(module.model, fmt)
    total, count = torch.zeros(()), 0
    for number in range(PROMPTS):
        prompt = fmt.prompt_ids(stream[number].question)
        request = GenerationRequest(prompt, SIZE, derive_seed("rollout", 0, number), SamplingParams(LONGEST))
        written = [completion.token_ids for completion in asyncio.run(engine.generate(request))]
        lengths = [sum(len(step.token_ids) for step in fmt.split_ids(ids)) for ids in written]
        rewards = [-min(max((length - 1) / (LONGEST - 1), 0.0), 1.0) for length in lengths]
        for ids, reward in zip(written, rewards, strict=True):
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            logprobs = logits.log_softmax(-1)[torch.arange(len(ids)), list(ids)]
            total = total - (reward - sum(rewards) / SIZE) * logprobs.sum()
            count += len(ids)
    (total / count).backward()
    return {f"model.{name}": parameter.grad for name, parameter in model.named_parameters()}


def test_one_pass_without_clipping_is_the_plain_policy_gradient():
    (found,), figures = train(grpo(correction=None))
    assert_same(found, plain_policy_gradient())
    assert figures["train/ratio"] == 1.0
    assert figures["train/generator_gap"] < 1e-5


def test_old_logprobs_of_a_pass_of_their_own_change_nothing_in_the_first_step():
    (alone,), _ = train(grpo())
    (first, _), figures = train(grpo(), passes=2)
    assert_same(first, alone)
    assert figures["train/ratio"] != 1.0


@pytest.mark.parametrize("name", MODULES)
def test_micro_batches(name):
    data = DATA.get(name, {})
    (wanted,), logged = train(MODULES[name](), **data)
    for accumulation in (3, 16):  # 16 is a row each
        (found,), figures = train(MODULES[name](), accumulation, **data)
        assert_same(found, wanted)
        for figure in ("train/loss", "train/entropy", "train/targets", "rollout/reward", "rollout/steps"):
            assert figures[figure] == pytest.approx(logged[figure], rel=1e-4, abs=1e-6), figure


def test_several_steps_of_a_pass_split_the_rows():
    found, _ = train(grpo(), accumulation=2, updates=2)
    assert len(found) == 2
    with_filler, _ = train(grpo(), accumulation=16, updates=4)  # four rows for sixteen micro-batches
    assert len(with_filler) == 4


def test_ppo_learns_two_parameter_groups():
    found, figures = train(ppo(advantage=GAEConfig(lam=1.0)), updates=2)
    # The head begins at 0: the first step moves the head alone, with the policy; later ones move the trunk by it too.
    assert {"critic.head.weight", "critic.head.bias"} <= found[0].keys()
    assert float(found[0]["critic.head.bias"].abs()) > 0
    assert figures["train/value_loss"] > 0
    assert figures["train/explained_variance"] < 1


def test_a_separate_critic_leaves_the_policy_alone():
    critic = CriticConfig("separate", lr=1e-3, weight=5.0)
    (found,), _ = train(PPO(SOURCE, optimizer=OPTIMIZER, samples=SIZE, critic=critic))
    (other,), _ = train(PPO(SOURCE, optimizer=OPTIMIZER, samples=SIZE, critic=CriticConfig("head", detach=True)))
    policy = {name for name in found if name.startswith("model.")}
    assert policy < found.keys()
    assert_same({name: found[name] for name in policy}, {name: other[name] for name in policy})


def test_rewards_of_tokens_need_no_outcome():
    rewards = RewardsConfig(None, format=FormatConfig(answer=False), kl=None)
    _, figures = train(grpo(), rewards=rewards)
    assert "rollout/format" in figures
    assert "rollout/outcome" not in figures


@pytest.mark.parametrize("name", MODULES)
def test_shared_prefixes_change_no_gradient(name):
    (wanted,), _ = train(MODULES[name](), **DATA.get(name, {}))
    module = MODULES[name]()
    module.share_prefixes = module.reference._share = True
    (found,), _ = train(module, accumulation=2, **DATA.get(name, {}))
    assert_same(found, wanted)


def test_an_implicit_prm_learns_from_outcomes_and_rewards_tokens():
    rewards = replace(REWARDS, implicit=ImplicitConfig(beta=0.5))
    module = grpo(advantage=GroupConfig(SIZE, "rloo", "token_baseline"), credit="tokens", implicit=ImplicitPRMConfig())
    found, figures = train(module, passes=3, rewards=rewards)
    assert any(name.startswith("implicit.model.") for name in found[0])
    assert figures["rollout/implicit"] == pytest.approx(0.0, abs=1e-5)  # it begins as its own reference
    assert figures["train/implicit_wrong"] < -1e-3  # nothing was right; it has learnt to say so
    other = grpo(credit="tokens", implicit=ImplicitPRMConfig(OTHER))
    _, figures = train(other, rewards=rewards)
    assert abs(figures["rollout/implicit"]) > 1e-3


def test_an_implicit_reward_needs_its_model_and_a_verifier():
    rewards = replace(REWARDS, implicit=ImplicitConfig())
    with pytest.raises(ConfigError, match=r"model.implicit: got None"):
        train(grpo(), rewards=rewards)
    with pytest.raises(ConfigError, match=r"data.rewards.outcome: got None; accepted: a part, of weight 0 at least"):
        train(grpo(), rewards=RewardsConfig(None, implicit=ImplicitConfig()))


def test_the_kl_coefficient_follows_the_divergence():
    penalty = KLPenalty(0.5, target=0.1, gain=0.5)
    assert penalty.adapted(0.5, 0.105) == pytest.approx(0.5 * (1 + 0.5 * 0.05))
    assert penalty.adapted(0.5, 9.0) == pytest.approx(0.5 * 1.1)
    assert penalty.adapted(0.5, 0.0) == pytest.approx(0.5 * 0.9)
    module = grpo(kl=penalty)
    _, figures = train(module, passes=2)
    assert module.kl_weight == pytest.approx(0.5 * 0.9**2, rel=1e-3)  # no distance yet
    assert figures["train/kl_weight"] == pytest.approx(0.45, rel=1e-3)
    checkpoint: dict[str, float] = {}
    module.on_save_checkpoint(checkpoint)
    other = grpo(kl=penalty)
    other.on_load_checkpoint(checkpoint)
    assert other.kl_weight == module.kl_weight
    with pytest.raises(ConfigError, match=r"model.kl.target: got 0.1; accepted: .* with model.kl.weight above 0"):
        KLPenalty(0.0, target=0.1)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    run = subprocess.run([*command, str(tmp_path)], timeout=300, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    for name in MODULES:
        wanted, logged = train(MODULES[name](), updates=2, **DATA.get(name, {}))
        for rank in (0, 1):
            found, figures = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert_same(found[0], wanted[0])
            for figure in ("train/loss", "rollout/reward", "rollout/length"):
                assert figures[figure] == pytest.approx(logged[figure], rel=1e-3, abs=1e-5)


if __name__ == "__main__":
    import os

    for kind, make in MODULES.items():
        result = train(make(), accumulation=2, world=2, updates=2, **DATA.get(kind, {}))
        torch.save(result, Path(sys.argv[1]) / f"{kind}-{os.environ['RANK']}.pt")
