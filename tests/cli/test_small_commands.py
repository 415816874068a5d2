"""`prm configs`, `prm completion`, and an interpreter without torch and all that comes with it."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prmkit.cli import COMMANDS, main
from prmkit.cli.doctor import LIGHT, light_requirements
from prmkit.models.folders import ModelCard, write_card
from prmkit.resources import find_config, shipped_configs

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
MODULES = {"pyyaml": "yaml"}


def out(capsys, *argv):
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_configs_list(capsys):
    lines = out(capsys, "configs", "list").splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_configs())
    assert all(len(line.split()) > 3 for line in lines), "every config says in its first comment what it is for"
    found = json.loads(out(capsys, "configs", "list", "prm", "--json"))
    assert list(found) == list(shipped_configs("prm"))


@pytest.mark.parametrize("name", ["configs/prm/quick.yaml", "prm/quick.yaml", "prm/quick"])
def test_configs_show_and_copy(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / "quick.yaml").write_text("mine: 1\n")
    text = find_config("configs/prm/quick.yaml").read_text()
    assert out(capsys, "configs", "show", name) == text
    out(capsys, "configs", "copy", name)
    assert (tmp_path / "quick.yaml").read_text() == text
    (tmp_path / "quick.yaml").write_text("changed\n")
    assert main(["configs", "copy", name]) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "quick.yaml").read_text() == "changed\n"
    out(capsys, "configs", "copy", name, "quick.yaml", "--force")
    out(capsys, "configs", "copy", name, "new/deep.yaml")
    assert (tmp_path / "quick.yaml").read_text() == (tmp_path / "new" / "deep.yaml").read_text() == text


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    pytest.importorskip("shtab", reason="pip install shtab")
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "tcsh"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "prmkit", "completion", shell],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        imported = {name.strip().partition(".")[0] for name in re.findall(r"\|(.*)$", done.stderr, re.M)}
        assert not imported & {"torch", "lightning", "transformers"}
        (folder / shell).write_text(done.stdout)
    return folder


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("se",), {"search", "serve"}),
        (("search", "--bud"), {"--budgets", "--budget_unit"}),
        (("regime", "--thresholds.prm"), {"--thresholds.prm_good", "--thresholds.prm_usable"}),
        (("search", "--budget_unit", ""), {"samples", "tokens"}),
        (("search", "--config", "configs/search/q"), {"configs/search/quick.yaml"}),
        (("search", "--config", "my_"), {"my_config.yaml"}),
        (("pairs", "pu"), {"publish", "pull", "push"}),
        (("fit", "--model.optimizer.l"), {"--model.optimizer.lr"}),
        (("configs", ""), {"list", "show", "copy"}),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(scripts, tmp_path, typed, expected):
    (tmp_path / "my_config.yaml").touch()
    code = 'source "$1"; shift; COMP_WORDS=(prm "$@"); COMP_CWORD=$#; _shtab_prm; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", code, "bash", str(scripts / "bash"), *typed],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert expected <= set(done.stdout.split()), done.stderr
    assert len(set(done.stdout.split()) - expected) <= 1


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["zsh", "-n"]), ("tcsh", ["tcsh", "-f", "-n"])])
def test_other_shells_accept_their_scripts(scripts, shell, check):
    text = (scripts / shell).read_text()
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    done = subprocess.run([*check, str(scripts / shell)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LIGHT_RUN = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from prmkit.cli import main
for command in json.load(sys.stdin):
    status = main(command)
    if status:
        sys.exit(f"{command}: {status}")
"""


def test_a_light_installation(memorised_policy, tmp_path):
    """Lists, pulls, publishes, verifies, converts and completes without what a light installation leaves out."""
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in REQUIREMENTS]
    assert set(LIGHT) <= set(names)
    kept = [re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in light_requirements(REQUIREMENTS)]
    assert sorted(kept) == sorted(LIGHT)
    heavy = [MODULES.get(name, name.replace("-", "_")) for name in names if name not in LIGHT]
    heavy += ["pytorch_lightning", "pandas", "pyarrow", "scipy", "tokenizers", "accelerate"]
    assert {"torch", "lightning", "transformers", "datasets", "matplotlib"} <= set(heavy)
    record = {"schema": 1, "problem_id": "a", "question": "q", "answer": "1", "steps": ["1"], "values": [1.0]}
    record |= {"rollouts": [8], "source": "s", "policy": "p", "correct": True}
    (tmp_path / "labels.jsonl").write_text(json.dumps(record) + "\n")
    prm = tmp_path / "prm"
    shutil.copytree(memorised_policy, prm)
    write_card(prm, ModelCard("prm"))
    pair = ["--registry", "registry"]
    commands = [
        ["pairs", "publish", "math", "--policy", str(memorised_policy), "--prm", str(prm), *pair],
        ["pairs", "list", *pair], ["pairs", "show", "math", *pair], ["pairs", "verify", *pair],
        ["pairs", "pull", "math", "pulled", *pair], ["pairs", "export", "math", "exported", *pair],
        ["pairs", "push", "copy", "math", *pair], ["pairs", "check", "pulled/policy", "pulled/prm"],
        ["annotate", "--convert", "labels.jsonl", "--to", "trl", "--output", "trl.jsonl"],
        ["configs", "list"], ["configs", "copy", "prm/quick", "mine.yaml"], ["doctor", "--light"],
        *([name, "--help"] for name in COMMANDS),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_RUN, json.dumps(heavy)],
        input=json.dumps(commands), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trl.jsonl").stat().st_size > 0
    assert (tmp_path / "pulled" / "policy" / "model.safetensors").is_file()


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {project['version'].partition('.dev')[0]} (unreleased)" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("prmkit")
