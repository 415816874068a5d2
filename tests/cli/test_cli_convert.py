"""`prm annotate --convert` from arguments to files."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from prmkit.annotation.curate import CurationParams
from prmkit.annotation.formats import load_records, write_records
from prmkit.annotation.judge import Verdict, solution_key
from prmkit.annotation.records import StepLabels, question_id
from prmkit.annotation.targets import first_error
from prmkit.cli import main
from prmkit.cli.convert import convert


def record(*values, question="Q?"):
    steps = tuple(f"s{i}" for i in range(len(values)))
    return StepLabels(question_id(question), question, None, steps, values, (8,) * len(values), "test", "")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own; gives status, stdout and the last line of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        status = main(["annotate", "--convert", *map(str, argv)])
        captured = capsys.readouterr()
        return status, captured.out, (captured.err.strip().splitlines() or [""])[-1]

    return run


def test_samples_of_several_formats_become_one_file(run, data_dir, tmp_path):
    folder = data_dir / "formats"
    status, out, err = run(folder, "--to", "prmkit", "--output", "all.jsonl")
    assert (status, out.splitlines()[:2]) == (0, ["made    all.jsonl", "result  446 records in 446 lines of prmkit"])
    assert err == "convert: 19/19, 446 records"
    assert list(load_records("all.jsonl")) == list(load_records(folder))


def test_there_and_back_again(run, data_dir, tmp_path):
    sample = data_dir / "formats" / "math-aps-tree.jsonl"
    assert run(sample, "--from", "math-aps", "--to", "prmkit", "--output", "own.jsonl")[0] == 0
    assert run("own.jsonl", "--to=math-aps-tree", "--output=own.jsonl", "--overwrite=true")[0] == 0  # in place
    trees = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    native = [json.loads(line) for line in sample.read_text().splitlines()]
    for tree in (*trees, *native):
        tree["reasoning_steps"]["mc_value"] = None  # the value of the bare question is not kept
    assert trees == native


def test_losses_are_counted(run):
    write_records([record(0.5, None, 0.0, None), record(None)], "in.jsonl")
    status, out, _ = run("in.jsonl", "--to", "trl", "--output", "out.jsonl", "--threshold", "0.5")
    assert status == 0
    assert out.splitlines()[:-1] == [
        "made    out.jsonl",
        "result  2 records in 1 lines of trl",
        "        values between 0 and 1 written as right or wrong: 1",
        "        unlabelled steps joined to the next labelled one: 1",
        "        unlabelled ends left out: 1",
        "        records without any label left out: 1",
    ]
    assert [row.values for row in load_records("out.jsonl")] == [(0.0, 0.0)]


def test_curation_on_the_way(run, tmp_path):
    rows = [record(1.0), record(0.5), record(1.0, 0.0, question="R?"), record(1.0, question="S?")]
    write_records(rows, "in.jsonl")
    verdicts = [Verdict(solution_key(row), "j", first_error(row.values)) for row in rows[:3]]
    (tmp_path / "v").write_text("".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))
    status, out, _ = run(
        "in.jsonl", "--to", "prmkit", "--output", "out.jsonl", "--curation.deduplicate", "true",
        "--curation.verdicts", "v",
    )  # fmt: skip
    assert status == 0
    assert "curation: 2 of 4 records kept (1 duplicates, 1 without verdict)" in out
    assert [row.values for row in load_records("out.jsonl")] == [(0.75,), (1.0, 0.0)]


def test_parquet_is_read_as_the_hub_stores_it(run):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"Q{i}?", "completions": ["a", "b"], "labels": [True, False]} for i in range(7)]
    datasets.Dataset.from_list(rows).to_parquet("x.parquet")
    status, out, _ = run("x.parquet", "--to", "trl", "--output", "y.jsonl", "--limit", "5")
    assert (status, out.splitlines()[1]) == (0, "result  5 records in 5 lines of trl")
    assert [json.loads(line) for line in Path("y.jsonl").read_text().splitlines()] == rows[:5]


def test_as_a_function(tmp_path):
    write_records([record(1.0), record(0.0)], tmp_path / "in.jsonl")
    counts = []
    report, curated = convert(
        [str(tmp_path / "in.jsonl")], tmp_path / "out.jsonl", target_format="math-shepherd", on_line=counts.append,
        curation=CurationParams(deduplicate=True),
    )  # fmt: skip
    assert (report.records, report.lines, counts) == (1, 1, [1, 2])
    assert curated is not None
    assert curated.dropped == {"duplicates": 1}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.jsonl", "--to", "trl", "--output", "o"], "error: gone.jsonl: no such file"),
        (["data/gone.jsonl", "--to", "trl", "--output", "o"], "error: data/gone.jsonl: no such file"),
        (["bad.jsonl", "--to", "trl", "--output", "o"], "error: bad.jsonl:2: malformed JSON line"),
        (["other.jsonl", "--to", "trl", "--output", "o"], "error: other.jsonl:1: fields ['text'] are no known format"),
        (["good.jsonl", "--from", "trl", "--to", "prmkit", "--output", "o"], "error: good.jsonl:1: completions: got"),
        (["empty.jsonl", "--to", "trl", "--output", "o"], "error: empty.jsonl: no step labels in there"),
        (["good.jsonl", "--to", "csv", "--output", "o"], "error: to: got 'csv'; accepted: "),
        (["good.jsonl", "--to", "trl"], "error: `output`: not given."),
        (["good.jsonl", "--to", "trl", "--output", "o", "--limit", "0"], "error: limit: got 0; accepted: an integer"),
        (["good.jsonl", "--to", "trl", "--output", "o", "--threshold", "1"], "error: threshold: got 1.0; accepted:"),
        (["good.jsonl", "--to", "trl", "--output", "o", "--lmit", "3"], "error: lmit: no such setting. Did you mean"),
        (
            ["good.jsonl", "--to", "trl", "--output", "o", "--curation.value_ratio", "0"],
            "error: curation.value_ratio: got 0.0; accepted: a number of at least 1",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(run, tmp_path, argv, message):
    write_records([record(1.0)], "good.jsonl")
    (tmp_path / "bad.jsonl").write_text((tmp_path / "good.jsonl").read_text() + "{oops\n")
    (tmp_path / "other.jsonl").write_text('{"text": 1}\n')
    (tmp_path / "empty.jsonl").touch()
    status, _, error = run(*argv)
    assert status == 2
    assert error.startswith(message)
    assert not (tmp_path / "o").exists()
    assert not list(tmp_path.glob(".*tmp"))


def test_help_without_torch():
    code = (
        "import sys; from prmkit.cli import main; status = main(['annotate', '--convert', '--help'])\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for text in (
        "--to {prmkit,prm800k",
        "--from {auto,",
        "--curation.deduplicate",
        "examples:",
        "--output",
        "default: 0.0",
    ):
        assert text in done.stdout
