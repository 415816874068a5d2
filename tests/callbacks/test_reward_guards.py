"""Guards see drift in the figures of the rollouts, and take the weights back."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from callbacks.reward_guards import GuardLimits, RewardGuards
from prmkit.errors import ConfigError


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
    return {"step_length": 6.0, "steps": 5.0, "score_gap": 0.1, "outcome": 0.5, **changes}


USUAL = [figures()] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step_length": 13.0}, "step_length 13, 2.17 times the baseline 6"),
        ({"step_length": 2.0}, "step_length 2, 0.33 times"),
        ({"steps": 11.0}, "steps 11, 2.20 times"),
        ({"score_gap": 0.3}, "score_gap 0.300, baseline 0.100"),
        ({"outcome": 0.3}, "outcome 0.300, best 0.500"),
    ],
)
def test_a_drift_that_lasts_is_named_with_its_update(change, said, caplog):
    run(RewardGuards(), [*USUAL, figures(**change)])
    assert "reward guards" not in caplog.text  # once may be chance
    module, _ = run(RewardGuards(), [*USUAL, figures(**change), figures(**change), figures()])
    assert f"reward guards at optimiser step 4: {said}" in caplog.text
    assert float(module.weight) == 6.0


def test_quiet_within_the_limits(caplog):
    run(RewardGuards(rollback=True), [*USUAL, *[figures(step_length=11.0, steps=3.0, score_gap=0.2, outcome=0.4)] * 5])
    assert "reward guards" not in caplog.text


def test_guards_can_be_switched_off(caplog):
    limits = GuardLimits(None, None, None, None)
    run(RewardGuards(limits), [*USUAL, *[figures(step_length=99.0, steps=99.0, score_gap=1.0, outcome=0.0)] * 4])
    assert "reward guards" not in caplog.text


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


@pytest.mark.parametrize("limits", [{"step_length": 1.0}, {"score_gap": 0.0}, {"kl": -1.0}])
def test_limits_out_of_range(limits):
    with pytest.raises(ConfigError, match=f"reward_guards.limits.{next(iter(limits))}"):
        GuardLimits(**limits)
    with pytest.raises(ConfigError, match=r"reward_guards.patience"):
        RewardGuards(patience=0)
