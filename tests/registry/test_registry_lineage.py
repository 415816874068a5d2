"""Trees of versions, differences between two, and what made one."""

import subprocess

import pytest

from prmkit.errors import DataError
from registry import Registry, record_recipe
from registry.difference import difference
from registry.lineage import draw_lineage, lineage_text


@pytest.fixture
def family(registry, make_publication, make_metrics):
    """1 -> 2 -> 4 and 1 -> 3, with names."""
    for weights, parent, accuracy in ((0, None, 0.5), (1, "math@1", 0.6), (2, "math@1", 0.7), (3, "math@2", 0.8)):
        registry.publish(make_publication(weights=weights, parent=parent, metrics=make_metrics(accuracy)))
    registry.set_alias("math@3", "candidate")
    return registry


def test_the_tree_as_text(family):
    text = lineage_text(family.lineage("math@4"))
    assert [line.partition("  acc")[0] for line in text.splitlines()] == [
        "math@1",
        "├─ math@2",
        "│  math@4",
        "└─ math@3  [candidate]",
    ]
    assert "[candidate]  accuracy 0.7000" in text
    assert text.splitlines()[2].endswith("*")
    assert lineage_text(family.lineage("math@1")).count("*") == 1


def test_the_tree_as_a_picture(family, tmp_path):
    draw_lineage(family.lineage("math@4"), tmp_path / "tree.png")
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_chain_and_a_parent_that_is_elsewhere(family, make_publication, tmp_path):
    other = Registry(tmp_path / "other")
    family.push(other, "math@4")
    assert lineage_text(other.lineage("math@4")).splitlines()[0] == "math@2  (not in this registry)"
    for number in range(4, 30):
        family.publish(make_publication(parent=f"math@{number}"))
    assert len(lineage_text(family.lineage("math@30")).splitlines()) == 30


def test_parents_of_another_pair(family, make_publication):
    family.publish(make_publication("code", parent="math@4"))
    text = lineage_text(family.lineage("code@1"))
    assert [line.strip("├└─│ ").split("  ")[0] for line in text.splitlines()] == [
        "math@1", "math@2", "math@4", "code@1", "math@3",
    ]  # fmt: skip


def test_differences(family):
    found = family.diff("math@1", "math@2")
    assert found.changed == (
        "attachments/results.json", "policy/model.safetensors", "policy/prmkit.json", "prm/model.safetensors",
        "prm/prmkit.json",
    )  # fmt: skip
    assert (found.added, found.removed, found.same) == ((), (), 6)
    assert found.figures["accuracy"] == (0.5, 0.6)
    assert found.fields == {"parent": (None, "math@1")}
    one, two = family.manifest("math@1"), family.manifest("math@2")
    new = [file.size for path, file in two.located().items() if path in found.changed]
    assert found.new == sum(new)
    assert found.shared + found.new == sum({f.sha256: f.size for f in two.located().values()}.values())
    assert difference(one, one).changed == ()


def test_a_recipe(registry, make_publication, tmp_path):
    data = tmp_path / "steps.jsonl"
    data.write_text("{}\n")
    config = tmp_path / "a.yaml"
    config.write_text("seed: 1\n")
    recipe = record_recipe(["echo 'two words'", ("sh", "-c", "cat configs/a.yaml > out")], [data, "gsm8k"], seed=3)
    registry.publish(make_publication(recipe=recipe, attachments={"configs/a.yaml": config}))
    lines = registry.recipe("math")
    assert lines[-2:] == ["echo 'two words'", "sh -c 'cat configs/a.yaml > out'"]
    assert "# data: gsm8k" in lines
    digest = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"  # sha256sum's
    assert f"# data: {data} sha256 {digest}" in lines
    registry.reproduce("math", tmp_path / "again")
    assert (tmp_path / "again" / "out").read_text() == "seed: 1\n"
    data.write_text("changed\n")
    with pytest.raises(DataError, match="not the data that math@1 was made from"):
        registry.reproduce("math", tmp_path / "again")


@pytest.mark.parametrize(
    ("commands", "message"),
    [([], "records no commands"), (["false"], "ended with status 1"), (["nosuch-x"], "no such")],
)
def test_what_cannot_be_reproduced(registry, make_publication, tmp_path, commands, message):
    registry.publish(make_publication(recipe=record_recipe(commands)))
    with pytest.raises(DataError, match=message):
        registry.reproduce("math", tmp_path / "again")


def test_a_recipe_knows_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert record_recipe().revision is None
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *arguments], check=True)
    recipe = record_recipe()
    assert len(recipe.revision) == 40
    assert recipe.dirty is False
    assert recipe.packages["prmkit"]
    for bad in ("", "echo 'open"):
        with pytest.raises(DataError, match="command"):
            record_recipe([bad])
