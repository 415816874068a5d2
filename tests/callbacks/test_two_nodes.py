"""Two elastic agents as two nodes, killed at random moments: the run ends as one that nothing happened to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def namespaces_allowed() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"prmkit-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("hosts", ["loopback", "namespaces"])
def test_kills_of_either_node(hosts, tmp_path):
    if hosts == "namespaces" and not namespaces_allowed():
        pytest.skip("no right to make network namespaces")
    command = [
        sys.executable,
        str(ROOT / "benchmarks/preemption.py"),
        "--hosts",
        hosts,
        "--result",
        str(tmp_path / "r"),
    ]
    command += ["--kills", "4", "--kills_a_run", "4", "--iterations", "6", "--seed", "3"]
    subprocess.run(command, check=True, timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT)})
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert figures["kills"] == figures["kills_survived"] == 4
    assert figures["steps_a_run"] == 12
