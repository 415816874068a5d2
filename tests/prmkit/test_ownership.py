"""What may be replaced or removed: files and folders that prmkit wrote as they are, and nothing else."""

import ast
import json
from pathlib import Path

import pytest

import prmkit.ownership
from prmkit.errors import ConfigError
from prmkit.models import ModelCard, atomic_folder
from prmkit.ownership import (
    begins_with,
    check_file,
    check_folder,
    check_outputs,
    discard,
    file_sizes,
    first_line_has,
    json_has,
    mentions,
    replace_folder,
)

ROOT = Path(prmkit.ownership.__file__).parents[1]
PACKAGES = ("prmkit", "registry", "datamodules", "lightning_modules", "callbacks")


def write_model(folder, text="one"):
    with atomic_folder(folder, ModelCard("policy")) as made:
        (made / "config.json").write_text(text)
        (made / "more").mkdir()
        (made / "more" / "a.json").write_text(text)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def plant_file(folder):
    folder.write_text("mine")


def plant_run(folder):
    """A run folder, with a card in it by accident."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_text("mine")
    (folder / "prmkit.json").write_text(json.dumps({"schema": 1, "kind": "policy", "weight_version": 0}))


def plant_git(folder):
    write_model(folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("mine")


def plant_note(folder):
    write_model(folder)
    (folder / "more" / "notes.md").write_text("mine")


def plant_edit(folder):
    write_model(folder)
    (folder / "config.json").write_text("edited by hand")


def plant_card_alone(folder):
    folder.mkdir()
    (folder / "prmkit.json").write_text('{"mine": true}')


def plant_link(folder):
    """A link to a folder of somebody else."""
    place = folder.with_name("elsewhere")
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    folder.symlink_to(place)


def plant_link_inside(folder):
    write_model(folder)
    (folder.parent / "data").mkdir()
    (folder / "data").symlink_to(folder.parent / "data")


PLANTS = [plant_file, plant_run, plant_git, plant_note, plant_edit, plant_card_alone, plant_link, plant_link_inside]


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_not_ours_is_refused_by_name_and_stays(plant, tmp_path):
    target = tmp_path / "model"
    plant(target)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"OUT: got .*model'; accepted: a folder that does not exist.*(move|another)"):
        check_folder("OUT", target, "prmkit.json", "model folder")
    with pytest.raises(ConfigError, match="directory: got"):
        write_model(target, "two")
    assert content(tmp_path) == before


def test_a_file_that_comes_during_the_work_stays(tmp_path):
    target = tmp_path / "model"
    write_model(target)
    with (
        pytest.raises(ConfigError, match=r"model/notes.md is not as prmkit wrote it"),
        atomic_folder(target, ModelCard("policy")),
    ):
        (target / "notes.md").write_text("mine")
    assert (target / "notes.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("exchange", [True, False])
def test_ours_and_empty_ones_are_replaced_and_links_stay(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(prmkit.ownership, "_exchange", lambda one, other: False)
    write_model(tmp_path / "model", "one")
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "dangling").symlink_to("new")
    (tmp_path / "empty").mkdir()
    for name in ("link", "dangling", "empty", "model"):
        write_model(tmp_path / name, name)
        assert (tmp_path / name / "more" / "a.json").read_text() == name
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new" / "config.json").read_text() == "dangling"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link", "dangling", "new", "empty"}


def test_nothing_but_temporary_names_is_discarded(tmp_path):
    for name in ("model", ".model", "model.tmp"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match="not the name of a temporary"):
            discard(tmp_path / name)
    (tmp_path / ".model.1.tmp").symlink_to("model")
    (tmp_path / "model" / "a").write_text("mine")
    discard(tmp_path / ".model.1.tmp")
    assert content(tmp_path / "model") == {Path("a"): b"mine"}
    with pytest.raises(ConfigError, match=r"checkpoint\.json"):
        replace_folder(tmp_path / ".model", tmp_path / "model", "checkpoint.json", "checkpoint.json")
    assert file_sizes(tmp_path / "model") == {"a": 4}


@pytest.mark.parametrize(
    ("ours", "own"),
    [
        (json_has("a", "b"), '{"a": 1, "b": 2, "c": 3}'),
        (first_line_has("a", "b"), '{"b": 2, "a": 1}\n{}\n'),
        (begins_with(b"# made"), "# made by us\n"),
        (mentions(b"atplotlib"), "\x89PNG Matplotlib"),
    ],
)
def test_files_are_replaced_when_their_content_says_they_are_ours(tmp_path, ours, own):
    path = tmp_path / "file"
    check_file("--report", path, ours, "report")
    for text in ("", own):
        path.write_text(text)
        check_file("--report", path, ours, "report")
    for text in ("mine", "{}", '{"a": 1}', "[]", '{"x": 1, "a": 2}\n', "\n", "\x00"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"--report: got .* accepted: .* report.* move it away"):
            check_file("--report", path, ours, "report")
    with pytest.raises(ConfigError, match="It is a folder"):
        check_file("--report", tmp_path, ours, "report")
    with pytest.raises(ConfigError, match="move it away"):  # without fields no file is ours
        check_file("--report", path, first_line_has(), "report")


def test_outputs_are_replaced_beside_their_marker(tmp_path):
    files, marker = [tmp_path / "a", tmp_path / "b"], tmp_path / "m.json"
    check_outputs("output", tmp_path, files, marker)
    files[1].write_text("mine")
    with pytest.raises(ConfigError, match=r"output: got .*one with m\.json.*b would be replaced"):
        check_outputs("output", tmp_path, files, marker)
    marker.touch()
    check_outputs("output", tmp_path, files, marker)


FORBIDDEN = {"rmtree", "unlink", "rename", "renames", "rmdir", "removedirs", "move", "copytree"}
MODULES = {"os", "shutil"}


def renames_and_removals(file):
    """Lines of a file that rename or remove by themselves: calls of os, shutil and Path."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (node.lineno for alias in node.names if alias.name in {*FORBIDDEN, "remove", "replace"})
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        module = isinstance(owner, ast.Name) and owner.id in MODULES
        path_replace = name == "replace" and len(node.args) == 1 and not node.keywords  # str.replace takes two
        if name in FORBIDDEN or path_replace or (module and name in {"remove", "replace"}):
            yield node.lineno


def test_nothing_else_in_the_tree_renames_or_removes():
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if file != Path(prmkit.ownership.__file__)
        for line in renames_and_removals(file)
    ]
    assert found == []
    assert len(list(renames_and_removals(Path(prmkit.ownership.__file__)))) > 5
