"""`prm doctor`: ranges come from the package's metadata, and its status tells whether prmkit can run."""

import json
import os

import pytest

from prmkit.cli import doctor
from prmkit.cli.doctor import inspect_packages

REQUIREMENTS = [
    "torch<2.15,>=2.13",
    "numpy>=2.0",
    'wandb>=0.21; extra == "wandb"',
    'vllm<0.34,>=0.32; extra == "vllm"',
    'pytest>=8; extra == "dev"',
]


def by_name(installed):
    return {package.name: package for package in inspect_packages(REQUIREMENTS, installed)}


def test_packages_against_ranges():
    found = by_name({"torch": "2.13.0+cpu", "numpy": "1.26.4", "vllm": "0.34.0"})
    assert list(found) == ["torch", "numpy", "vllm", "wandb"]
    assert [p.status for p in found.values()] == ["ok", "out of range", "out of range", "missing"]
    assert [p.extra for p in found.values()] == [None, None, "vllm", "wandb"]
    assert found["torch"].command is None
    assert found["numpy"].command == "pip install 'numpy>=2.0'"
    assert found["vllm"].command == "pip install 'vllm>=0.32,<0.34'"


def test_only_required_parts_are_problems():
    good = by_name({"torch": "2.14.1", "numpy": "2.4"})
    assert doctor._problems(list(good.values())) == []
    bad = by_name({"numpy": "1.0", "wandb": "9"})
    assert doctor._problems(list(bad.values())) == [
        "torch: not installed, supported >=2.13,<2.15. Get it with: pip install 'torch>=2.13,<2.15'",
        "numpy: version 1.0 installed, supported >=2.0. Get it with: pip install 'numpy>=2.0'",
    ]


def test_json_report_of_this_machine(capsys, tmp_path):
    assert doctor.run(["--json", "--runs", str(tmp_path / "runs" / "deep")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "runs").exists()
    assert report["problems"] == []
    assert report["runs"]["writable"]
    assert report["devices"]["cpu_cores"] >= 1
    names = {package["name"]: package for package in report["packages"]}
    assert names["torch"]["status"] == "ok"
    assert {"lightning", "transformers", "datasets", "peft", "math-verify", "deepspeed", "vllm", "wandb"} <= set(names)


def test_table_shows_optional_parts_and_their_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.run(["--runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "vllm" in text
    assert text.rstrip().endswith("ready")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_runs_folder(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert doctor.run(["--json", "--runs", str(tmp_path / "runs")]) == 2
    assert not json.loads(capsys.readouterr().out)["runs"]["writable"]
