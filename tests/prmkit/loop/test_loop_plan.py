"""The stages of a loop: each reads what an earlier one makes, and says so in its key."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prmkit.cli.loop import parse
from prmkit.loop.config import STAGES, StageConfig
from prmkit.loop.plan import Begin, Plan
from prmkit.resources import find_config


def plan(run: Path, **changes) -> Plan:
    config = replace(parse(["--config", "configs/loop/accumulator.yaml"]), run=str(run), **changes)
    return Plan(config, {name: find_config(getattr(config, name).config) for name in STAGES})


def value(stage, option: str) -> str:
    return stage.argv[stage.argv.index(option) + 1]


@pytest.fixture
def made(tmp_path):
    """A run whose files are there, as far as plans look at them."""
    for iteration in (1, 2):
        folder = tmp_path / f"iteration-{iteration}"
        (folder / "annotate").mkdir(parents=True)
        (folder / "annotate" / "annotations.jsonl").write_text("{}\n")
        for place in ("prm/model", "policy/policy"):
            (folder / place).mkdir(parents=True)
    (tmp_path / "iteration-2" / "replay.jsonl").write_text("{}\n")
    (tmp_path / "sft" / "policy").mkdir(parents=True)
    return tmp_path


def begins(run: Path) -> tuple[Begin, Begin]:
    one = run / "iteration-1"
    first = Begin(run / "sft/policy", first=run / "sft/policy")
    second = Begin(
        one / "policy/policy", run / "sft/policy", one / "prm/model", (one / "annotate/annotations.jsonl",), 1
    )
    return first, second


def test_a_second_iteration_goes_on_from_the_first(made):
    begin = begins(made)[1]
    judged = StageConfig("configs/grpo/accumulator.yaml", {"data.prm.path": "${prm.output}"})
    found = plan(made, policy=judged)
    annotate, prm, policy, evaluate = (
        getattr(found, name)(2, begin) for name in ("annotate", "prm", "policy", "evaluate")
    )
    two = made / "iteration-2"
    assert value(annotate, "--policy") == str(begin.policy)
    assert (value(annotate, "--offset"), value(annotate, "--task_options.hard_share")) == ("13500", "0.6")
    assert value(prm, "--model.init_args.source.path") == str(begin.prm)
    records = json.loads(value(prm, "--data.init_args.train.0.path"))
    assert records == [str(two / "annotate/annotations.jsonl"), str(two / "replay.jsonl")]
    assert value(policy, "--model.init_args.source.path") == str(begin.policy)
    assert "--model.init_args.reference.path" not in policy.argv  # the reference is the source: refreshed
    assert value(policy, "--data.prm.path") == str(two / "prm/model")
    assert two / "prm/model" in policy.inputs
    assert (value(evaluate, "--policy"), value(evaluate, "--prm")) == (
        str(two / "policy/policy"),
        str(two / "prm/model"),
    )
    assert [value(stage, "--seed") for stage in (annotate, evaluate)] == ["1000", "0"]
    for stage in (annotate, prm, policy, evaluate):
        assert all(str(path) in " ".join(stage.argv) for path in stage.inputs if path.suffix != ".yaml")


def test_the_first_iteration_starts_from_the_policy(made):
    begin = begins(made)[0]
    found = plan(made)
    prm = found.prm(1, begin)
    assert value(prm, "--model.init_args.source.path") == str(made / "sft/policy")
    assert value(prm, "--data.init_args.train.0.path") == str(made / "iteration-1/annotate/annotations.jsonl")
    assert found.sft().outputs == (made / "sft/policy",)


def test_controls_and_alternatives(made):
    begin = begins(made)[1]
    assert value(plan(made, labels_from="first").annotate(2, begin), "--policy") == str(begin.first)
    assert value(plan(made, prm_start="policy").prm(2, begin), "--model.init_args.source.path") == str(begin.policy)
    policy = plan(made, reference="first").policy(2, begin)
    assert value(policy, "--model.init_args.reference.path") == str(begin.first)
    assert begin.first in policy.inputs


def test_several_devices_are_started_by_torchrun(made):
    found, begin = plan(made, devices=3, threads=2), begins(made)[0]
    fit, annotate = found.prm(1, begin), found.annotate(1, begin)
    assert fit.argv[1:8] == ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "prmkit.cli")
    assert value(fit, "--trainer.devices") == "3"
    assert "torch.distributed.run" not in annotate.argv
    assert fit.environment == {"OMP_NUM_THREADS": "2", "PRMKIT_END_WITH_PARENT": "1"}
    assert plan(made, threads=2).prm(1, begin).environment == {"OMP_NUM_THREADS": "2"}


def test_a_run_can_be_moved(made, tmp_path_factory):
    other = tmp_path_factory.mktemp("moved") / "run"
    keys = [plan(made).prm(2, begins(made)[1]).key(made)]
    made.rename(other)
    keys.append(plan(other).prm(2, begins(other)[1]).key(other))
    assert keys[0] == keys[1]
    (other / "iteration-2" / "replay.jsonl").write_text("{ }\n")
    assert plan(other).prm(2, begins(other)[1]).key(other) != keys[0]
