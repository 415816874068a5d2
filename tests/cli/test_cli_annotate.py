"""`prm annotate` from arguments to files, with a real (tiny) policy."""

import json
import subprocess
import sys

import pytest

from prmkit.annotation.formats import load_records
from prmkit.annotation.math_shepherd import MathShepherdParams
from prmkit.cli import main
from prmkit.cli.annotate import parser
from prmkit.cli.options import build
from prmkit.resources import find_config, shipped_configs

OPTIONS = [
    *("--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "8"),
    *("--solutions_per_problem", "6", "--rollouts", "3", "--sampling.max_tokens", "24", "--in_flight", "3"),
    *("--engine.device", "cpu"),
]


@pytest.fixture
def annotate(memorised_policy, tmp_path):
    def run(*extra):
        return main(
            ["annotate", "--policy", str(memorised_policy), "--output", str(tmp_path / "x.jsonl"), *OPTIONS, *extra]
        )

    return run


def test_labels_and_counts(annotate, tmp_path, capsys):
    assert annotate() == 0
    records = list(load_records(tmp_path / "x.jsonl"))
    meta = json.loads((tmp_path / "x.jsonl.meta.json").read_text())
    assert meta["complete"]
    assert meta["counts"]["records"] == len(records) > 8
    assert meta["counts"]["solutions"] == 48
    assert meta["usage"]["generated_tokens"] > 0
    assert meta["seconds"] > 0
    assert any(record.correct for record in records)
    assert any(record.correct is False for record in records)
    assert {record.separator for record in records} == {"\n"}
    assert all(record.problem_id.startswith("accumulator/train/") for record in records)
    output = capsys.readouterr()
    assert "against exact truth: step accuracy" in output.out
    assert "annotate: 8/8" in output.err


def test_again_is_nothing_and_other_settings_are_refused(annotate, tmp_path, capsys):
    annotate()
    before = (tmp_path / "x.jsonl").read_bytes()
    assert annotate() == 0
    assert (tmp_path / "x.jsonl").read_bytes() == before
    capsys.readouterr()
    assert annotate("--rollouts", "4") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: rollouts: got 4; accepted: 3, which ")
    assert "--overwrite true" in error
    assert (tmp_path / "x.jsonl").read_bytes() == before
    assert annotate("--rollouts", "4", "--overwrite", "true") == 0
    assert {n for r in load_records(tmp_path / "x.jsonl") for n in r.rollouts} == {1, 4}


def test_retrained_policy_is_noticed(annotate, memorised_policy, tmp_path, capsys):
    annotate()
    other = tmp_path / "other"
    other.mkdir()
    for file in memorised_policy.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1
    weights.write_bytes(bytes(data))
    capsys.readouterr()
    assert annotate("--policy", str(other), "--policy_name", str(memorised_policy)) == 2
    assert capsys.readouterr().err.startswith("error: policy: got ")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--rolouts", "4"], "rolouts: no such setting"),
        (["--rollouts", "0"], "annotate.rollouts: got 0; accepted: an integer of at least 1"),
        (["--policy", "nowhere"], "--policy nowhere: nowhere: no such model folder"),
        (["--limit", "0"], "limit: got 0"),
        (["--task", "acumulator"], "task.name: got 'acumulator'"),
        (["--config", "absent.yaml"], "--config absent.yaml: no such file"),
        (["--engine.device", "tpu9"], "engine.device: got 'tpu9'"),
    ],
)
def test_mistakes_end_in_one_line(annotate, capsys, extra, message):
    assert annotate(*extra) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("name", shipped_configs("annotate"))
def test_shipped_configs(name):
    values = parser().parse_args(["--policy", "p", "--output", "o", "--config", str(find_config(name))])
    assert build(MathShepherdParams, parser().instantiate(values)).rollouts >= 1


@pytest.mark.parametrize("command", ["annotate", "search"])
def test_help_names_every_setting_without_torch(command):
    code = (
        f"import sys; from prmkit.cli import main; status = main(['{command}', '--help'])\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for text in (
        "--policy POLICY",
        "--sampling.temperature",
        "--engine.device",
        "examples:",
        f"prm {command} --config",
    ):
        assert text in done.stdout


def test_print_config_can_be_given_back(capsys, tmp_path):
    assert main(["annotate", "--policy", "p", "--output", "o", "--rollouts", "5", "--print_config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    values = parser().instantiate(parser().parse_args(["--config", str(tmp_path / "c.yaml")]))
    assert build(MathShepherdParams, values) == MathShepherdParams(rollouts=5)
