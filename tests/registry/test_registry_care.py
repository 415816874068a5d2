"""Verification, garbage, and copies between stores on a local disk."""

import shutil

import pytest

from prmkit.errors import ConfigError, DataError
from registry import Registry
from registry.errors import ConflictError, DamagedError, NewerSchemaError, NotFoundError
from registry.sealed import seal, unseal
from registry.storage import Silent


def flip(path, byte=20):
    data = bytearray(path.read_bytes())
    data[byte % len(data)] ^= 8
    path.chmod(0o644)
    path.write_bytes(data)


def stored_files(registry):
    root = registry.storage.root
    return sorted(p for p in root.rglob("*") if p.is_file() and p.parent != root and p.parent.name != "tmp")


def test_a_flipped_bit_in_any_stored_file_is_found_and_named(registry, make_publication, make_metrics):
    registry.publish(make_publication(metrics=make_metrics(0.5)), alias="best")
    assert registry.verify().ok
    for path in stored_files(registry):
        whole = path.read_bytes()
        flip(path)
        report = registry.verify()
        assert not report.ok
        assert path.name.removesuffix(".json") in " ".join(p.key + p.text for p in report.problems), path
        path.write_bytes(whole)
    assert registry.verify().ok


def test_what_a_damaged_file_affects(registry, make_publication):
    manifest = registry.publish(make_publication(weights=0))
    registry.publish(make_publication(weights=1))
    digest = manifest.located()["policy/tokenizer.json"].sha256
    flip(registry.storage.root / "blobs" / digest[:2] / digest)
    (problem,) = registry.verify().problems
    assert problem.key == f"blobs/{digest[:2]}/{digest}"
    assert problem.text.startswith("damaged: its content has the SHA-256")
    assert problem.affects == tuple(f"math@{n}: {m}/tokenizer.json" for n in (1, 2) for m in ("policy", "prm"))
    assert registry.verify("math@1").problems
    assert [m.affects for m in registry.verify("math@2").problems] == [problem.affects[2:]]


def test_files_of_somebody_elses_making(registry, make_publication):
    """Folders that desktop programs write to: neither a content, nor a version, nor a pair."""
    registry.publish(make_publication(), alias="candidate")
    for folder in ("", "blobs", "pairs", "pairs/math", "pairs/math/versions", "pairs/math/aliases"):
        (registry.storage.root / folder / ".DS_Store").write_bytes(b"x")
    assert registry.verify().ok
    assert (registry.pairs(), registry.versions("math"), registry.aliases("math")) == (["math"], [1], {"candidate": 1})
    registry.publish(make_publication(weights=1))


def test_a_missing_file_is_found(registry, make_publication):
    manifest = registry.publish(make_publication())
    digest = manifest.located()["prm/config.json"].sha256
    (registry.storage.root / "blobs" / digest[:2] / digest).unlink()
    assert [problem.text for problem in registry.verify().problems] == ["missing"]


def test_a_missing_move_is_found(registry, make_publication):
    registry.publish(make_publication(), alias="candidate")
    registry.publish(make_publication(), alias="candidate")
    (registry.storage.root / "pairs/math/history/candidate/00000001.json").unlink()
    (problem,) = registry.verify().problems
    assert "move 1 of 2 is missing" in problem.text


def test_garbage_goes_and_nothing_else(registry, make_publication, tmp_path):
    registry.publish(make_publication())
    before = stored_files(registry)
    for number in range(3):
        (tmp_path / "orphan").write_bytes(b"x" * (number + 1))
        registry.storage.put_blob(tmp_path / "orphan", None, Silent())
    (registry.storage.root / "tmp" / "1-killed").write_bytes(b"half")
    dry = registry.collect_garbage(dry_run=True)
    assert (len(dry.blobs), len(dry.leftovers), dry.size) == (3, 1, 1 + 2 + 3 + 4)
    assert registry.collect_garbage() == dry
    assert stored_files(registry) == before
    assert registry.collect_garbage().size == 0


def test_garbage_stays_when_a_manifest_cannot_be_read(registry, make_publication):
    registry.publish(make_publication())
    path = registry.storage.root / "pairs/math/versions/1.json"
    whole = path.read_bytes()
    blobs = stored_files(registry)
    flip(path, 700)
    with pytest.raises(DamagedError, match=r"versions/1\.json"):
        registry.collect_garbage()
    path.write_bytes(seal({**unseal(whole, ""), "schema": 9, "requires": "prmkit>=3"}))
    with pytest.raises(NewerSchemaError, match="needs prmkit>=3"):
        registry.collect_garbage()
    assert stored_files(registry) == blobs


def test_a_remote_restores_what_was_damaged(registry, make_publication, make_model, tmp_path):
    publication = make_publication()
    make_model(publication.policy, size=9 * 2**18)  # above the size that publishing again would mend
    manifest = registry.publish(publication)
    backup = Registry(tmp_path / "backup")
    registry.push(backup, "math")
    digest = manifest.located()["policy/model.safetensors"].sha256
    flip(registry.storage.root / "blobs" / digest[:2] / digest, 5_000_000)
    with pytest.raises(NotFoundError):
        Registry(tmp_path / "nothing").fetch(registry, "text")
    assert not registry.verify(remove_damaged=True).ok
    registry.fetch(backup, "math@1")
    assert registry.verify().ok


def test_push_refuses_damage_and_leaves_nothing_visible(registry, make_publication, tmp_path):
    manifest = registry.publish(make_publication())
    digest = manifest.located()["prm/model.safetensors"].sha256
    flip(registry.storage.root / "blobs" / digest[:2] / digest)
    backup = Registry(tmp_path / "backup")
    with pytest.raises(DamagedError, match=digest):
        registry.push(backup, "math")
    assert backup.pairs() == []


def test_stores_that_have_grown_apart(registry, make_publication, tmp_path):
    other = Registry(tmp_path / "other")
    registry.publish(make_publication(weights=0))
    other.publish(make_publication(weights=1))
    with pytest.raises(ConflictError, match=r"math@1: .*other has another version of this number"):
        registry.push(other, "math")
    assert other.manifest("math").policy != registry.manifest("math").policy


def test_numbers_go_on_after_the_highest(registry, make_publication, tmp_path):
    for weights in range(3):
        registry.publish(make_publication(weights=weights))
    other = Registry(tmp_path / "other")
    registry.push(other, "math@3")
    assert other.publish(make_publication(weights=4)).version == 4
    assert other.versions("math") == [3, 4]


def test_a_hostile_alias_file_writes_nowhere_else(registry, make_publication, tmp_path):
    """Its content names another place; moving the alias would log the old move there."""
    registry.publish(make_publication(), alias="candidate")
    path = registry.storage.root / "pairs/math/aliases/candidate.json"
    value = unseal(path.read_bytes(), "")
    for change, kind in (({"alias": "../../../../evil"}, DataError), ({"alias": "other"}, DamagedError)):
        path.write_bytes(seal({**value, **change}))
        with pytest.raises(kind, match=r"aliases/candidate\.json"):
            registry.set_alias("math@1", "candidate")
    assert not list(tmp_path.rglob("evil*"))
    (path.parent / ".DS_Store").write_bytes(b"x")
    path.write_bytes(seal(value))
    assert registry.aliases("math") == {"candidate": 1}


def test_a_registry_can_be_copied_as_a_folder(registry, make_publication, tmp_path):
    registry.publish(make_publication(), alias="candidate")
    shutil.copytree(registry.storage.root, tmp_path / "copy")
    copy = Registry(tmp_path / "copy")
    assert copy.verify().ok
    assert copy.aliases("math") == {"candidate": 1}


def test_compare_and_swap_of_an_alias(registry, make_publication):
    for weights in range(2):
        registry.publish(make_publication(weights=weights))
    registry.set_alias("math@1", "candidate", expect=None)
    with pytest.raises(ConflictError, match="has version 1, not None"):
        registry.set_alias("math@2", "candidate", expect=None)
    registry.set_alias("math@2", "candidate", expect=1)
    registry.remove_alias("math", "candidate", reason="done")
    assert registry.aliases("math") == {}
    with pytest.raises(NotFoundError, match="math@candidate: no such alias"):
        registry.manifest("math@candidate")
    assert [move.after for move in registry.history("math")] == [1, 2, None]
    with pytest.raises(ConfigError, match="always the highest"):
        registry.set_alias("math@1", "latest")
    with pytest.raises(ConflictError, match="through the gate"):
        registry.set_alias("math@1", "best")
