"""A stranger's files in the places that commands write to: refused by name before work begins, or left alone beside."""

import json
from pathlib import Path

import pytest

from prmkit.annotation import StepLabels
from prmkit.cli import main
from prmkit.io import read_json

TASK = ["--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "2"]
CPU = ["--engine.device", "cpu", "--sampling.max_tokens", "24"]
SIZES = ["--solutions_per_problem", "2", "--rollouts", "2"]
ANNOTATE = ["annotate", "--method", "mips", "--policy", "POLICY", *TASK, *CPU, *SIZES, "--output"]
SEARCH = ["search", "--policy", "POLICY", "--prm", "PRM", *TASK, *CPU, "--n", "2", "--output"]
JUDGE = ["annotate", "--judge", "LABELS", "--prm", "PRM", "--engine.device", "cpu", "--output"]
CONVERT = ["annotate", "--convert", "LABELS", "--to", "trl", "--output"]
FIT = ["fit", "--config", "configs/sft/quick.yaml", "--data.train", "[{kind: task, name: accumulator, count: 8}]"]
FIT += ["--data.val", "[{kind: task, name: accumulator, split: validation, count: 4}]", "--trainer.default_root_dir"]
PAIRS = ["--registry", "registry"]
PUBLISH = ["pairs", "publish", "toy", "--policy", "POLICY", "--prm", "PRM", *PAIRS]
MINE = "my own work\n"

# What is run, and the files in the place of its output, each of which has to stop it.
REFUSED = [
    (["export", "nowhere.ckpt", "out"], ["out", "out/notes.md", "out/checkpoints/a.ckpt", "out/.git/HEAD"]),
    ([*FIT, "out"], ["out/policy", "out/policy/notes.md", "out/training.json", "out/config.yaml"]),
    ([*FIT, "out", "--trainer.callbacks.2.init_args.dirpath", "out"], ["out/notes.md"]),
    ([*ANNOTATE, "out"], ["out", "out.trees.jsonl", "out.report.json"]),
    ([*ANNOTATE, "out", "--overwrite", "true"], ["out"]),
    ([*ANNOTATE, "out", "--shared", "true"], ["out", "out.report.json", "out.parts/notes.md"]),
    ([*SEARCH, "out"], [f"out/{n}" for n in ("rows.jsonl", "summary.json", "accuracy_vs_budget.png")]),
    ([*SEARCH, "out", "--overwrite", "true"], ["out/rows.jsonl", "out/accuracy_by_level.png"]),
    ([*SEARCH, "out", "--shared", "true"], ["out/summary.json", "out/rows.jsonl.parts/notes.md"]),
    ([*JUDGE, "out"], ["out"]),
    ([*CONVERT, "out"], ["out"]),
    (["demo", "--config", "quick", "--output", "out"], ["out/summary.json", "out/accuracy_vs_budget.png"]),
    (["demo", "--config", "quick", "--output", "out"], ["out/sft/notes.md"]),
    (["loop", "--config", "configs/loop/quick.yaml", *PAIRS, "--run", "out"],
     ["out/loop.json", "out/summary.json", "out/configs/prm.yaml", "out/configs/gate.json", "out/sft/notes.md"]),
    ([*PUBLISH, "--report", "out"], ["out"]),
    (["pairs", "promote", "toy@1", "best", "--report", "out", *PAIRS], ["out"]),
    (["pairs", "lineage", "toy@1", "--picture", "out.png", *PAIRS], ["out.png"]),
    (["pairs", "pull", "toy", "out", *PAIRS], ["out/policy/config.json", "out/pair.json"]),
    (["pairs", "export", "toy", "out", *PAIRS], ["out/toy-policy/notes.md", "out/toy-prm/pair.json", "out/toy-prm"]),
]  # fmt: skip


@pytest.fixture
def workdir(memorised_policy, memorised_prm, tmp_path, monkeypatch):
    """A folder to work in, and commands in which names stand for what is there; gives status and errors."""
    monkeypatch.chdir(tmp_path)
    labels = StepLabels("p", "f+1", "1", ("f",), (1.0,), (1,), "mips", "p")
    (tmp_path / "labels.jsonl").write_text(json.dumps(labels.to_json()) + "\n")
    names = {"POLICY": str(memorised_policy), "PRM": str(memorised_prm), "LABELS": "labels.jsonl"}

    def run(argv, capsys):
        capsys.readouterr()
        status = main([names.get(word, word) for word in argv])
        return status, capsys.readouterr().err

    return run


def snapshot():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("argv", "planted"), [(argv, path) for argv, paths in REFUSED for path in paths],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)  # fmt: skip
def test_a_strangers_file_in_an_outputs_place_is_refused_and_stays(workdir, capsys, argv, planted):
    if argv[0] == "pairs" and argv[1] != "publish":
        assert workdir([*PUBLISH, "--once"], capsys)[0] == 0
    place = Path(planted)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(MINE)
    before = snapshot()
    status, errors = workdir(argv, capsys)
    assert status == 2
    message = next(line for line in errors.splitlines() if "error: " in line)
    assert place.name in message or str(place.parent) in message or "dirpath: got 'out'" in message, message
    assert any(remedy in message for remedy in ("move", "another", "ame a", "elsewhere")), message
    after = snapshot()
    assert {path: after.get(path) for path in before} == before
    made = {path for path in set(after) - set(before) if path.parts[0] == "out" and ".lock" not in path.name}
    assert not {path for path in made if path.suffix in {".safetensors", ".ckpt", ".png"}}, "no work was done"


@pytest.mark.parametrize("argv", [[*FIT, "out"], [*SEARCH, "out"], [*ANNOTATE, "out/steps.jsonl"],
                                  ["pairs", "pull", "toy", "out", *PAIRS], ["pairs", "export", "toy", "out", *PAIRS]],
                         ids=lambda argv: " ".join(argv[:2]))  # fmt: skip
def test_a_strangers_file_beside_the_outputs_stays_and_again(workdir, capsys, argv):
    assert workdir([*PUBLISH, "--once"], capsys)[0] == 0
    for name in ("notes.md", "checkpoints/notes.md", "policy/data/notes.md" if argv[0] == "pairs" else "more/notes.md"):
        place = Path("out") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(MINE)
    before = {path: data for path, data in snapshot().items() if path.name == "notes.md"}
    for _ in range(2):  # what the command itself has written is no stranger's
        status, errors = workdir(argv, capsys)
        assert status == 0, errors
        assert {path: data for path, data in snapshot().items() if path.name == "notes.md"} == before


def test_a_models_folder_that_a_link_names_is_replaced_and_the_link_stays(workdir, capsys):
    assert workdir([*FIT, "out"], capsys)[0] == 0
    Path("link").symlink_to("out/policy")
    status, errors = workdir(["export", "out", "link", "--weight_version", "7"], capsys)
    assert status == 0, errors
    assert Path("link").is_symlink()
    assert read_json("out/policy/prmkit.json")["weight_version"] == 7
    Path("out/policy/README.md").write_text(MINE)
    status, errors = workdir(["export", "out", "link"], capsys)
    assert status == 2
    assert "OUT: got 'link'" in errors
    assert "out/policy/README.md is not as prmkit wrote it" in errors
    status, errors = workdir([*FIT, "out"], capsys)
    assert status == 2
    assert "out/policy/README.md is not as prmkit wrote it" in errors
