"""The protocol of OpenR's figure 4, as the file says it and with a tiny pair put in by overrides."""

import yaml

from prmkit.cli import main
from prmkit.io import read_json
from prmkit.resources import find_config
from prmkit.search.methods import METHODS
from prmkit.search.rows import read_rows

NAME = "configs/search/openr_figure4.yaml"


def test_it_says_what_the_paper_says():
    config = yaml.safe_load(find_config(NAME).read_text(encoding="utf-8"))
    assert config["policy"] == "Qwen/Qwen2.5-Math-1.5B-Instruct"
    assert config["prm"].startswith("Qwen/Qwen2.5-Math-PRM")
    assert (config["task"], config["split"], "limit" in config) == ("math500", "test", False)
    assert config["budgets"] == [1, 4, 16, 64, 256]
    assert config["sampling"]["temperature"] == 0.7
    assert (config["beam_search"]["width"], config["beam_search"]["max_steps"]) == (4, 50)
    assert (config["beam_search"]["aggregation"], config["headline"]) == ("last", "last_vote")


def test_a_tiny_qwen2_runs_it(tiny_qwen2, tiny_qwen2_prm, data_dir, tmp_path, capsys):
    overrides = {
        "policy": tiny_qwen2,
        "prm": tiny_qwen2_prm,
        "output": tmp_path / "out",
        "data": data_dir / "math",
        "limit": 2,
        "sampling.max_tokens": 10,
        "beam_search.step_tokens": 4,
        "in_flight": 8,
        "engine.dtype": "float32",
        "scorer.dtype": "float32",
        "engine.device": "cpu",
    }
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    assert main(["search", "--config", NAME, *arguments]) == 0
    rows = list(read_rows(tmp_path / "out" / "rows.jsonl"))
    assert all(row.error is None for row in rows)
    assert len(rows) == 2 * (2 * 5 + 1)
    assert {row.level for row in rows} == {"Level 2", "Level 5"}
    for row in rows:
        if row.method == "best_of_n":
            assert len(row.traces) == row.budget
        if row.budget is not None:
            assert row.usage.generated_tokens <= 10 * row.budget
    figures = read_json(tmp_path / "out" / "summary.json")["figures"]
    assert [found["budget"] for found in figures["searches"]] == [1, 4, 16, 64, 256] * 2 + [None]
    last = figures["searches"][4]
    assert 0.0 < last["unfinished"] <= 1.0, "endless solutions are counted"
    for found in figures["searches"]:
        assert found["selection"] == "last_vote"
        assert {"last_vote", "last_max", "majority", "oracle"} <= set(found["accuracy"])
    assert (tmp_path / "out" / "accuracy_by_level.png").is_file()
    assert "Level 5 (1)" in capsys.readouterr().out


def test_every_method_solves_math500_with_a_tiny_qwen2(tiny_qwen2, tiny_qwen2_prm, data_dir, tmp_path):
    models = ["--policy", str(tiny_qwen2), "--prm", str(tiny_qwen2_prm), "--discriminator", str(tiny_qwen2)]
    arguments = [
        *models,
        "--task",
        "math500",
        "--data",
        str(data_dir / "math"),
        "--limit",
        "2",
        "--engine.device",
        "cpu",
    ]
    sizes = ["--method", ",".join(METHODS), "--budgets", "1,4", "--sampling.max_tokens", "10"]
    sizes += [f"--{name}.step_tokens=4" for name in ("beam_search", "dvts", "rebase", "mcts", "rstar")]
    assert main(["search", *arguments, *sizes, "--output", str(tmp_path)]) == 0
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert {row.method for row in rows} == {*METHODS, "greedy"}
    assert [row.error for row in rows if row.error] == []
    assert all(row.usage.generated_tokens <= 10 * (row.budget or 1) for row in rows)
    assert all(row.traces for row in rows)
