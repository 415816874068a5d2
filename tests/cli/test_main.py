"""`prm` itself: help without heavy imports, suggestions, and how errors end."""

import re
import subprocess
import sys

import pytest

from prmkit import cli
from prmkit.cli import COMMANDS, Command, main
from prmkit.errors import ConfigError

MODELS = {"torch", "lightning", "transformers", "datasets"}
PARSERS = {"omegaconf", "jsonargparse", "numpy", "yaml"}


def imported_by(*argv: str) -> set[str]:
    """Top-level packages that a real `prm` process imports."""
    code = "import sys; from prmkit.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *argv], capture_output=True, text=True, check=True
    )
    assert "usage: prm" in process.stdout
    return {name.strip().partition(".")[0] for name in re.findall(r"^import time:.*\|(.*)$", process.stderr, re.M)}


@pytest.mark.parametrize("argv", [(), ("--help",), ("fit", "--help"), ("predict", "-h"), ("doctor", "--help")])
def test_help_imports_nothing_heavy(argv):
    found = imported_by(*argv)
    assert "prmkit" in found
    assert not found & (MODELS | PARSERS)


@pytest.mark.parametrize("command", ["annotate", "search", "regime", "demo"])
def test_help_of_every_command_waits_for_no_model(command):
    assert not imported_by(command, "--help") & MODELS


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", text, re.M)
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"prmkit \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("typed", "hint"), [("serach", "Did you mean `prm search`?"), ("qqqq", "Known: fit, validate")]
)
def test_unknown_command(capsys, typed, hint):
    assert main([typed]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: prm {typed}: no such command. {hint}")
    assert error.count("\n") == 1


@pytest.fixture
def raising(monkeypatch, tmp_path):
    """Make `prm doctor` raise what the test asks for, in a real module of its own."""

    def prepare(statement: str) -> None:
        (tmp_path / "raising_command.py").write_text(f"def run(argv):\n    {statement}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(cli.COMMANDS, "doctor", Command("raising_command", "raises"))
        monkeypatch.delitem(sys.modules, "raising_command", raising=False)

    return prepare


def test_user_error_is_one_line_and_status_2(raising, capsys, monkeypatch):
    monkeypatch.delenv("PRMKIT_DEBUG", raising=False)
    raising("from prmkit.errors import ConfigError; raise ConfigError('a.b', 3, 'an even number', 'Take 4.')")
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == f"error: {ConfigError('a.b', 3, 'an even number', 'Take 4.')}\n"
    for debug in (["--debug", "doctor"], ["doctor", "--debug"]):
        assert main(debug) == 2
        assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("PRMKIT_DEBUG", "1")
    assert main(["doctor"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_other_endings(raising, capsys):
    raising("raise KeyboardInterrupt")
    assert main(["doctor"]) == 130
    raising("raise SystemExit(7)")
    assert main(["doctor"]) == 7
    raising("raise ZeroDivisionError('a defect')")
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize("argv", [["--help"], ["annotate", "--help"]])
def test_a_reader_that_stops_reading(argv):
    """`prm ... | head -1`: no traceback, and the status of a program that SIGPIPE ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prmkit.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
