"""Every command ends alike: what it made, how good it is, what to type next; and what is typed next works."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prmkit.cli import COMMANDS
from prmkit.cli.ending import (
    config_stems,
    following_annotation,
    following_policy,
    following_prm,
    following_search,
    show_ending,
)
from prmkit.cli.options import ProblemSource
from prmkit.resources import shipped_configs

NOISE = (
    "LOAD REPORT", "newly initialized", "`weights_only` was not set", "TPU available", "GPU available: False",
    "Loading `train_dataloader`", "`Trainer.fit` stopped", "LeafSpec", "exists and is not empty", "it/s",
    "Restoring states", "litlogger", "litmodels",
)  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PRMKIT_REGISTRY": "registry"}


def run(words, folder: Path) -> tuple[str, str]:
    command = [sys.executable, "-m", "prmkit.cli", *words[1:]]
    found = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, (words, found.stderr)
    for text in NOISE:
        assert text not in found.stdout + found.stderr, (words, text)
    return found.stdout, found.stderr


def ending(out: str) -> dict[str, list[str]]:
    """Lines of an ending by name; those before it are left out."""
    parts: dict[str, list[str]] = {}
    name = ""
    for line in out.splitlines():
        if match := re.match(r"(made|result|next) +(.*)", line):
            name = match[1]
            parts[name] = [match[2]]
        elif name and line.startswith(" " * 8):
            parts[name].append(line.strip())
    return parts


def following(out: str) -> list[str]:
    found = ending(out)
    assert found["result"], out
    return shlex.split(found["next"][0])


@pytest.mark.slow
def test_from_nothing_to_a_pulled_pair_by_typing_what_is_said_next(tmp_path):
    """SFT -> annotate -> PRM -> search -> publish -> show, every command the one that the last one named."""
    (tmp_path / "runs/quick/prm").mkdir(parents=True)
    words = shlex.split("prm fit --config configs/sft/quick.yaml")
    seen = []
    while words[1:3] != ["pairs", "show"]:
        seen.append(" ".join(words[1:3]))
        out, err = run(words, tmp_path)
        for path in ending(out).get("made", []):
            assert (tmp_path / path).exists() or "@" in path, (words, path)
        words = ["accumulator" if word == "NAME" else word for word in following(out)]
    assert seen == ["fit --config", "annotate --config", "fit --config", "search --config", "pairs publish"]
    assert "refused" in run(words, tmp_path)[0]

    predict = shlex.split("prm predict --config configs/prm/quick.yaml --ckpt_path last")
    again, err = run(following(run(predict, tmp_path)[0]), tmp_path)
    assert "random" not in err
    assert "step accuracy" in ending(again)["result"][0]
    out, err = run(shlex.split("prm export runs/quick/prm exported"), tmp_path)
    assert "random" not in err
    assert following(out)[:4] == ["prm", "search", "--task", "TASK"]
    steps = "runs/quick/annotate/annotations.jsonl"
    judged = following(run(shlex.split(f"prm annotate --judge {steps} --prm exported"), tmp_path)[0])
    assert judged[2:4] == ["--convert", steps]
    words = following(run([{"OUT": "kept.jsonl"}.get(word, word) for word in judged], tmp_path)[0])
    run([{"POLICY": "runs/quick/sft/policy"}.get(word, word) for word in words] + ["--print_config"], tmp_path)
    searched = following(run(shlex.split("prm pairs pull accumulator@1 here"), tmp_path)[0])
    small = ["--task_options", "{min_ops: 2, max_ops: 2}", "--limit", "2", "--n", "2"]
    assert following(run([*searched, *small], tmp_path)[0])[:2] == ["prm", "serve"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_what_it_did_when_it_is_stopped(memorised_policy, number):
    command = [sys.executable, "-m", "prmkit.cli", "serve", "--policy", str(memorised_policy), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    assert " at http://127.0.0.1:" in process.stderr.readline()
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert ending(out)["result"][0].startswith("0 requests answered in ")
    assert ending(out)["next"] == [f"prm serve --policy {memorised_policy} --port 0"]


def modules_of(command: str) -> set[Path]:
    """The module of a command and those of `prmkit.cli` that it imports, directly or not."""
    root = Path(__file__).parents[2]
    waiting, seen = [COMMANDS[command].module], set()
    while waiting:
        path = root / Path(*waiting.pop().split(".")).with_suffix(".py")
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prmkit.cli."):
                waiting.append(str(node.module))
    return seen


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("doctor", "configs", "completion")])
def test_every_command_ends_by_the_one_function(command):
    if command == "estimate":
        pytest.skip("makes nothing")
    callers = [path for path in modules_of(command) if "show_ending(" in path.read_text() and path.stem != "ending"]
    assert callers, f"prm {command} has no ending"


def test_one_look(capsys):
    show_ending(["a", Path("b c")], ["good", "", "cheap"], [("prm", "fit", "--config", "b c")])
    assert capsys.readouterr().out == (
        "made    a\n        b c\nresult  good\n        cheap\nnext    prm fit --config 'b c'\n"
    )
    show_ending([], ["fine"], [])
    assert capsys.readouterr().out == "result  fine\n"


ACCUMULATOR = "runs/accumulator"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            following_policy(f"{ACCUMULATOR}/sft/policy", ["mine", "accumulator"], None),
            "annotate --config configs/annotate/accumulator.yaml --policy runs/accumulator/sft/policy "
            "--output runs/accumulator/annotate/annotations.jsonl",
        ),
        (
            following_policy("a/b/policy", ["mine"], "gsm8k"),
            "annotate --method omegaprm --task gsm8k --policy a/b/policy --output a/annotate/annotations.jsonl",
        ),
        (
            following_annotation(
                f"{ACCUMULATOR}/annotate/annotations.jsonl", f"{ACCUMULATOR}/sft/policy", ["accumulator"]
            ),
            "fit --config configs/prm/accumulator.yaml",
        ),
        (
            following_annotation("x/annotate/annotations.jsonl", "x/sft/policy", ["accumulator"]),
            "fit --config configs/prm/accumulator.yaml --trainer.default_root_dir x/prm",
        ),
        (
            following_annotation("x/steps.jsonl", "P", []),
            "fit --config configs/prm/accumulator.yaml --data.train '[{path: x/steps.jsonl}]' "
            "--model.source.path P --trainer.default_root_dir x/prm",
        ),
        (
            following_prm("x/prm/model", None, ["quick"], None),
            "search --config configs/search/quick.yaml --policy POLICY --prm x/prm/model --output x/search",
        ),
        (
            following_search("P", ["M"], "out", ProblemSource("gsm8k")),
            "pairs publish NAME --policy P --prm M --metrics out",
        ),
        (
            following_search("P", ["M"], "out", ProblemSource("gsm8k"), comparison=True),
            "search --task gsm8k --policy P --prm M --output out/best_of_n",
        ),
        (
            following_search("a/b/policy", [], "out", ProblemSource("gsm8k")),
            "annotate --method omegaprm --task gsm8k --policy a/b/policy --output a/annotate/annotations.jsonl",
        ),
        (
            following_search("a/b/policy", [], "out", ProblemSource("jsonl", "my file.jsonl", "test", 5, 7)),
            "annotate --method omegaprm --task jsonl --policy a/b/policy --output a/annotate/annotations.jsonl "
            "--data 'my file.jsonl'",
        ),
        (
            following_search("P", ["M"], "out", ProblemSource(task_options={"min_ops": 2}), comparison=True),
            "search --task accumulator --policy P --prm M --output out/best_of_n --task_options '{\"min_ops\": 2}'",
        ),
    ],
)
def test_what_to_type_next(words, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shlex.join(words) == f"prm {expected}"


@pytest.mark.parametrize("name", shipped_configs("sft"))
def test_the_next_command_of_every_shipped_policy_names_a_config_that_exists(name):
    words = following_policy("runs/x/sft/policy", config_stems(["--config", name]), "math500")
    assert words[3] in (*shipped_configs("annotate"), "omegaprm")


def test_a_stage_names_no_next_command(monkeypatch, capsys):
    monkeypatch.setenv("PRMKIT_STAGE", "search")
    show_ending(["a"], ["b"], [["prm", "fit"]])
    assert capsys.readouterr().out == "made    a\nresult  b\n"
