"""Commands that write chunk by chunk: an edited file never gives the old results again, and a larger limit extends."""

import json

import pytest

from prmkit.cli import main
from prmkit.io import read_jsonl
from prmkit.tasks import get_task

COMMON = [
    *("--task", "jsonl", "--in_flight", "3", "--chunk", "2", "--engine.device", "cpu"),
    *("--sampling.max_tokens", "12", "--task_options", "{grader: exact}"),
]
COMMANDS = {
    "search": ("rows.jsonl", ["search", *COMMON, "--n", "2"]),
    "search, shared": ("rows.jsonl", ["search", *COMMON, "--n", "2", "--shared", "true"]),
    "search, methods": ("rows.jsonl", ["search", *COMMON, "--method", "best_of_n,mcts", "--budgets", "2", "--prm"]),
    "annotate": ("", ["annotate", *COMMON, "--method", "omegaprm", "--rollouts", "2", "--filter_rollouts", "2"]),
    "annotate, shared": ("", ["annotate", *COMMON, "--method", "math_shepherd", "--rollouts", "2", "--shared", "true"]),
}


@pytest.fixture
def problems(tmp_path):
    task = get_task("accumulator", min_ops=2, max_ops=2)
    path = tmp_path / "problems.jsonl"
    records = [{"question": problem.question, "answer": problem.answer} for problem in task.problems("train", 7)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(problems, memorised_policy, memorised_prm, tmp_path, capsys):
    def run(command, name, limit, *extra):
        file, arguments = COMMANDS[command]
        arguments = [a for part in arguments for a in ((part, str(memorised_prm)) if part == "--prm" else (part,))]
        where = ["--policy", str(memorised_policy), "--data", str(problems), "--output", str(tmp_path / name)]
        status = main([*arguments, *where, *([] if limit is None else ["--limit", str(limit)]), *extra])
        output = tmp_path / name / file if file else tmp_path / name
        return status, output, capsys.readouterr().err

    return run


def edit(path, number, **fields):
    records = list(read_jsonl(path))
    records[number].update(fields)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_larger_limit_gives_the_bytes_of_a_fresh_run(run, command):
    _, output, _ = run(command, "grown", 3)
    old = output.read_bytes()
    status, output, error = run(command, "grown", None)
    assert (status, "grown" in error and "extended from 3 to 7 problems" in error) == (0, True)
    assert output.read_bytes() == run(command, "fresh", None)[1].read_bytes()
    assert old
    assert output.read_bytes().startswith(old)
    if command == "annotate":
        trees = [output.with_name(f"{name}.trees.jsonl").read_bytes() for name in ("grown", "fresh")]
        assert trees[0] == trees[1]
    status, _, error = run(command, "grown", 7)
    assert (status, error.count("complete already, nothing to do")) == (0, 1)
    status, _, error = run(command, "grown", 3)
    assert (status, "number of problems: got 3; accepted: at least 7" in error) == (2, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_edited_file_is_refused_in_one_line(run, command, problems):
    assert run(command, "x", 4)[0] == 0
    for fields in ({"answer": "1"}, {"question": "other"}):
        kept = problems.read_bytes()
        edit(problems, 1, **fields)
        for limit in (4, 5):
            status, _, error = run(command, "x", limit)
            assert (status, len(error.splitlines())) == (2, 1)
            assert "was made from other problems: the content of the data" in error
        problems.write_bytes(kept)
    edit(problems, 6, answer="1")  # which was not read
    assert run(command, "x", 4)[0] == 0


def test_verdicts_are_those_of_the_solutions_judged(memorised_prm, tmp_path, capsys):
    path = tmp_path / "steps.jsonl"
    records = [{"prompt": f"a+{i}", "completions": ["b=1", "c=2"], "labels": [1, 1]} for i in range(5)]

    def judge(count):
        path.write_text("".join(json.dumps(record) + "\n" for record in records[:count]))
        where = ["--judge", str(path), "--prm", str(memorised_prm), "--engine.device", "cpu", "--in_flight", "2"]
        return main(["annotate", *where]), capsys.readouterr().err

    assert judge(3)[0] == 0
    records[0]["labels"] = [1, 0]  # a judge does not see them
    assert judge(3) == (0, f"{path}.verdicts: complete already, nothing to do\n")
    assert "extended from 3 to 5 solutions" in judge(5)[1]
    grown = path.with_name("steps.jsonl.verdicts").read_bytes()
    assert grown.count(b"\n") == 5
    records[1]["completions"] = ["b=1", "c=3"]
    status, error = judge(5)
    assert (status, "was made from other solutions" in error) == (2, True)
    assert path.with_name("steps.jsonl.verdicts").read_bytes() == grown
