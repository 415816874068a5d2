"""Guards see drift in the figures of the rollouts, and take the weights back."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from callbacks.reward_guards import GuardLimits, RewardGuards
from datamodules.experience import ExperienceDataModule, IterationConfig
from datamodules.prompts import PromptConfig
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from prmkit.advantages import GroupConfig
from prmkit.errors import ConfigError
from prmkit.models import ModelSource
from prmkit.rewards import LengthConfig, OutcomeConfig, RewardsConfig

TINY = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "intermediate_size": 16, "tie_word_embeddings": True, "initializer_range": 0.1}


class Batch(SimpleNamespace):
    def to(self, *_arguments, **_options):
        return self


class Walk(LightningModule):
    """A weight that grows by 1 a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        return -self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def run(guards: RewardGuards, reports: list[dict[str, float] | None], **changes) -> tuple[Walk, Trainer]:
    class Reports(Dataset):
        def __len__(self):
            return len(reports)

        def __getitem__(self, index):
            report = reports[index]
            return Batch(report=report and {f"rollout/{name}": value for name, value in report.items()})

    module = Walk()
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[guards],
                      enable_checkpointing=False, enable_model_summary=False, **changes)  # fmt: skip
    trainer.fit(module, DataLoader(Reports(), batch_size=None))
    return module, trainer


def figures(**changes: float) -> dict[str, float]:
    return {"step_length": 6.0, "steps": 5.0, "length": 30.0, "lucky": 0.1, "score_gap": 0.1, "outcome": 0.5, **changes}


USUAL = [figures()] * 3


@pytest.mark.parametrize(
    ("change", "said", "advice"),
    [
        (
            {"step_length": 13.0},
            "step_length 13, 2.17 times the baseline 6",
            "step_length: rewards of steps",
        ),
        ({"step_length": 2.0}, "step_length 2, 0.33 times", "step_length: rewards of steps"),
        ({"steps": 11.0}, "steps 11, 2.20 times", "model.advantage.gamma 0"),
        ({"length": 20.6}, "length 20.6, 0.69 times the baseline 30", "shorter: solutions are no longer worked out"),
        ({"lucky": 0.6}, "60% of the right answers were not worked out, limit 50%", "`prm regime` measures which"),
        ({"score_gap": 0.3}, "score_gap 0.300, baseline 0.100", "train the PRM on these solutions"),
        ({"outcome": 0.3}, "outcome 0.300, best 0.500", "model.kl.weight 0.1 with model.kl.estimator k3_k2"),
    ],
)
def test_a_drift_that_lasts_is_named_with_its_update_cause_and_remedy(change, said, advice, caplog):
    run(RewardGuards(), [*USUAL, figures(**change)])
    assert "reward guards" not in caplog.text  # once may be chance
    module, _ = run(RewardGuards(), [*USUAL, figures(**change), figures(**change), figures()])
    assert f"reward guards at optimiser step 4: {said}" in caplog.text
    assert advice in caplog.text
    assert float(module.weight) == 6.0


def test_quiet_within_the_limits(caplog):
    run(
        RewardGuards(rollback=True),
        [*USUAL, *[figures(step_length=11.0, steps=3.0, length=23.0, lucky=0.5, score_gap=0.2, outcome=0.4)] * 5],
    )
    assert "reward guards" not in caplog.text


def test_guards_can_be_switched_off(caplog):
    limits = GuardLimits(**dict.fromkeys(asdict(GuardLimits())))
    bad = figures(step_length=99.0, steps=99.0, length=1.0, lucky=1.0, score_gap=1.0, outcome=0.0)
    run(RewardGuards(limits), [*USUAL, *[bad] * 4])
    assert "reward guards" not in caplog.text


def test_what_lasts_is_said_again_at_twice_the_distance():
    guards = RewardGuards()
    run(guards, [*USUAL, *[figures(length=10.0)] * 20])
    assert [step for step, _ in guards.warnings] == [4, 6, 10, 18]


def test_luck_from_the_start_is_warned_of_and_nothing_goes_back(caplog):
    """Rewarded for steps, a policy that only guesses works out more and more."""
    guards = RewardGuards(rollback=True)
    reports = [figures(lucky=share, outcome=0.1 + 0.1 * n) for n, share in enumerate((0.9, 0.95, 0.9, 0.9, 0.8, 0.7))]
    _, trainer = run(guards, [*reports, figures(lucky=0.4, outcome=0.7), figures(lucky=0.4, outcome=0.75)])
    assert [step for step, _ in guards.warnings] == [4]
    assert (trainer.global_step, guards.good_step) == (8, 7)
    drifting = RewardGuards(rollback=True)
    run(drifting, [*USUAL, *[figures(lucky=0.9)] * 3])
    assert drifting.state_dict()["stopped"]


def test_a_run_without_right_answers_is_still_watched():
    none_right = {name: value for name, value in figures(outcome=0.0).items() if name != "lucky"}
    guards = RewardGuards()
    run(guards, [*[none_right] * 3, figures(), {**none_right, "length": 10.0}, {**figures(), "length": 10.0}])
    assert [step for step, _ in guards.warnings] == [5]


def test_rollback_gives_back_the_weights_of_the_last_good_iteration(caplog):
    bad = figures(score_gap=0.5)
    reports = [*USUAL, None, figures(), None, bad, None, bad, None, None]
    module, trainer = run(RewardGuards(rollback=True), reports)
    # The fifth report is the last good one: its rollouts are from the weights after four steps.
    assert float(module.weight) == 4.0
    assert trainer.global_step == 9
    assert "going back to the weights of optimiser step 4, and stopping" in caplog.text


def test_rollback_prefers_what_the_verifier_liked_best():
    guards = RewardGuards(rollback=True)
    bad = figures(score_gap=0.5)
    module, _ = run(guards, [*USUAL, figures(outcome=0.6), figures(outcome=0.55), bad, bad, None])
    assert guards.good_step == float(module.weight) == 3.0


def test_state_goes_on_after_a_resume():
    first, second = RewardGuards(rollback=True), RewardGuards(rollback=True)
    run(first, [*USUAL, figures(score_gap=0.5)])
    second.load_state_dict(first.state_dict())
    module, _ = run(second, [figures(score_gap=0.5), figures()])
    assert float(module.weight) == 2.0  # steps of the first run, whose third report was its last good one
    assert second.state_dict()["stopped"]


def test_missing_figures_guard_nothing():
    guards = RewardGuards()
    run(guards, [{"steps": 5.0}] * 6)
    assert guards.state_dict()["best_outcome"] == -math.inf


@pytest.mark.parametrize(
    "limits", [{"step_length": 1.0}, {"score_gap": 0.0}, {"kl": -1.0}, {"shorter": 1.0}, {"lucky": 0.0}]
)
def test_limits_out_of_range(limits):
    with pytest.raises(ConfigError, match=f"reward_guards.limits.{next(iter(limits))}"):
        GuardLimits(**limits)
    with pytest.raises(ConfigError, match=r"reward_guards.patience"):
        RewardGuards(patience=0)


def test_a_policy_paid_for_short_solutions_does_not_collapse_in_silence(caplog):
    """A real run: the length part of the reward pays for writing less."""
    source = ModelSource(config=TINY, tokenizer="accumulator")
    optimizer = OptimizerConfig(lr=3e-2, schedule="constant", warmup_steps=0)
    rewards = RewardsConfig(OutcomeConfig(weight=0.0, truncated="grade"), length=LengthConfig(24, 23))
    data = ExperienceDataModule(PromptConfig(count=8), iteration=IterationConfig(8), max_tokens=24, rewards=rewards)
    guards = RewardGuards()
    trainer = Trainer(max_epochs=10, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[guards],
                      enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(GRPO(source, optimizer=optimizer, advantage=GroupConfig(4)), data)
    assert "times the baseline" in guards.warnings[0][1]
    assert "shorter: solutions are no longer worked out" in caplog.text
