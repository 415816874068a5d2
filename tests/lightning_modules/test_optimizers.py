import math

import pytest
import torch
from torch import nn

from lightning_modules.optimizers import OptimizerConfig, build_optimizer, lr_factor, parameter_groups
from prmkit.errors import ConfigError


def rates(config: OptimizerConfig, total: float, steps: int) -> list[float]:
    made = build_optimizer(nn.Linear(2, 2).parameters(), config, total)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_by_hand() -> None:
    linear = OptimizerConfig(lr=2.0, schedule="linear", warmup_steps=2, min_lr_ratio=0.2)
    assert rates(linear, 6, 8) == pytest.approx([1.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.4])
    cosine = OptimizerConfig(lr=1.0, schedule="cosine", warmup_ratio=0.25)
    half = 0.5 * (1 + math.cos(math.pi / 6))
    assert rates(cosine, 8, 4) == pytest.approx([0.5, 1.0, 1.0, half])
    constant = OptimizerConfig(lr=3.0, schedule="constant", warmup_steps=0)
    assert rates(constant, math.inf, 3) == [3.0, 3.0, 3.0]


def test_warmup_longer_than_the_fit_never_divides_by_zero() -> None:
    values = [lr_factor(s, total=2, warmup=4, schedule="cosine", floor=0.0) for s in range(6)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.0])


def test_vectors_get_no_decay_and_frozen_weights_no_group() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].weight.requires_grad_(False)
    decayed, plain = parameter_groups(model.parameters(), 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decayed["params"]] == [(5, 4)]
    assert len(plain["params"]) == 3
    assert parameter_groups([torch.nn.Parameter(torch.zeros(3))], 0.1)[0]["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("schedule", "step"),
        ("warmup_steps", -1),
        ("warmup_ratio", 1.0),
        ("min_lr_ratio", 2.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
    ],
)
def test_refusals(field: str, value) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.{field}"):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize("config", [OptimizerConfig(), OptimizerConfig(schedule="constant")])
def test_endless_fit_needs_a_schedule_without_end(config: OptimizerConfig) -> None:
    with pytest.raises(ConfigError, match=r"trainer.max_steps"):
        build_optimizer(nn.Linear(2, 2).parameters(), config, math.inf)


def test_a_checkpoint_gives_a_schedule_its_step_and_nothing_else():
    def built(lr, warmup, total):
        weight = torch.nn.Parameter(torch.ones(2, 2))
        config = OptimizerConfig(lr=lr, warmup_steps=warmup, schedule="linear")
        found = build_optimizer([weight], config, total)
        return found["optimizer"], found["lr_scheduler"]["scheduler"]

    optimizer, schedule = built(1.0, 0, 4)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    state = schedule.state_dict()
    assert state["_last_lr"] == [0.5]
    other, resumed = built(8.0, 4, 12)
    resumed.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 8.0 * 3 / 4  # the third of four steps of warm-up
    resumed.ends_at(20)
    for _ in range(4):
        other.step()
        resumed.step()
    assert other.param_groups[0]["lr"] == 8.0 * 14 / 16  # step 6 of 20, 4 of them warm-up
