"""`prm search` from arguments to files, with a real (tiny) policy that serves as its own untrained PRM."""

import json
import shutil
import sys

import pytest

from prmkit.cli import main
from prmkit.cli.options import build
from prmkit.cli.search import parser
from prmkit.io import read_json, write_json
from prmkit.resources import find_config
from prmkit.search.best_of_n import BestOfNParams
from prmkit.search.rows import read_rows

OPTIONS = [
    *("--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "8"),
    *("--n", "16", "--sampling.max_tokens", "24", "--in_flight", "3", "--chunk", "3"),
    *("--engine.device", "cpu"),
]


@pytest.fixture
def search(memorised_policy, memorised_prm, tmp_path):
    def run(*extra, output="out", prm=True):
        models = ["--policy", str(memorised_policy), *(["--prm", str(memorised_prm)] if prm else [])]
        return main(["search", *models, "--output", str(tmp_path / output), *OPTIONS, *extra])

    return run


def test_everything_it_leaves(search, tmp_path, capsys):
    assert search() == 0
    summary = read_json(tmp_path / "out" / "summary.json")
    figures = summary["figures"]
    assert (summary["seed"], summary["n"], summary["headline"]) == (0, 16, "product_vote")
    assert summary["problems"]["split"] == "test"
    assert 0.3 < figures["pass_at_1"] < 1.0
    assert figures["greedy"] > 0.3
    assert figures["accuracy"]["majority"]["1"]["mean"] == figures["pass_at_1"]
    assert set(figures["accuracy"]["product_vote"]["16"]) == {"mean", "se"}
    assert figures["accuracy"]["oracle"]["16"]["mean"] >= figures["accuracy"]["product_vote"]["16"]["mean"]
    assert set(figures["gain_at_16"]) == {"mean", "se"}
    assert {"auroc", "step_accuracy", "first_error_f1", "ece", "f1"} <= set(figures["prm"])
    rows = list(read_rows(tmp_path / "out" / "rows.jsonl"))
    assert len(rows) == 8
    assert {(row.method, row.budget) for row in rows} == {("best_of_n", None)}
    assert summary["tokens"]["generated"] == sum(row.usage.generated_tokens for row in rows) > 0
    assert summary["tokens"]["scored"] > 0
    assert summary["seconds"] > 0
    assert (tmp_path / "out" / "accuracy_vs_budget.png").stat().st_size > 10_000
    output = capsys.readouterr()
    for text in ("oracle", "product_vote", "product_max", "majority", "greedy", "less majority at N = 16", "auroc"):
        assert text in output.out
    assert "search: 8/8" in output.err


def test_without_a_prm(search, tmp_path):
    assert search("--greedy", "false", prm=False) == 0
    figures = read_json(tmp_path / "out" / "summary.json")["figures"]
    assert set(figures["accuracy"]) == {"oracle", "majority"}
    assert not {"prm", "gain_at_16", "greedy"} & set(figures)
    assert read_json(tmp_path / "out" / "summary.json")["tokens"]["scored"] == 0


def test_samples_do_not_depend_on_the_prm_or_on_what_is_in_flight(search, tmp_path):
    search(output="a")
    search("--in_flight", "8", output="b", prm=False)
    samples = [
        [[trace.steps for trace in row.traces] for row in read_rows(tmp_path / name / "rows.jsonl")] for name in "ab"
    ]
    assert samples[0] == samples[1]


def test_shared_work_is_the_whole(search, tmp_path, capsys):
    assert search(output="whole") == 0
    for _ in range(2):  # the second finds everything done
        assert search("--shared", "true", output="shared") == 0
        rows = [(tmp_path / name / "rows.jsonl").read_bytes() for name in ("whole", "shared")]
        assert rows[0] == rows[1]
    assert "search (this worker): 8/8" in capsys.readouterr().err
    assert search("--shared", "true", "--overwrite", "true") == 2
    assert "overwrite: got True; accepted: false with shared" in capsys.readouterr().err


def test_other_settings_are_refused(search, capsys):
    assert search("--limit", "3") == 0
    capsys.readouterr()
    assert search("--limit", "3", "--sampling.temperature", "0.5") == 2
    assert "error: sampling.temperature: got 0.5; accepted: 1.0, which" in capsys.readouterr().err
    assert search("--limit", "3", "--headline", "min_vote") == 0, "what only reads the rows may change"


@pytest.mark.slow
def test_killed_again_and_again(search, memorised_policy, memorised_prm, tmp_path, killed_at_rows):
    search(output="whole")
    command = [sys.executable, "-m", "prmkit.cli", "search", "--policy", str(memorised_policy), "--prm"]
    command += [str(memorised_prm), "--output", str(tmp_path / "cut"), *OPTIONS]
    rows = tmp_path / "cut" / "rows.jsonl"
    killed_at_rows(command, rows, (1, 4, 7, 99))
    assert rows.read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    summaries = [read_json(tmp_path / name / "summary.json") for name in ("whole", "cut")]
    assert summaries[0]["figures"] == summaries[1]["figures"]
    assert summaries[0]["tokens"] == summaries[1]["tokens"]


def test_models_that_mean_other_steps_are_refused_before_loading(search, memorised_prm, tmp_path, capsys):
    other = tmp_path / "prm"
    shutil.copytree(memorised_prm, other)
    step_format = read_json(other / "step_format.json")
    step_format["policy"]["separator"] = "\n\n"
    write_json(other / "step_format.json", step_format)
    (other / "model.safetensors").write_bytes(b"never read")
    assert search("--prm", str(other)) == 2
    error = capsys.readouterr().err
    assert "policy and PRM do not fit" in error
    assert "end with '\\n'" in error
    assert "with '\\n\\n'" in error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--headline", "median_vote"], "headline: got 'median_vote'; accepted: min_max"),
        (["--n", "0"], "best_of_n.n: got 0"),
        (["--prm", "nowhere"], "--prm nowhere: nowhere: no such model folder"),
        (["--task", "bbh", "--data", "nowhere.json", "--task_options", "{}"], "nowhere.json"),
        (["--split", "hidden"], "split: got 'hidden'"),
        (["--prm_format", "nonsense"], "step_format: got 'nonsense'"),
        (["--limits.samples", "-1"], "budget.samples: got -1"),
    ],
)
def test_mistakes_end_in_one_line(search, capsys, extra, message):
    assert search(*extra) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("name", ["accumulator", "multistep_arithmetic", "quick"])
def test_shipped_configs_of_plain_best_of_n(name):
    config = str(find_config(f"configs/search/{name}.yaml"))
    values = parser().parse_args(["--policy", "p", "--output", "o", "--config", config])
    assert build(BestOfNParams, parser().instantiate(values)).n >= 16


def test_own_problems_from_a_file(search, tmp_path):
    lines = [{"question": "a+3b+4,0", "answer": "7"}, {"question": "a+5b+4,0", "answer": "9"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--task", "jsonl", "--data", str(tmp_path / "test.jsonl"), "--task_options", "{grader: exact}"]
    assert search(*data, "--limit", "2") == 0
    assert "prm" not in read_json(tmp_path / "out" / "summary.json")["figures"]
