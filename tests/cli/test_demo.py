"""The demo as a user meets it: from nothing to a summary, killed anywhere, started again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prmkit.cli.demo import stages
from prmkit.io import read_json

COMMAND = (sys.executable, "-m", "prmkit.cli", "demo", "--config", "quick", "--output")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_stages_hand_on_what_they_make(tmp_path):
    made: set[str] = set()
    for together in stages(tmp_path, "quick", seed=3):
        for stage in together:
            assert "3" in stage.argv
            assert str(stage.directory) in " ".join(stage.argv)
            assert all(str(path) in made or path.name == "quick.yaml" for path in stage.inputs)
            assert all(stage.directory in path.parents for path in stage.outputs)
        made |= {str(path) for stage in together for path in stage.outputs}


@pytest.mark.slow
def test_a_killed_demo_ends_with_the_same_figures(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*COMMAND, str(undisturbed)], check=True, env=ENVIRONMENT, capture_output=True)
    expected = read_json(undisturbed / "summary.json")
    rng, kills = random.Random(0), 0
    while not (killed / "summary.json").exists():
        process = subprocess.Popen(
            [*COMMAND, str(killed)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if kills < 6:
            time.sleep(rng.uniform(4.0, 20.0))
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate(timeout=600)
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        wait_for_orphans(killed)
    found = read_json(killed / "summary.json")
    for key in ("seed", "tokens", "annotation", "figures"):
        assert found[key] == expected[key], key


def wait_for_orphans(run: Path) -> None:
    """A stage's process is killed with its parent, but not in the same instant."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, check=False).stdout
        if not alive.strip():
            return
        time.sleep(0.1)
    raise AssertionError("a stage outlived its killed parent")
