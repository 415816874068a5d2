"""The loop from easy to hard problems with models and sizes of the quick one: which stage sees which lengths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prmkit.io import read_json
from prmkit.tasks.accumulator import parse_program
from registry import Registry

STAGES = ("sft", "annotate", "prm", "policy", "evaluate")
CONFIGS = dict(zip(STAGES, ("sft", "annotate", "prm", "grpo", "search"), strict=True))
SIZES = {
    "annotate.set.limit": 40,
    "policy.set.data.prompts.count": 32,
    "evaluate.set.limit": 20,
    "gate": "{min_problems: 10, require_prm: false}",  # steps of such a policy are never right
    "iterations": 1,
}


@pytest.mark.slow
def test_a_quick_run_promotes_a_pair_that_was_measured_on_hard_problems(tmp_path):
    argv = [
        sys.executable,
        "-m",
        "prmkit.cli",
        "loop",
        "--config",
        "configs/loop/easy_to_hard.yaml",
        "--iterations",
        "1",
    ]
    for stage, kind in CONFIGS.items():
        argv += [f"--{stage}.config", f"configs/{kind}/quick.yaml"]
    for key, value in {**SIZES, "run": tmp_path / "run", "registry": tmp_path / "registry", "threads": 1}.items():
        argv += [f"--{key}", str(value)]
    subprocess.run(argv, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    made = tmp_path / "run" / "iteration-1"

    def operations(file: Path) -> set[int]:
        return {len(parse_program(json.loads(line)["question"])[0]) for line in file.open()}

    assert operations(made / "annotate" / "annotations.jsonl") <= {4, 5, 6, 7}
    assert operations(made / "evaluate" / "rows.jsonl") == {24}
    metrics = read_json(made / "policy" / "training.json")["metrics"]
    assert {"rollout/process", "rollout/outcome", "rollout/all_wrong"} <= metrics.keys()
    assert read_json(made / "gate" / "gate.json")["promoted"]
    assert Registry(tmp_path / "registry").versions("easy_to_hard") == [1]
