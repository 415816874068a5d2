"""What commands print: JSON alone with `--json`, tables on ASCII terminals, closed pipes, libraries' errors."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from prmkit.cli import main
from prmkit.cli.failures import explain
from prmkit.cli.outputs import check_output_file, check_output_folder
from prmkit.errors import ConfigError
from prmkit.models.folders import ModelCard, write_card

CONVERT = ("annotate", "--convert", "labels.jsonl", "--to", "trl")
SEARCH = ("search", "--limit", "4", "--n", "2", "--greedy", "false", "--engine.device", "cpu")


@pytest.fixture(scope="module")
def made(memorised_policy, tmp_path_factory):
    """A folder with a finished search, a comparison and annotations, made by real processes with --json."""
    folder = tmp_path_factory.mktemp("made")
    policy = ("--policy", str(memorised_policy))
    shutil.copytree(memorised_policy, folder / "prm")
    write_card(folder / "prm", ModelCard("prm"))
    commands = {
        "search": (*SEARCH, *policy, "--output", "search"),
        "compare": (*SEARCH, *policy, "--output", "compare", "--budgets", "1,2"),
        "annotate": ("annotate", *policy, "--limit", "4", "--output", "steps.jsonl", "--engine.device", "cpu"),
        "judge": ("annotate", "--judge", "labels.jsonl", "--prm", "prm", "--engine.device", "cpu"),
        "convert": (*CONVERT, "--output", "trl.jsonl", "--overwrite", "true"),
    }
    record = {"schema": 1, "problem_id": "a", "question": "1+1,2", "answer": "4", "steps": ["1+1=2"], "values": [0.5]}
    record |= {"rollouts": [8], "source": "s", "policy": "p", "correct": True}
    (folder / "labels.jsonl").write_text(json.dumps(record) + "\n")
    code = "import sys; from prmkit.cli import main; sys.exit(main(sys.argv[1:]))"
    answers = {}
    for name, command in commands.items():
        answers[name] = subprocess.run(
            [sys.executable, "-c", code, *command, "--json"], cwd=folder, capture_output=True, text=True, check=False
        )
    return folder, commands, answers


@pytest.mark.parametrize("name", ["search", "compare", "annotate", "judge", "convert"])
def test_json_is_all_that_is_printed(made, name):
    folder, _, answers = made
    done = answers[name]
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert (folder / found["output"]).exists()
    if name in ("search", "compare"):
        summary = json.loads((folder / name / "summary.json").read_text())
        assert {key: found[key] for key in summary} == summary
        assert "tokens generated" in done.stderr  # the table is there, on the other stream
    if name == "annotate":
        report = json.loads((folder / "steps.jsonl.report.json").read_text())
        assert {key: found[key] for key in report} == report


@pytest.mark.parametrize("name", ["search", "compare", "annotate", "convert"])
def test_an_ascii_terminal(made, name):
    """The finished outputs are told again, with the signs that ASCII has."""
    folder, commands, _ = made
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "prmkit", *commands[name]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    done.stdout.decode("ascii")
    if name == "search":
        assert b"+-" in done.stdout


@pytest.mark.parametrize("name", ["search", "annotate"])
def test_a_reader_that_is_gone_at_the_closing_table(made, name):
    folder, commands, _ = made
    command = [sys.executable, "-m", "prmkit", *commands[name]]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 141


def error_in(module, name, text, base=Exception):
    return type(name, (base,), {"__module__": module})(text)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file or directory."),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. Free space"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied. Name a place"),
        (OSError("the file config.json\n  is not valid"), "the file config.json is not valid"),
        (error_in("huggingface_hub.errors", "NotFoundError", "404\nurl"), "404 url (NotFoundError)"),
        (error_in("requests.exceptions", "ConnectionError", "no route", OSError), "no route (ConnectionError). Check"),
        (error_in("torch", "OutOfMemoryError", "CUDA out", RuntimeError), "out of memory: CUDA out. Take smaller"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch: not installed, and this"),
    ],
)  # fmt: skip
def test_errors_of_libraries_are_one_line(error, line):
    assert explain(error).startswith(line)
    assert "\n" not in explain(error)


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("x"), KeyError("x"), ValueError("x"), RuntimeError("x"), OSError(errno.EBADF, "Bad"),
        ModuleNotFoundError("no", name="a_module_of_the_users"),
    ],
)  # fmt: skip
def test_defects_keep_their_traceback(error):
    assert explain(error) is None


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"abc")
    from safetensors import safe_open

    def load(path):
        with safe_open(path, framework="np"):
            pass

    with pytest.raises(Exception, match="header") as caught:
        load(tmp_path / "weights.safetensors")
    assert explain(caught.value).startswith(f"{tmp_path / 'weights.safetensors'}: not a readable safetensors file")


def test_a_full_disk_and_links(tmp_path, monkeypatch):
    check_output_file("output", tmp_path / "new" / "deep" / "file")
    check_output_folder("output", tmp_path / "new" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="broken link"):
        check_output_folder("output", tmp_path / "link" / "x")

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ConfigError, match=r"output: got .*/x'; accepted: .*No space left on device"):
        check_output_folder("output", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_debug_shows_the_traceback_of_a_library(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card").mkdir()
    command = ["pairs", "publish", "a", "--policy", "p", "--prm", "q", "--card", "card"]
    assert main(command) == 2
    assert capsys.readouterr().err == "error: card: Is a directory.\n"
    assert main(["--debug", *command]) == 2
    assert "Traceback" in capsys.readouterr().err
