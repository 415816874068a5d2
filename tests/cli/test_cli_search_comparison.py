"""`prm search` over several methods and budgets: equal limits, every token counted, resumed without paying twice."""

import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from prmkit.cli import main
from prmkit.cli.options import peek
from prmkit.cli.search import method_list, parser
from prmkit.errors import ConfigError
from prmkit.io import read_json
from prmkit.resources import config_root, find_config, shipped_configs
from prmkit.search.methods import METHODS
from prmkit.search.rows import read_rows

OPTIONS = [
    *("--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "6"),
    *("--sampling.max_tokens", "24", "--in_flight", "5", "--chunk", "2", "--engine.device", "cpu"),
]
COMPARISONS = [
    name
    for name in shipped_configs("search")
    if "method" in yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
]


@pytest.fixture
def search(memorised_policy, memorised_prm, tmp_path):
    def run(*extra, output="out", prm=True):
        models = ["--policy", str(memorised_policy), *(["--prm", str(memorised_prm)] if prm else [])]
        return main(["search", *models, "--output", str(tmp_path / output), *OPTIONS, *extra])

    return run


def test_all_methods_at_equal_budgets(search, memorised_policy, tmp_path, capsys):
    extra = ["--method", ",".join(METHODS), "--budgets", "1,4", "--beam_search.width", "2"]
    assert search(*extra, "--discriminator", str(memorised_policy)) == 0
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (summary["budgets"], summary["budget_unit"]) == ([1, 4], "samples")
    assert summary["methods"]["beam_search"]["width"] == 2
    figures = summary["figures"]
    keys = [(search["method"], search["budget"]) for search in figures["searches"]]
    sized = [name for name in METHODS if name != "cot"]
    assert keys == [("cot", None), *((name, n) for name in sized for n in (1, 4)), ("greedy", None)]
    rows = list(read_rows(tmp_path / "out" / "rows.jsonl"))
    assert [row.problem_id for row in rows] == [f"accumulator/test/{i}" for i in range(6) for _ in keys]
    for found in figures["searches"]:
        mine = [row for row in rows if (row.method, row.budget) == (found["method"], found["budget"])]
        assert found["tokens"]["generated"] == sum(row.usage.generated_tokens for row in mine) / 6
        assert found["failed"] == 0
        assert {"majority", "oracle", "product_vote", "last_max"} <= set(found["accuracy"])
        for row in mine:
            assert row.budget is None or row.usage.generated_tokens <= 24 * row.budget
            assert not row.tree or sum(node.tokens for node in row.tree) <= row.usage.generated_tokens
    assert 0.3 < figures["searches"][keys.index(("best_of_n", 4))]["accuracy"]["product_vote"]["mean"] <= 1.0
    assert {"auroc", "first_error_f1"} <= set(figures["prm"])
    assert summary["tokens"]["generated"] == sum(row.usage.generated_tokens for row in rows)
    assert (tmp_path / "out" / "accuracy_vs_budget.png").stat().st_size > 10_000
    output = capsys.readouterr()
    for text in ("compute_optimal", "generated", "scored", "unfinished", "failed", "oracle", "product_max"):
        assert text in output.out
    assert "search: 96/96" in output.err


def test_budgets_in_tokens_without_a_prm(search, tmp_path, capsys):
    extra = ("--method", "best_of_n,rstar", "--budgets", "[30, 80]", "--budget-unit", "tokens", "--greedy", "false")
    assert search(*extra, "--tokens-per-sample", "12", prm=False) == 0
    rows = list(read_rows(tmp_path / "out" / "rows.jsonl"))
    assert all(row.usage.generated_tokens <= row.budget for row in rows)
    assert {row.usage.generated_tokens for row in rows if row.method == "best_of_n"} == {30, 80}, "all of it is spent"
    figures = read_json(tmp_path / "out" / "summary.json")["figures"]
    assert {found["selection"] for found in figures["searches"]} == {"majority"}
    assert "prm" not in figures
    assert any(found["unfinished"] > 0 for found in figures["searches"]), "the last sample is cut to what is left"
    assert "tokens" in capsys.readouterr().out


def test_other_methods_alone_have_the_size_of_their_settings(search, tmp_path):
    assert search("--method", "dvts", "--dvts.n", "4", "--dvts.width", "2", "--greedy", "false") == 0
    rows = list(read_rows(tmp_path / "out" / "rows.jsonl"))
    assert {(row.method, row.budget) for row in rows} == {("dvts", None)}
    assert all(len(row.traces) >= 2 for row in rows)


def test_best_of_n_with_budgets_is_a_comparison(search, tmp_path):
    assert search("--budgets", "3", "--greedy", "false") == 0
    assert [(row.budget, len(row.traces)) for row in read_rows(tmp_path / "out" / "rows.jsonl")] == [(3, 3)] * 6


def test_methods_are_named_on_the_command_line_or_in_yaml(tmp_path):
    assert method_list("mcts, best_of_n") == method_list(["mcts", "best_of_n"]) == ("mcts", "best_of_n")
    path = tmp_path / "methods.yaml"
    for text in ("method: mcts,rstar", "method: [mcts, rstar]", "method:\n- mcts\n- rstar"):
        path.write_text(text)
        assert method_list(peek(["--config", str(path)], "method", "best_of_n")) == ("mcts", "rstar")
    for names in ("", "mcts,", "mcts,mcts", "magic"):
        with pytest.raises(ConfigError, match="method: got"):
            method_list(names)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "beam"], "method: got 'beam'; accepted: cot | best_of_n"),
        (["--method", "beam_search,mcts", "--budgets", "4,x"], "budgets: got '4,x'; accepted: integers"),
        (["--method", "mcts", "--budgets", "0"], "budgets: got [0]"),
        (["--method", "mcts", "--budgets", "4", "--budget_unit", "calls"], "budget_unit: got 'calls'"),
        (["--method", "beam_search", "--beam_search.n", "6"], "search.n: got 6; accepted: a multiple of search.width"),
        (["--method", "beam_search", "--n", "6"], "n: no such setting"),
        (["--method", "mcts", "--mcts.sampling.temperature", "1"], "mcts.sampling: no such setting"),
        (["--method", "mcts", "--mcts.prior", "none"], "mcts.prior"),
        (["--method", "mcts,mcts"], "method: got 'mcts'; accepted: different ones of cot"),
        (["--method", "dvts", "--dvts.merge_equal", "true"], "dvts.merge_equal: no such setting"),
        (["--method", "dvts", "--dvts.max_children", "2"], "dvts.max_children: no such setting"),
        (["--method", "mcts", "--budgets", "4", "--limits.generated_tokens", "9"], "limits.generated_tokens: got 9"),
        (["--method", "mcts", "--discriminator", "d"], "discriminator: got 'd'; accepted: null, unless rstar"),
    ],
)
def test_mistakes_end_in_one_line(search, tmp_path, capsys, extra, message):
    assert search(*extra) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_prm_is_asked_for_before_any_model_is_looked_at(capsys):
    assert main(["search", "--policy", "nowhere", "--output", "out", "--method", "rstar,dvts", "--budgets", "4"]) == 2
    assert "prm: got None; accepted: a model folder or hub name: dvts is guided by a PRM" in capsys.readouterr().err


def test_one_search_that_always_fails_leaves_the_others(search, tmp_path, capsys):
    """rStar's policy is never told how to end a step other than by the separator; this stop string forbids that."""
    stop = ["--sampling.stop", '["x\\n"]']
    assert search("--method", "best_of_n,mcts", "--budgets", "2", "--greedy", "false", *stop) == 0
    failed = {
        found["method"]: found["failed"]
        for found in read_json(tmp_path / "out" / "summary.json")["figures"]["searches"]
    }
    assert failed == {"best_of_n": 0, "mcts": 6}
    errors = {row.error for row in read_rows(tmp_path / "out" / "rows.jsonl") if row.method == "mcts"}
    assert len(errors) == 1
    assert "search.sampling.stop" in errors.pop()
    output = capsys.readouterr()
    assert "6 failed" in output.err
    assert "warning: 6 problems failed and count as wrong; accumulator/test/0, mcts: ConfigError" in output.err


def test_help_lists_the_settings_of_the_methods(capsys):
    assert main(["search", "--method", "mcts,rebase", "--help"]) == 0
    text = capsys.readouterr().out
    for setting in ("--mcts.c_puct", "--rebase.balance", "--sampling.temperature", "--budget_unit", "--seed"):
        assert setting in text
    assert "--mcts.sampling" not in text
    assert "--beam_search" not in text.split("methods (settings", 1)[0]


@pytest.mark.parametrize("name", COMPARISONS)
def test_shipped_comparisons(name):
    config = str(find_config(name))
    names = method_list(peek(["--config", config], "method", ""))
    parse = parser(names)
    values = parse.instantiate(parse.parse_args(["--policy", "p", "--output", "o", "--config", config]))
    for method in names:
        assert isinstance(values[method], METHODS[method].params)
    assert values["budgets"] == sorted(values["budgets"])


def test_every_method_but_one_solution_has_a_config():
    named = {
        name
        for config in COMPARISONS
        for name in method_list(peek(["--config", str(find_config(config))], "method", ""))
    }
    assert named == set(METHODS) - {"cot"}
    assert (config_root() / "search" / "openr_figure4.yaml").is_file()


@pytest.mark.slow
def test_killed_again_and_again(search, memorised_policy, memorised_prm, tmp_path, killed_at_rows):
    extra = ["--method", "best_of_n,beam_search,mcts", "--budgets", "2,4"]
    search(*extra, output="whole")
    command = [sys.executable, "-m", "prmkit.cli", "search", "--policy", str(memorised_policy), "--prm"]
    command += [str(memorised_prm), "--output", str(tmp_path / "cut"), *OPTIONS, *extra]
    rows = tmp_path / "cut" / "rows.jsonl"
    killed_at_rows(command, rows, (7, 21, 999))
    assert rows.read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    summaries = [read_json(tmp_path / name / "summary.json") for name in ("whole", "cut")]
    assert summaries[0]["figures"] == summaries[1]["figures"]


def test_several_prms_score_together(search, memorised_prm, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(memorised_prm, other)
    tensors = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    plain = ["--method", "best_of_n", "--n", "4"]
    scores = {}
    for name, models in {
        "one": [],
        "two": ["--prm", str(other)],
        "both": ["--prm", str(other), "--prm", str(memorised_prm)],
        "mean": ["--prm", f"{memorised_prm},{other}", "--pessimism", "mean"],
    }.items():
        assert search(*plain, *models, output=name, prm=name in ("one",)) == 0
        rows = list(read_rows(tmp_path / name / "rows.jsonl"))
        scores[name] = [s for row in rows for t in row.traces if t.scores for s in t.scores]
        scored = sum(row.usage.scored_tokens for row in rows)
        scores[f"{name} tokens"] = scored
    assert scores["both"] == list(map(min, scores["one"], scores["two"])) != scores["one"]
    means = [(a + b) / 2 for a, b in zip(scores["one"], scores["two"], strict=True)]
    assert scores["mean"] == pytest.approx(means, abs=1e-12)
    assert scores["both tokens"] == 2 * scores["one tokens"], "every PRM is paid for"
    capsys.readouterr()
    assert search(*plain, "--prm", f"{memorised_prm},{other}", output="mean", prm=False) == 2
    assert "pessimism" in capsys.readouterr().err, "another way is another run"
    assert search(*plain, "--prm", str(other), "--prm", str(other), output="x", prm=False) == 2
    assert "error: prm: got" in capsys.readouterr().err
