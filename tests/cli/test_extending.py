"""docs/extending.md as a package outside the tree: its files are written out and installed as a folder with an entry
point, and its commands are run by real `prm` processes, in their order."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prmkit import StepLabels, write_records
from prmkit.cli import main
from prmkit.resources import find_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
FILES = {text.splitlines()[0].removeprefix("# "): text for language, text in BLOCKS if language == "python"}
COMMANDS = [shlex.split(line) for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


def install(site: Path, name: str, module: str) -> None:
    """What pip leaves of a package with an entry point."""
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[prmkit.plugins]\n{module} = {module}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    install(folder, "my-parts", "my_parts")
    return folder


@pytest.fixture(scope="module")
def prm(site, tmp_path_factory, memorised_policy):
    """prm(*arguments) in a folder with a policy and labels, the package of the page installed."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(memorised_policy, work / "runs" / "sft" / "policy")
    shutil.copytree(memorised_policy, work / "runs" / "quick" / "sft" / "policy")

    def run(*arguments: str, path: Path | None = site) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(path) if path else "", "COLUMNS": "200"}
        command = [sys.executable, "-m", "prmkit.cli", *arguments]
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=300)

    run.folder = work
    return run


def labels(folder: Path) -> None:
    steps = ("a+3=3", "b+4=7")
    records = [
        StepLabels(f"p{number}", "a+3b+4,0", "7", steps, (1.0, float(number % 2)), (1, 1), "test", "")
        for number in range(16)
    ]
    for place in ("runs/annotate", "runs/quick/annotate"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        write_records(records, folder / place / "annotations.jsonl")


@pytest.mark.slow
def test_every_command_of_the_page(prm):
    labels(prm.folder)
    for command in COMMANDS:
        done = prm(*command[1:])
        assert done.returncode == 0, (command, done.stderr)
    rows = [json.loads(line) for line in (prm.folder / "runs/taught/rows.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {"doubles/test"}
    assert all(trace["correct"] for row in rows for trace in row["traces"] if row["method"] == "race")
    assert {len(row["traces"]) for row in rows if row["method"] == "race"} == {3}, "it stops when three agree"
    scored = [json.loads(line) for line in (prm.folder / "runs/scored/rows.jsonl").read_text().splitlines()]
    assert all(0 < score < 1 for row in scored for trace in row["traces"] for score in trace["scores"] or ())
    assert any(trace["scores"] for row in scored for trace in row["traces"])
    held = json.loads((prm.folder / "runs/prm/model/step_format.json").read_text())
    assert held["prm"]["head"] == "mlp"
    assert "brevity" in (prm.folder / "runs/grpo/config.yaml").read_text()
    budgets = [json.loads(line) for line in (prm.folder / "runs/compare/rows.jsonl").read_text().splitlines()]
    assert {len(row["traces"]) for row in budgets if row["method"] == "race" and row["budget"] == 2} == {2}
    values = [json.loads(line)["values"] for line in (prm.folder / "runs/labels.jsonl").read_text().splitlines()]
    assert {value for row in values for value in row} > {1.0}  # slips were seen


@pytest.mark.parametrize("command", ["search", "fit"])
def test_help_lists_plugins(prm, command):
    shown = prm(command, "--help").stdout
    for part in (
        "search method     race",
        "reward            brevity",
        "task              doubles",
        "engine            teacher",
    ):
        assert part in shown, part
    assert "from plugins" not in prm(command, "--help", path=None).stdout


def test_doctor_lists_plugins(prm):
    assert json.loads(prm("doctor", "--json").stdout)["plugins"] == [
        {"name": "my_parts", "package": "my-parts", "version": "0.1", "state": "ok"}
    ]


@pytest.mark.parametrize(
    ("arguments", "key", "near"),
    [
        (("fit", "--config", "prm/quick", "--model.loss", "sofd"), "model.init_args.loss", "soft"),
        (("fit", "--config", "grpo/quick", "--model.loss.kind", "clipp"), "model.init_args.loss.kind", "clip"),
        (("fit", "--config", "grpo/quick", "--data.prompts.task", "gsm8"), "data.init_args.prompts.task", "gsm8k"),
        (
            ("fit", "--config", "grpo/quick", "--data.rewards.lenght.weight", "1"),
            "data.init_args.rewards.lenght",
            "length",
        ),
        (("search", "--policy", "P", "--output", "o", "--engine.kind", "htp"), "engine.kind", "http"),
        (("search", "--policy", "P", "--output", "o", "--task", "mats"), "task", "math"),
        (("search", "--policy", "P", "--output", "o", "--method", "beam_serch"), "method", "beam_search"),
        (("annotate", "--policy", "P", "--output", "o", "--method", "omegapr"), "method", "omegaprm"),
        (("predict", "--config", "prm/quick", "--model.loss", "hrd"), "model.init_args.loss", "hard"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_key_and_the_nearest(arguments, key, near, capsys):
    given = [str(find_config(f"configs/{a}.yaml")) if a.endswith("/quick") else a for a in arguments]
    assert main(given) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: {key}: "), said
    assert f"Did you mean `{near}`?" in said


def test_help_with_light_plugins_does_not_import_torch(site, tmp_path):
    code = "import sys; from prmkit.cli import main; main(['search', '--help']); print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_without_the_plugin_its_model_names_the_head(prm, as_prm, memorised_policy):
    folder = as_prm(memorised_policy)
    held = json.loads((folder / "step_format.json").read_text())
    held["prm"] |= {"head": "mlp"}
    (folder / "step_format.json").write_text(json.dumps(held))
    done = prm(
        "search", "--policy", "runs/sft/policy", "--prm", str(folder), "--output", "runs/no", "--limit", "2", path=None
    )
    assert done.returncode == 2
    assert "step_format.prm.head: got 'mlp'; accepted: label_tokens | token_head | scalar" in done.stderr


def test_module_and_attribute_name_what_was_registered(prm, site, tmp_path):
    shutil.copytree(site / "my_parts", tmp_path / "my_parts")  # no entry point there
    given = ("--policy", "runs/sft/policy", "--limit", "2", "--greedy", "false")
    named = ("--method", "my_parts.search:race", "--race.n", "3", "--task", "my_parts.task:Doubles")
    done = prm("search", *given, *named, "--engine", "my_parts.engine:teacher", "--output", "runs/named", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((prm.folder / "runs/named/summary.json").read_text())
    for option, value, said in (
        ("--method", "my_parts.search:size", "accepted: an object registered once as a search method"),
        ("--method", "my_parts.search:rase", "my_parts.search has no attribute rase"),
        ("--method", "my_part:race", "there is no module my_part"),
        ("--engine", "my_parts.search:race", "accepted: an object registered once as a engine"),
    ):
        done = prm("search", *given, option, value, "--output", "runs/x", path=tmp_path)
        assert done.returncode == 2
        assert value in done.stderr
        assert said in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_that_name", "plugin broken (broken, of broken) cannot be imported: ModuleNotFoundError"),
        (
            "import prmkit\nprmkit.register_task('math')(lambda: None)",
            "task 'math' of broken:<lambda>: the name is taken by prmkit",
        ),
    ],
)
def test_a_broken_plugin_is_one_line(prm, tmp_path, source, said):
    (tmp_path / "broken.py").write_text(source)
    install(tmp_path, "broken", "broken")
    done = prm("search", "--policy", "P", "--output", "runs/x", "--method", "race", path=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr, done.stderr
    helped = prm("search", "--help", path=tmp_path)
    assert helped.returncode == 0
    assert said in helped.stderr
    assert "  race " not in helped.stdout
    doctor = prm("doctor", "--json", path=tmp_path)
    assert said in json.loads(doctor.stdout)["plugins"][0]["state"]
