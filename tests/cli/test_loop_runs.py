"""The loop as a user meets it: killed anywhere, started again, continued elsewhere, made again from its recipe, with
two processes a fit."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prmkit.io import read_json
from registry import Manifest, Registry

COMMAND = (sys.executable, "-m", "prmkit.cli", "loop", "--config", "configs/loop/quick.yaml")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
pytestmark = pytest.mark.slow


def command(run: Path, registry: Path, *more: str) -> list[str]:
    return [*COMMAND, "--run", str(run), "--registry", str(registry), *more]


def hashes(manifest: Manifest) -> dict[str, str]:
    """Of the models and of what the next iteration goes on from; results hold seconds."""
    return {path: file.sha256 for path, file in manifest.located().items() if not path.endswith("results.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A folder with a finished `run` and its `registry`."""
    folder = tmp_path_factory.mktemp("loop")
    subprocess.run(command(folder / "run", folder / "registry"), check=True, env=ENVIRONMENT, capture_output=True)
    return folder


def test_what_it_leaves(undisturbed):
    summary = read_json(undisturbed / "run" / "summary.json")
    assert [entry["ref"] for entry in summary["iterations"]] == ["quick@1", "quick@2"]
    assert [entry["parent"] for entry in summary["iterations"]] == [None, "quick@1"]
    assert summary["iterations"][1]["replayed"] > 0
    store = Registry(undisturbed / "registry")
    assert store.verify().ok
    first, second = store.manifest("quick@1"), store.manifest("quick@2")
    assert {file.path for file in first.policy.files} & {"model.safetensors", "config.json", "step_format.json"}
    assert hashes(first)["policy/model.safetensors"] != hashes(second)["policy/model.safetensors"]
    assert second.gate.reference == "quick@1"
    assert second.recipe.commands[0][:4] == ("prm", "pairs", "pull", "quick@1")


def test_a_killed_loop_ends_with_the_same_pair(undisturbed, tmp_path, killed_at_random):
    summary = tmp_path / "run" / "summary.json"
    killed_at_random(
        command(tmp_path / "run", tmp_path / "registry"),
        tmp_path / "run",
        lambda: summary.exists() and len(read_json(summary)["iterations"]) >= 2,
        kills=8,
        waits=(5.0, 25.0),
        seed=1,
        timeout=1200,
        env=ENVIRONMENT,
    )
    for version in ("quick@1", "quick@2"):
        expected = Registry(undisturbed / "registry").manifest(version)
        found = Registry(tmp_path / "registry").manifest(version)
        assert hashes(found) == hashes(expected), version
        assert found.metrics == expected.metrics
    assert Registry(tmp_path / "registry").versions("quick") == [1, 2]


def test_another_machine_goes_on_from_the_registry_alone(undisturbed, tmp_path):
    here, there = Registry(undisturbed / "registry"), Registry(tmp_path / "registry")
    there.fetch(here, "quick@1")
    subprocess.run(command(tmp_path / "run", tmp_path / "registry"), check=True, env=ENVIRONMENT, capture_output=True)
    assert hashes(there.manifest("quick@2")) == hashes(here.manifest("quick@2"))
    assert not (tmp_path / "run" / "sft").exists()
    assert [entry["pulled"] for entry in read_json(tmp_path / "run" / "summary.json")["iterations"]] == [True, False]


def test_a_moved_run_is_complete_and_goes_on(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    done = subprocess.run(
        command(tmp_path / "run", undisturbed / "registry", "--on_refusal", "continue"),
        check=True, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert "started" not in done.stdout
    assert Registry(undisturbed / "registry").versions("quick") == [1, 2]


def test_the_recipe_makes_the_same_pair_again(undisturbed, tmp_path):
    store = Registry(undisturbed / "registry")
    subprocess.run(
        [*COMMAND[:3], "pairs", "reproduce", "quick@2", "--run", "--into", tmp_path, "--registry", store.storage.url],
        check=True, env=ENVIRONMENT, capture_output=True,
    )  # fmt: skip
    made = tmp_path / "run" / "iteration-2"
    for member, folder in (("policy", made / "policy" / "policy"), ("prm", made / "prm" / "model")):
        for file in store.manifest("quick@2").files(member):
            content = (folder / file.path).read_bytes()
            assert len(content) == file.size, file.path
            assert hashlib.sha256(content).hexdigest() == file.sha256, file.path


def test_two_processes_a_fit(tmp_path):
    more = ("--devices", "2", "--iterations", "1", "--order", "prm_first")
    subprocess.run(command(tmp_path / "run", tmp_path / "registry", *more), check=True, env=ENVIRONMENT)
    for log in ("sft", "1-prm", "1-policy"):
        assert "GLOBAL_RANK: 1, MEMBER: 2/2" in (tmp_path / "run" / "logs" / f"{log}.log").read_text(), log
    found = Registry(tmp_path / "registry").manifest("quick@1")
    assert "policy/model.safetensors" in found.located()
    assert read_json(tmp_path / "run" / "iteration-1" / "policy" / "training.json")["steps"] > 0
