"""`--pair` in search, annotate and fit: versions of a registry where folders stand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from prmkit.cli import main
from prmkit.cli.pair_option import with_pair, with_pair_for_fit
from prmkit.errors import PrmkitError
from prmkit.formats.presets import get_step_format
from prmkit.io import read_json
from prmkit.models import PRMModel
from registry import Publication, Registry
from registry.errors import IncompatibleError

BOTH = {"policy": "--policy", "prm": "--prm"}


@pytest.fixture(scope="session")
def own_prm(memorised_policy, tmp_path_factory) -> Path:
    """A PRM with a head of its own over the policy's weights."""
    folder = tmp_path_factory.mktemp("own") / "prm"
    PRMModel.from_pretrained(memorised_policy, get_step_format("plain-head")).save_pretrained(folder)
    return folder


@pytest.fixture
def registry(memorised_policy, own_prm, tmp_path, monkeypatch) -> Registry:
    monkeypatch.setenv("PRMKIT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("PRMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    store = Registry()
    store.publish(Publication("toy", memorised_policy, own_prm), alias="candidate")
    return store


def test_search_and_annotate_with_a_version(registry, memorised_policy, own_prm, tmp_path):
    task = ["--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "3"]
    task += ["--sampling.max_tokens", "24", "--engine.device", "cpu"]
    assert main(["search", "--pair", "toy@candidate", "--output", "by-pair", "--n", "4", *task]) == 0
    folders = ["--policy", str(memorised_policy), "--prm", str(own_prm)]
    assert main(["search", *folders, "--output", "by-folders", "--n", "4", *task]) == 0
    figures = [read_json(tmp_path / name / "summary.json")["figures"] for name in ("by-pair", "by-folders")]
    assert figures[0] == figures[1]
    assert "product_vote" in figures[0]["accuracy"]

    assert main(["annotate", "--pair=toy", "--method", "math_shepherd", "--output", "steps.jsonl", *task]) == 0
    records = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert {record["policy"] for record in records} == {"toy@1"}


def test_explicit_folders_win_and_have_to_fit(registry, own_prm, tmp_path):
    argv = with_pair(["--pair", "toy@1", "--n", "4", f"--prm={own_prm}"], BOTH)
    assert argv[:2] == ["--n", "4"]
    assert argv.count(f"--prm={own_prm}") == 1
    assert "--prm" not in argv
    assert Path(argv[argv.index("--policy") + 1]).is_relative_to(tmp_path / "cache")
    other = tmp_path / "other"
    shutil.copytree(own_prm, other)
    text = (other / "step_format.json").read_text().replace('"separator": "\\n"', '"separator": ";"')
    (other / "step_format.json").write_text(text)
    with pytest.raises(IncompatibleError, match=r"--pair with --policy and --prm: .*steps end with"):
        with_pair(["--pair", "toy@1", "--prm", str(other)], BOTH)


def test_without_the_option_nothing_changes():
    argv = ["--policy", "p", "--registry", "r"]
    assert with_pair(argv, BOTH) == argv
    assert with_pair_for_fit(argv, []) == argv


@pytest.mark.parametrize(
    ("argv", "message"), [(["--pair"], "a value must follow"), (["--pair=a", "--pair", "b"], "twice")]
)
def test_misuse(argv, message):
    with pytest.raises(PrmkitError, match=f"--pair: .*{message}"):
        with_pair(argv, BOTH)


def test_a_version_that_is_not_there_is_an_error_in_one_line(registry, capsys):
    assert main(["search", "--pair", "toy@7", "--output", "o"]) == 2
    assert "toy@7" in capsys.readouterr().err


def printed(capsys, *argv: str) -> dict:
    capsys.readouterr()
    assert main(["fit", *argv, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_fit_goes_on_from_the_half_it_trains(registry, tmp_path, capsys):
    here = registry.checkout("toy@1")
    prm = printed(capsys, "--config", "configs/prm/quick.yaml", "--pair", "toy@candidate")
    assert prm["model"]["init_args"]["source"]["path"] == str(here.prm)
    grpo = ("--config", "configs/grpo/quick.yaml", "--pair", "toy")
    found = printed(capsys, *grpo)
    assert found["model"]["init_args"]["source"]["path"] == str(here.policy)
    assert found["data"]["init_args"]["prm"] is None
    found = printed(capsys, *grpo, "--data.rewards.process.form", "min")
    assert found["data"]["init_args"]["prm"]["path"] == str(here.prm)
    found = printed(capsys, *grpo, "--model.source.path", "mine")
    assert found["model"]["init_args"]["source"]["path"] == "mine"


def test_warm_start_keeps_the_head(registry):
    """What `--pair` hands to a PRM fit is read with its head, not given a new one."""
    from lightning_modules.prm import PRM
    from prmkit.models import ModelSource

    pulled = registry.checkout("toy@1")
    module = PRM(ModelSource(path=str(pulled.prm)), step_format="plain-head")
    module.configure_model()
    expected = PRMModel.from_pretrained(pulled.prm).model.score.weight
    assert torch.equal(module.model.model.score.weight, expected)
