"""`prm annotate` from arguments to files, with a real (tiny) policy."""

import json
import subprocess
import sys

import pytest

from prmkit.annotation.formats import load_records
from prmkit.annotation.math_shepherd import MathShepherdParams
from prmkit.annotation.methods import METHODS
from prmkit.cli import main
from prmkit.cli.annotate import parse_shard, parser
from prmkit.cli.options import build, peek
from prmkit.errors import ConfigError
from prmkit.io import read_jsonl
from prmkit.resources import find_config, shipped_configs

OPTIONS = [
    *("--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "8"),
    *("--rollouts", "3", "--sampling.max_tokens", "24", "--in_flight", "3", "--chunk", "3", "--engine.device", "cpu"),
]
SHEPHERD = ["--method", "math_shepherd", "--solutions_per_problem", "6"]
OMEGA = ["--method", "omegaprm", "--filter_rollouts", "6"]


@pytest.fixture
def annotate(memorised_policy, tmp_path):
    def run(*extra):
        return main(
            [
                *("annotate", "--policy", str(memorised_policy), "--output", str(tmp_path / "x.jsonl")),
                *(OPTIONS if "omegaprm" in extra else OPTIONS + SHEPHERD),
                *extra,
            ]
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
    assert "step accuracy" in output.out
    assert "annotate: 8/8" in output.err
    report = json.loads((tmp_path / "x.jsonl.report.json").read_text())
    assert report["counts"] == meta["counts"]
    assert sum(report["values"]) == meta["counts"]["values"]
    assert 0.0 <= report["truth"]["step_accuracy"] <= 1.0


def test_omegaprm_is_the_default_and_leaves_its_trees(annotate, tmp_path, capsys):
    assert annotate(*OMEGA) == 0
    records = list(load_records(tmp_path / "x.jsonl")) if (tmp_path / "x.jsonl").stat().st_size else []
    trees = list(read_jsonl(tmp_path / "x.jsonl.trees.jsonl"))
    assert [tree["problem_id"] for tree in trees] == [f"accumulator/train/{i}" for i in range(8)]
    assert {record.source for record in records} <= {"omegaprm"}
    searched = sum(len(tree["solutions"]) for tree in trees)
    assert json.loads((tmp_path / "x.jsonl.meta.json").read_text())["counts"]["searches"] == searched
    assert "samples a labelled prefix" in capsys.readouterr().out
    assert peek([], "method", parser().get_defaults()["method"]) == "omegaprm"


def test_shards_in_their_order_and_shared_work_are_the_whole(annotate, tmp_path):
    annotate(*OMEGA)
    whole = [(tmp_path / name).read_bytes() for name in ("x.jsonl", "x.jsonl.trees.jsonl")]
    parts = [tmp_path / f"part-{i}.jsonl" for i in (1, 2, 3)]
    for i, part in enumerate(parts, start=1):
        assert annotate(*OMEGA, "--shard", f"{i}/3", "--output", str(part)) == 0
    joined = [
        b"".join((part.with_name(part.name + end)).read_bytes() for part in parts) for end in ("", ".trees.jsonl")
    ]
    assert joined == whole
    for _ in range(2):  # the second finds everything done
        assert annotate(*OMEGA, "--shared", "true", "--output", str(tmp_path / "shared.jsonl")) == 0
        assert (tmp_path / "shared.jsonl").read_bytes() == whole[0]
        assert (tmp_path / "shared.jsonl.trees.jsonl").read_bytes() == whole[1]


@pytest.mark.slow
def test_workers_of_one_machine_share_the_work(annotate, tmp_path):
    annotate(*OMEGA, "--chunk", "1")
    whole, log = (tmp_path / "x.jsonl").read_bytes(), tmp_path / "two.jsonl.parts" / "worker-1.log"
    for _ in range(2):  # the second finds everything done
        assert annotate(*OMEGA, "--chunk", "1", "--workers", "2", "--output", str(tmp_path / "two.jsonl")) == 0
        assert (tmp_path / "two.jsonl").read_bytes() == whole
        assert "solutions of 8 problems" in log.read_text()


def test_shards_by_hand():
    assert parse_shard("2/8") == (2, 8)
    for text in ("0/2", "3/2", "1", "a/b", "1/2/3"):
        with pytest.raises(ConfigError, match="shard: got"):
            parse_shard(text)


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
        (["--method", "magic"], "method: got 'magic'; accepted: omegaprm | math_shepherd | mips | traces"),
        (["--shard", "9/8"], "shard: got '9/8'"),
        (["--shard", "1/9"], "shard: got '1/9'; accepted: at most 8 parts"),
        (["--shared", "true", "--overwrite", "true"], "overwrite: got True; accepted: false with shared"),
        (["--workers", "2", "--overwrite", "true"], "overwrite: got True; accepted: false with shared"),
        (["--workers", "0"], "workers: got 0; accepted: an integer of at least 1"),
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
    arguments = ["--policy", "p", "--output", "o", "--config", str(find_config(name))]
    method = peek(arguments, "method", "omegaprm")
    values = parser(method).instantiate(parser(method).parse_args(arguments))
    assert values["method"] == method
    assert build(METHODS[method].params, values).rollouts >= 1


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
    assert main(["annotate", *SHEPHERD, "--policy", "p", "--output", "o", "--rollouts", "5", "--print_config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    arguments = ["--config", str(tmp_path / "c.yaml")]
    assert peek(arguments, "method", "omegaprm") == "math_shepherd"
    values = parser("math_shepherd").instantiate(parser("math_shepherd").parse_args(arguments))
    assert build(MathShepherdParams, values) == MathShepherdParams(solutions_per_problem=6, rollouts=5)


def test_traces_of_a_search_are_labelled(memorised_policy, tmp_path, capsys):
    rows, output = tmp_path / "s" / "rows.jsonl", tmp_path / "hard.jsonl"
    search = [
        "search",
        "--policy",
        str(memorised_policy),
        "--output",
        str(rows.parent),
        "--n",
        "8",
        "--greedy",
        "false",
    ]
    assert main([*search, *OPTIONS[:6], "--split", "train", "--sampling.max_tokens", "24"]) == 0
    arguments = ["annotate", "--policy", str(memorised_policy), "--output", str(output), *OPTIONS]
    assert main([*arguments, "--method", "traces", "--candidates", str(rows)]) == 0
    records = list(load_records(output))
    assert {record.source for record in records} == {"search-traces"}
    assert {record.correct for record in records} == {True, False}
    found = {(row["problem_id"], tuple(trace["steps"])) for row in read_jsonl(rows) for trace in row["traces"]}
    assert {(record.problem_id, record.steps) for record in records} <= found
    assert "step accuracy" in capsys.readouterr().out
    first, *others = read_jsonl(rows)
    first["traces"] = first["traces"][:-1]
    rows.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    assert main([*arguments, "--method", "traces", "--candidates", str(rows)]) == 2
    assert "was made from other problems" in capsys.readouterr().err
    assert main([*arguments, "--method", "traces"]) == 2
    assert "candidates: got None; accepted: the rows.jsonl of a `prm search`" in capsys.readouterr().err
