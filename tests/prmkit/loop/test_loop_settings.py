"""The loop's config: what it refuses, and what it comes to in an iteration."""

from dataclasses import replace
from pathlib import Path

import pytest

from prmkit.cli.loop import parse
from prmkit.errors import ConfigError, PrmkitError
from prmkit.loop import HarderConfig, LoopConfig, StageConfig
from prmkit.loop.identity import publication_key, recipe_commands
from prmkit.loop.settings import flatten, harder_level, stage_seed, stage_settings


def loop(**changes) -> LoopConfig:
    stages = {name: StageConfig(f"{name}.yaml") for name in ("sft", "annotate", "prm", "policy", "evaluate")}
    return LoopConfig(**{"pair": "toy", "run": "runs/toy", **stages, **changes})


def test_references_reach_other_stages_and_what_they_make():
    config = loop(
        seed=5,
        annotate=StageConfig("a.yaml", {"limit": 60, "offset": "${add:100,${mul:${past},${annotate.set.limit}}}"}),
        prm=StageConfig("p.yaml", {"data": {"seed": "${seed}", "threshold": "${annotate.set.limit}"}}),
        policy=StageConfig("g.yaml", {"prm": "${prm.output}", "title": "${pair}-${iteration}", "old": "${before.prm}"}),
    )
    known = {"prm": {"output": "run/2/model"}, "before": {"prm": "run/1/model"}}
    found = stage_settings(config, 3, known)
    assert found["annotate"] == {"limit": "60", "offset": "220"}
    assert found["prm"] == {"data.seed": "5", "data.threshold": "60"}
    assert found["policy"] == {"prm": "run/2/model", "title": "toy-3", "old": "run/1/model"}


def test_later_and_harder_settings_lie_on_top():
    prompts = {"data": {"prompts": {"count": 10, "offset": 0}}}
    config = loop(
        policy=StageConfig("g.yaml", prompts, later={"data.prompts.count": 20}),
        harder=[
            HarderConfig(0.5, policy={"data.prompts.offset": "${past}"}),
            HarderConfig(0.8, annotate={"limit": 7}, policy={"data": {"prompts": {"count": 30}}}),
        ],
    )
    counts = [
        (found["policy"]["data.prompts.count"], found["policy"]["data.prompts.offset"], found["annotate"])
        for found in (stage_settings(config, i, {}, level) for i, level in ((1, 0), (2, 0), (2, 1), (2, 2)))
    ]
    assert counts == [("10", "0", {}), ("20", "0", {}), ("20", "1", {}), ("30", "1", {"limit": "7"})]
    assert prompts == {"data": {"prompts": {"count": 10, "offset": 0}}}


@pytest.mark.parametrize(("figure", "level"), [(0.5, 0), (0.51, 1), (0.8, 1), (0.81, 2), (1.0, 2)])
def test_harder_problems_enter_as_the_policy_improves(figure, level):
    config = loop(harder=[HarderConfig(0.5), HarderConfig(0.8)])
    assert harder_level(config, {"pass_at_1": figure}) == level
    assert harder_level(config, None) == 0
    with pytest.raises(ConfigError, match=r"harder_by: got 'pass_at_1'; accepted: a figure of the pairs: accuracy"):
        harder_level(config, {"accuracy": figure})


def test_flat_settings_are_texts_of_a_command_line():
    nested = {"a": {"b": 1, "c.d": [1, "x"]}, "e": None, "f": True, "g": "text", "h": {}}
    assert dict(flatten(nested)) == {"a.b": "1", "a.c.d": '[1, "x"]', "e": "null", "f": "true", "g": "text", "h": "{}"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": "${prm.result}"}, r"annotate\.set\.x: got .*'prm\.result' not found"),
        ({"x": "${add:1,${pair}}"}, r"add.*got 'toy'; accepted: numbers"),
    ],
)
def test_references_that_lead_nowhere(settings, message):
    with pytest.raises(PrmkitError, match=message):
        stage_settings(loop(annotate=StageConfig("a.yaml", settings)), 1, {})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"start": "a"}, "sft, start"),
        ({"sft": None}, "sft, start"),
        ({"iterations": 0}, "iterations"),
        ({"replay": 1.0}, "replay"),
        ({"threads": 0}, "threads"),
        ({"prm_start": "cold"}, "prm_start"),
        ({"order": "prm"}, "order"),
        ({"annotate": StageConfig("a.yaml", {"limit": {"x": "${policy.output}/x"}})}, r"annotate\.set"),
        ({"order": "policy_first", "policy": StageConfig("p", later={"x": "${prm.output}"})}, r"policy\.set"),
        ({"harder": [HarderConfig(0.5, prm={"x": "${evaluate.output}"})]}, r"prm\.set"),
        ({"on_refusal": "ignore"}, "on_refusal"),
    ],
)
def test_refused_configs(changes, field):
    with pytest.raises(ConfigError, match=f"^{field}: got"):
        loop(**changes)


def test_command_line_wins_over_the_file_and_names_wrong_keys():
    config = parse(["--config", "configs/loop/quick.yaml", "--iterations", "4", "--annotate.set", "{limit: 3}"])
    assert (config.iterations, config.annotate.set, config.pair) == (4, {"limit": 3}, "quick")
    with pytest.raises(PrmkitError, match=r"itertions: no such setting. Did you mean `iterations`"):
        parse(["--config", "configs/loop/quick.yaml", "--itertions", "4"])


def test_a_version_is_known_by_what_decides_it(tmp_path):
    configs = {name: tmp_path / f"{name}.yaml" for name in ("sft", "annotate", "prm", "policy", "evaluate")}
    for path in configs.values():
        path.write_text("a: 1")
    config = loop()

    def keys(config) -> tuple[str, str]:
        return publication_key(config, configs, 1), publication_key(config, configs, 2)

    first, second = keys(config)
    assert first.endswith("iteration 1")
    assert first != second
    for name, value in {"run": "elsewhere", "registry": "s3://b/p", "iterations": 9, "threads": 2}.items():
        assert keys(replace(config, **{name: value})) == (first, second), name
    for name, value in {"labels_from": "first", "replay": 0.2, "harder": [HarderConfig(0.5)]}.items():
        changed = keys(replace(config, **{name: value}))
        assert changed[0] == first, name  # of no meaning in a first iteration
        assert changed[1] != second, name
    assert keys(replace(config, seed=1))[0] != first
    assert not set(keys(replace(config, order="policy_first"))) & {first, second}
    configs["policy"].write_text("a: 2")
    assert not set(keys(config)) & {first, second}


def test_commands_of_a_recipe_name_places_of_their_own(tmp_path):
    import sys

    run = tmp_path / "run"
    argv = (
        sys.executable,
        "-m",
        "prmkit.cli",
        "fit",
        "--a",
        f"{run}/1/policy",
        "--b",
        f'["{run}/x", "{run}/1/policy/w"]',
    )
    moved = {run: "run", run / "1" / "policy": "parent/policy"}
    assert recipe_commands([argv, ("other", str(run))], moved) == [
        ("prm", "fit", "--a", "parent/policy", "--b", '["run/x", "parent/policy/w"]'),
        ("other", "run"),
    ]


def test_seeds_of_iterations():
    assert [stage_seed(loop(seed=7), i) for i in (1, 2, 3)] == [7, 1007, 2007]
    assert Path(loop().run) == Path("runs/toy")
