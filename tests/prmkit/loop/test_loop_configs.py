"""The shipped loops: every command of every iteration is one that its own parser takes; who sees which lengths."""

import importlib
from pathlib import Path

import pytest

from prmkit.cli.fit_settings import read_fit
from prmkit.cli.loop import parse
from prmkit.cli.options import parse_settings, peek
from prmkit.cli.parsing import expand_configs
from prmkit.loop.config import STAGES
from prmkit.loop.plan import Begin, Plan
from prmkit.resources import find_config, shipped_configs


def settings(name: str, stage: str, iteration: int, run: Path):
    """What a stage's command reads: the tree of a fit, or the parsed settings."""
    config = parse(["--config", name, "--run", str(run)])
    plan = Plan(config, {each: find_config(getattr(config, each).config) for each in STAGES if getattr(config, each)})
    plan.check()
    before = run / f"iteration-{iteration - 1}"
    begin = Begin(
        before / "policy" / "policy", run / "sft" / "policy", prm=before / "prm" / "model" if iteration > 1 else None
    )
    made = plan.sft() if stage == "sft" else getattr(plan, stage)(iteration, begin)
    command, *argv = made.argv[3:]
    arguments, _ = expand_configs(argv)
    if command == "fit":
        return read_fit(arguments, "fit").tree
    method = [peek(arguments, "method", "omegaprm")] if command == "annotate" else []
    return parse_settings(importlib.import_module(f"prmkit.cli.{command}").parser(*method), arguments)


@pytest.mark.parametrize("name", shipped_configs("loop"))
@pytest.mark.parametrize("iteration", [1, 2])
def test_every_command_of_a_loop_is_understood(name, iteration, tmp_path):
    for stage in STAGES:
        assert settings(name, stage, iteration, tmp_path)


@pytest.mark.parametrize("iteration", [1, 2])
def test_easy_to_hard_labels_easy_problems_and_trains_and_measures_on_hard_ones(iteration, tmp_path):
    labels, policy, measured, start = (
        settings("configs/loop/easy_to_hard.yaml", stage, iteration, tmp_path)
        for stage in ("annotate", "policy", "evaluate", "sft")
    )
    data = policy["data"]["init_args"]
    hard = data["prompts"]["task_options"]
    assert labels["task_options"]["max_ops"] < hard["min_ops"]
    assert hard == data["validation"]["task_options"] == measured["task_options"]
    lines = 6 * hard["max_ops"]  # tokens of a line, its end included
    assert min(data["max_tokens"], measured["sampling"].max_tokens) > lines
    assert start["data"]["init_args"]["train"][0]["options"]["max_ops"] >= hard["max_ops"]
    assert data["prm"]["path"] == str(tmp_path / f"iteration-{iteration}" / "prm" / "model")
    assert data["rewards"]["process"]["form"] == "raw"
    assert policy["model"]["init_args"]["process_weight"]["follow"] == "unsolved"
