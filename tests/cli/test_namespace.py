"""`prm` beside a user's folders that have the names of prmkit's packages, under every launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prmkit.cli.namespace import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(sys.executable).parent / "prm")
MODULE, SHORT = (sys.executable, "-m", "prmkit.cli"), (sys.executable, "-m", "prmkit")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
USER_CALLBACK = "from lightning.pytorch import Callback\n\nclass MyCallback(Callback):\n    pass\n"


@pytest.fixture
def project(tmp_path):
    """A user's project: folders that fail when they are imported, a module hidden by ours, and modules of its own."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of the user')\n")
    (tmp_path / "callbacks" / "export.py").write_text("raise RuntimeError('the export of the user')\n")
    (tmp_path / "callbacks" / "mine.py").write_text(USER_CALLBACK)
    (tmp_path / "mymodule.py").write_text(USER_CALLBACK)
    return tmp_path


def run(command, folder, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


def dumped(callback):
    """A command that prints the merged config of a fit with a user's callback in place of the first."""
    return (
        "fit", "--config", "configs/prm/quick.yaml", "--trainer.callbacks", f"[{{class_path: {callback}}}]",
        "--print_config",
    )  # fmt: skip


@pytest.mark.parametrize("launcher", [MODULE, SHORT, (SCRIPT,)], ids=["-m prmkit.cli", "-m prmkit", "prm"])
def test_a_fit_beside_folders_of_the_same_names(project, launcher):
    done = run([*launcher, *dumped("mymodule.MyCallback")], project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "class_path: mymodule.MyCallback" in done.stdout
    hidden = [line for line in done.stderr.splitlines() if "hidden by prmkit's own callbacks" in line]
    assert len(hidden) == 1
    assert f"{project / 'callbacks'}: __init__.py, export.py are hidden" in hidden[0]
    assert str(ROOT / "callbacks") in hidden[0]
    assert "rename yours" in hidden[0]


def test_a_shadowing_python_path_and_a_module_in_the_users_package(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run([SCRIPT, *dumped("callbacks.mine.MyCallback")], elsewhere, PYTHONPATH=str(project))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "class_path: callbacks.mine.MyCallback" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", [("-m", "prmkit.cli"), ("-m", "prmkit"), (SCRIPT,)])
def test_torchrun_beside_folders_of_the_same_names(project, program):
    done = run([*TORCHRUN, *program, *dumped("mymodule.MyCallback")], project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "class_path: mymodule.MyCallback" in done.stdout


def test_processes_of_a_command_beside_a_package_prmkit(tmp_path):
    """The stages of a demo are started with `-m`, which finds the working directory first."""
    (tmp_path / "prmkit").mkdir()
    (tmp_path / "prmkit" / "__init__.py").write_text("raise RuntimeError('the prmkit of the user')\n")
    code = (
        "import subprocess, sys; sys.path.pop(0); import prmkit.cli; "
        "sys.exit(subprocess.run([sys.executable, '-m', 'prmkit.cli', '--version']).returncode)"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stdout[:7]) == (0, "prmkit "), done.stderr
    assert run([sys.executable, "-m", "prmkit.cli"], tmp_path).returncode == 1  # that clash is Python's own


def test_modules_of_the_working_directory_come_last(tmp_path):
    (tmp_path / "mine.py").write_text("value = 1\n")
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    (tmp_path / "logs_of_a_tracker").mkdir()
    code = (
        "import importlib.util, sys; sys.path.pop(0); import prmkit.cli, mine, json; "
        "assert importlib.util.find_spec('logs_of_a_tracker') is None; print(mine.value)"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_package_that_was_imported_before_is_named(project):
    (project / "registry" / "__init__.py").write_text("")
    code = "import registry; from prmkit.cli import main; raise SystemExit(main(['pairs', 'list']))"
    done = run([sys.executable, "-c", code], project)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: registry: imported from {project / 'registry' / '__init__.py'} before")
    assert done.stderr.count("\n") == 1


def test_every_package_of_the_wheel_is_pinned():
    import tomllib

    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(shipped["packages"]) == {"prmkit", *PACKAGES}
