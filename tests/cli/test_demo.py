"""The demo as a user meets it: from nothing to a summary, killed anywhere, started again."""

import os
import subprocess
import sys

import pytest

from prmkit.cli.demo import stages
from prmkit.io import read_json

COMMAND = (sys.executable, "-m", "prmkit.cli", "demo", "--config", "quick", "--output")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_stages_hand_on_what_they_make(tmp_path):
    made: set[str] = set()
    for together in stages(tmp_path, "quick", seed=3):
        for stage in together:
            assert "3" in stage.argv or stage.name == "gate"
            assert str(stage.directory) in " ".join(stage.argv)
            assert all(str(path) in made or path.name == "quick.yaml" for path in stage.inputs)
            assert all(stage.directory in path.parents for path in stage.outputs)
        made |= {str(path) for stage in together for path in stage.outputs}


@pytest.mark.slow
def test_a_killed_demo_ends_with_the_same_figures(tmp_path, killed_at_random):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*COMMAND, str(undisturbed)], check=True, env=ENVIRONMENT, capture_output=True)
    expected = read_json(undisturbed / "summary.json")
    killed_at_random(
        [*COMMAND, str(killed)],
        killed,
        (killed / "summary.json").exists,
        kills=6,
        waits=(2.0, 9.0),
        seed=0,
        timeout=600,
        env=ENVIRONMENT,
    )
    found = read_json(killed / "summary.json")
    for key in ("seed", "tokens", "annotation", "figures"):
        assert found[key] == expected[key], key
