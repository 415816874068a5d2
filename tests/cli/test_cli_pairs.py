"""`prm pairs`, command by command, on a registry in a temporary folder."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from prmkit.cli import main
from prmkit.formats.presets import get_step_format
from registry import Registry

TOKENIZER = {"added_tokens": [{"id": 2, "content": "<eos>"}], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}


def model(folder, step_format, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    prm = get_step_format(step_format).prm.head != "label_tokens"
    tensors = {"w": np.random.default_rng(seed).random(8)} | ({"score.weight": np.zeros((2, 4))} if prm else {})
    save_file(tensors, folder / "model.safetensors")
    name = "Qwen2ForTokenClassification" if prm else "Qwen2ForCausalLM"
    (folder / "config.json").write_text(json.dumps({"architectures": [name], "vocab_size": 8}))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    get_step_format(step_format).save(folder)
    return str(folder)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRMKIT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("PRMKIT_USER", "ada@engine")
    return model(tmp_path / "policy", "plain"), model(tmp_path / "prm", "plain-head", seed=1)


@pytest.fixture
def prm(folders, capsys):
    """Runs `prm pairs ...`; gives status, output and errors."""

    def run(*argv):
        capsys.readouterr()
        status = main(["pairs", *map(str, argv)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def metrics(path, accuracy, problems=100):
    results = {f"p{i}": float(i < accuracy * problems) for i in range(problems)}
    figures = {"accuracy": {"value": accuracy}, "prm_auroc": {"value": 0.9}, "prm_ece": {"value": 0.1}}
    path.write_text(json.dumps({"schema": 1, "dataset": "toy/test", "figures": figures, "results": results}))
    return path


def test_a_pair_from_beginning_to_end(prm, folders, tmp_path):
    policy, reward = folders
    both = ("--policy", policy, "--prm", reward)
    one, two, three = (metrics(tmp_path / f"{a}.json", a) for a in (0.5, 0.4, 0.7))
    status, out, _ = prm("publish", "math", *both, "--metrics", one, "--alias", "best", "--summary", "A first pair.",
                         "--command", "prm fit --config a.yaml", "--data", one)  # fmt: skip
    assert (status, out.splitlines()[0]) == (0, f"made    math@1, math@best in {tmp_path / 'registry'}")
    assert "gate passed" in out
    assert prm("publish", "math", *both, "--metrics", two, "--parent", "math@1", "--alias", "candidate")[0] == 0
    assert prm("publish", "math", *both, "--metrics", three, "--parent", "math@1")[0] == 0

    status, out, _ = prm("list", "math")
    assert [re.split(r"\s{2,}", line)[:2] for line in out.splitlines()[1:3]] == [
        ["math@1", "best"],
        ["math@2", "candidate"],
    ]
    assert re.search(r"^math@3 +0\.7000 +0\.9000 +0\.1000 +passed +math@1 ", out, re.M)
    assert set(json.loads(prm("list", "--json")[1])["math"]) == {"aliases", "versions"}

    status, out, err = prm("promote", "math@2", "best")
    assert (status, out) == (2, "")
    assert err.startswith("error: math@2: refused by the gate to 'best': not met: accuracy 0.4000 against 0.5000")
    assert prm("promote", "math@3", "best")[1].startswith("result  math@best is math@3\n          ok: 100 problems")
    assert "gate overruled" in prm("promote", "math@2", "--force", "--reason", "to show it")[1]
    history = prm("history", "math")[1]
    assert history.splitlines()[-1].endswith("math@best moved from @3 to @2 by ada@engine, gate overruled: to show it")
    assert len(history.splitlines()) == 3 + 4

    status, out, _ = prm("pull", "math@best", tmp_path / "here")
    assert (status, out.splitlines()[2]) == (0, f"result  math@2 in {tmp_path / 'here'}: 9 of 9 files copied")
    assert (tmp_path / "here" / "policy" / "config.json").read_bytes() == (
        tmp_path / "policy" / "config.json"
    ).read_bytes()
    assert "0 of 9 files copied" in prm("pull", "math@2", tmp_path / "here")[1]

    out = prm("show", "math@1")[1]
    assert out.startswith("math@1  A first pair.\n")
    assert "published by" not in out
    assert "by ada@engine" in out
    assert json.loads(prm("show", "math@1", "--json")[1])["recipe"]["commands"] == [
        ["prm", "fit", "--config", "a.yaml"]
    ]
    assert prm("reproduce", "math@1")[1].splitlines()[-1] == "prm fit --config a.yaml"
    assert "accuracy: 0.4000 -> 0.7000  (+0.3000)" in prm("diff", "math@2", "math@3")[1]
    status, out, _ = prm("lineage", "math@3", "--picture", tmp_path / "tree.png")
    assert (tmp_path / "tree.png").stat().st_size > 1000
    assert "└─ math@3" in out


def test_care(prm, folders, tmp_path):
    policy, reward = folders
    prm("publish", "math", "--policy", policy, "--prm", reward)
    assert prm("verify")[1].startswith("sound: 1 versions, 7 contents")
    assert prm("push", tmp_path / "backup", "math")[1].startswith(f"result  math@1 in {tmp_path / 'backup'}\n")
    assert prm("push", tmp_path / "backup", "math")[1].startswith(f"result  nothing new in {tmp_path / 'backup'}\n")
    weights = max((tmp_path / "registry" / "blobs").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    (tmp_path / "registry" / "tmp" / "left").write_bytes(b"x" * 10)
    weights.chmod(0o644)
    weights.write_bytes(b"x" * weights.stat().st_size)
    for argv in (("verify",), ("verify", "--all"), ("verify", "math@1")):
        status, out, err = prm(*argv)
        assert status == 1
        assert weights.name in err
        assert "needed by math@1: " in err
        assert out.startswith("1 problems:")
    status, _, err = prm("pull", "math", tmp_path / "here")
    assert (status, weights.name in err) == (2, True)
    assert prm("verify", "--remove-damaged")[0] == 1
    assert prm("fetch", tmp_path / "backup", "math@1")[0] == 0
    assert prm("verify")[0] == 0
    assert "tmp/left  10 B\n0 contents and 1 leftovers would be removed, 10 B" in prm("gc", "--dry-run")[1]
    assert prm("gc")[1] == "0 contents and 1 leftovers removed, 10 B\n"


def test_aliases(prm, folders):
    prm("publish", "math", "--policy", folders[0], "--prm", folders[1])
    assert prm("alias", "math@1", "mine")[1] == "math@mine is math@1\n"
    assert prm("alias", "math", "mine", "--remove")[1] == "math@mine is no more\n"
    assert "promote" in prm("alias", "math@1", "best")[2]


def test_what_others_wrote_does_not_steer_the_terminal(prm, folders, monkeypatch):
    monkeypatch.setenv("PRMKIT_USER", "\x1b]0;evil\x07")
    prm("publish", "math", "--policy", folders[0], "--prm", folders[1], "--summary", "\x1b[2J", "--command", "a '\x1b'")
    for command in (("show", "math"), ("history", "math"), ("reproduce", "math")):
        out = prm(*command)[1]
        assert "\x1b" not in out
        assert "\N{REPLACEMENT CHARACTER}" in out


def test_check(prm, folders, tmp_path):
    assert prm("check", *folders) == (0, "this PRM may score this policy\n", "")
    status, out, _ = prm("check", folders[0], model(tmp_path / "other", "qwen2.5-math-prm"))
    assert status == 1
    assert "problem: the policy's steps end with '\\n'" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("list",), "no registry of pairs here. `prm pairs publish` makes one"),
        (("show", "../x"), "pair: got '../x'"),
        (("pull", "math@../x", "here"), "pair: got 'math@../x'"),
        (("publish", "Math", "--policy", "policy", "--prm", "prm"), "pair: got 'Math'"),
        (("publish", "math", "--policy", "nowhere", "--prm", "prm"), "nowhere: not a model folder"),
        (("publish", "math", "--policy", "policy", "--prm", "prm", "--alias", "a b"), "alias: got 'a b'"),
        (
            ("publish", "math", "--policy", "policy", "--prm", "prm", "--attach", "../x=prm/config.json"),
            "path: got '../x'",
        ),
        (("publish", "math", "--policy", "policy", "--prm", "prm", "--metrics", "no.json"), "no.json: no such file"),
        (("list", "--registry", "nosuch://x"), "URL that fsspec knows"),
    ],
)
def test_errors_are_one_line(prm, argv, message):
    status, out, err = prm(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def imported(*argv, **environment):
    code = "import sys; from prmkit.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *argv], capture_output=True, text=True,
        env={**os.environ, **environment}, check=True,
    )  # fmt: skip
    return {name.strip().partition(".")[0] for name in re.findall(r"^import time:.*\|(.*)$", process.stderr, re.M)}


HEAVY = {"torch", "transformers", "lightning", "jsonargparse", "numpy", "rich", "fsspec", "boto3", "matplotlib"}


def test_no_command_imports_torch(prm, folders, tmp_path):
    prm("publish", "math", "--policy", folders[0], "--prm", folders[1])
    for argv in (("list",), ("list", "--help"), ("show", "math"), ("history", "math"), ("verify",), ("gc",),
                 ("pull", "math", str(tmp_path / "x")), ("diff", "math@1", "math"), ("check", *folders)):  # fmt: skip
        heavy = HEAVY - {"numpy"} if argv == ("verify",) else HEAVY  # verify looks at the weights' numbers
        assert not imported("pairs", *argv) & heavy, argv


def test_a_thousand_versions_are_listed_at_once(prm, folders, tmp_path):
    prm("publish", "math", "--policy", folders[0], "--prm", folders[1], "--metrics", metrics(tmp_path / "m.json", 0.5))
    first = Registry().manifest("math@1")
    for number in range(2, 1001):
        path = tmp_path / "registry/pairs/math/versions" / f"{number}.json"
        path.write_bytes(replace(first, version=number, parent="math@1").to_bytes())
    command = [sys.executable, "-m", "prmkit.cli", "pairs", "list", "math"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - start)
    assert len(out.splitlines()) == 1001
    assert min(seconds) < 2.0  # half a second where nothing else runs; benchmarks/registry.py measures it


def test_once_and_reports(prm, folders, tmp_path):
    policy, model_ = folders
    publish = ("publish", "toy", "--policy", policy, "--prm", model_, "--once", "--report", "out.json")
    for _ in range(2):
        assert prm(*publish)[0] == 0
        assert json.loads((tmp_path / "out.json").read_text())["version"] == 1
    model(tmp_path / "prm", "plain-head", seed=2)
    assert "toy@2" in prm(*publish)[1]
    assert prm(*publish, "--key", "mine")[0] == 2

    status, out, _ = prm("promote", "toy@2", "best", "--if-passed", "--report", "gate.json")
    assert (status, "does not get 'best'" in out) == (0, True)
    gate = json.loads((tmp_path / "gate.json").read_text())
    assert gate["promoted"] is False
    assert gate["reasons"] == ["not met: there are no metrics; publish with them"]
    assert prm("promote", "toy@2", "best")[0] == 2
    prm("publish", "toy", "--policy", policy, "--prm", model_, "--metrics", metrics(tmp_path / "m.json", 0.5))
    assert prm("promote", "toy@3", "best", "--if-passed", "--report", "gate.json")[0] == 0
    assert json.loads((tmp_path / "gate.json").read_text())["promoted"] is True
