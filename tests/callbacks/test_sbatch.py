"""The example of a SLURM job, with stand-ins for SLURM's commands: what it starts, when it asks for another turn."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs/slurm/fit.sbatch"


@pytest.mark.parametrize(("status", "requeued", "ends_with"), [(0, False, 0), (75, True, 0), (1, False, 1)])
def test_queued_again_after_a_signal_only(tmp_path, status, requeued, ends_with):
    for name, text in {"srun": f'echo "$@" >> started; exit {status}', "scontrol": 'echo "$@" >> asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "4"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONFIG": "c.yaml", "RUN": "/runs/one", **slurm}
    ended = subprocess.run(["bash", SCRIPT], cwd=tmp_path, env=environment)
    assert ended.returncode == ends_with
    command = (tmp_path / "started").read_text().split()
    assert command[:4] == ["--kill-on-bad-exit=1", "prm", "fit", "--config"]
    assert command[command.index("--trainer.num_nodes") + 1] == "2"
    assert command[command.index("--trainer.devices") + 1] == "8"
    assert command[-2:] == ["--ckpt_path", "last"]
    assert (tmp_path / "asked").exists() is requeued
    if requeued:
        assert (tmp_path / "asked").read_text().split() == ["requeue", "17"]


def test_without_a_run_folder(tmp_path):
    ended = subprocess.run(["bash", SCRIPT], env={"PATH": os.environ["PATH"], "CONFIG": "c.yaml"}, capture_output=True)
    assert ended.returncode != 0
    assert b"RUN: name a folder" in ended.stderr
