"""The stages of a loop: each reads what an earlier one makes, and says so in its key."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prmkit.cli.loop import parse
from prmkit.errors import ConfigError
from prmkit.loop.config import STAGES, StageConfig
from prmkit.loop.plan import Begin, Plan
from prmkit.resources import find_config


def plan(run: Path, **changes) -> Plan:
    config = replace(parse(["--config", "configs/loop/accumulator.yaml"]), run=str(run), **changes)
    stages = [name for name in STAGES if getattr(config, name) is not None]
    return Plan(config, {name: find_config(getattr(config, name).config) for name in stages})


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
        one / "policy/policy",
        first=run / "sft/policy",
        labelled=run / "sft/policy",
        prm=one / "prm/model",
        older=(one / "annotate/annotations.jsonl",),
        level=1,
    )
    return first, second


def test_a_second_iteration_goes_on_from_the_first(made):
    begin = begins(made)[1]
    judged = StageConfig("configs/grpo/accumulator.yaml", {"data.prm.path": "${prm.output}"})
    found = plan(made, policy=judged, order="prm_first")
    annotate, prm, policy, evaluate = (
        getattr(found, name)(2, begin) for name in ("annotate", "prm", "policy", "evaluate")
    )
    two = made / "iteration-2"
    assert value(annotate, "--policy") == str(begin.policy)
    assert (value(annotate, "--offset"), value(annotate, "--task_options.hard_share")) == ("12900", "0.8")
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
    found = plan(made, order="prm_first")
    prm = found.prm(1, begin)
    assert value(prm, "--model.init_args.source.path") == str(made / "sft/policy")
    assert value(prm, "--data.init_args.train.0.path") == str(made / "iteration-1/annotate/annotations.jsonl")
    assert found.sft().outputs == (made / "sft/policy",)


def test_controls_and_alternatives(made):
    begin = begins(made)[1]
    assert value(plan(made, labels_from="first").annotate(2, begin), "--policy") == str(begin.labelled)
    prm = plan(made, prm_start="policy", order="prm_first").prm(2, begin)
    assert value(prm, "--model.init_args.source.path") == str(begin.policy)
    policy = plan(made, reference="first").policy(2, begin)
    assert value(policy, "--model.init_args.reference.path") == str(begin.first)
    assert begin.first in policy.inputs


def test_policy_first_judges_what_comes_of_the_iteration(made):
    rewarded = StageConfig("configs/grpo/accumulator.yaml", later={"data.prm.path": "${before.prm}"})
    found = plan(made, order="policy_first", policy=rewarded)
    first, second = begins(made)
    one, two = made / "iteration-1", made / "iteration-2"
    assert "--data.prm.path" not in found.policy(1, first).argv
    assert value(found.annotate(1, first), "--policy") == str(one / "policy/policy")
    assert value(found.prm(1, first), "--model.init_args.source.path") == str(one / "policy/policy")

    policy = found.policy(2, second)
    assert value(policy, "--data.prm.path") == str(second.prm)
    assert second.prm in policy.inputs
    annotate = found.annotate(2, second)
    assert value(annotate, "--policy") == str(two / "policy/policy")
    assert two / "policy/policy" in annotate.inputs
    assert value(found.prm(2, second), "--model.init_args.source.path") == str(second.prm)
    fresh = plan(made, order="policy_first", prm_start="policy").prm(2, second)
    assert value(fresh, "--model.init_args.source.path") == str(two / "policy/policy")
    control = plan(made, order="policy_first", labels_from="first")
    begin = replace(second, labelled=one / "policy/policy")
    assert value(control.annotate(1, first), "--policy") == str(one / "policy/policy")
    assert value(control.annotate(2, begin), "--policy") == str(one / "policy/policy")


def test_a_first_iteration_has_no_prm_before_it(made):
    rewarded = StageConfig("configs/grpo/accumulator.yaml", {"data.prm.path": "${before.prm}"})
    message = r"policy\.set\.data\.prm\.path: got .*before\.prm.*; accepted: .* in `later`, not in `set`"
    with pytest.raises(ConfigError, match=message):
        plan(made, order="policy_first", policy=rewarded).check()
    plan(made, order="policy_first", policy=rewarded, sft=None, start="math@3").check()
    later = replace(rewarded, set={}, later={"data.prm.path": "${before.prm}", "x": "${nowhere.y}"})
    with pytest.raises(ConfigError, match=r"policy\.set\.x"):
        plan(made, policy=later).check()


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
