"""Publishing and pulling on a local disk."""

import json
import os
import shutil

import pytest

from prmkit.errors import ConfigError, DataError, PrmkitError
from registry import Publication, Registry
from registry.errors import BusyError, ConflictError, DamagedError, IncompatibleError, NotFoundError
from registry.pull import PULLED_FILE
from registry.storage.transfer import hash_file, locked_folder, part_of


def blobs(registry):
    return sorted(path for path in (registry.storage.root / "blobs").rglob("*") if path.is_file())


def blob_of(registry, manifest, path):
    digest = manifest.located()[path].sha256
    return registry.storage.root / "blobs" / digest[:2] / digest


def flip_bit(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_what_is_pulled_is_what_was_published(registry, make_publication, tmp_path):
    publication = make_publication()
    manifest = registry.publish(publication)
    pulled = registry.pull("math", tmp_path / "here")
    assert (manifest.ref, pulled.copied) == ("math@1", 10)
    for mine, theirs in ((publication.policy, pulled.policy), (publication.prm, pulled.prm)):
        names = sorted(path.name for path in mine.iterdir())
        assert names == sorted(path.name for path in theirs.iterdir())
        assert all((mine / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    assert json.loads((pulled.folder / PULLED_FILE).read_text())["version"] == 1


def test_equal_files_are_stored_once(registry, make_publication):
    registry.publish(make_publication(weights=0))
    first = blobs(registry)
    assert len(first) == 9  # both models share a tokenizer
    registry.publish(make_publication(weights=0))
    assert blobs(registry) == first
    registry.publish(make_publication(weights=1))
    assert len(blobs(registry)) == 9 + 4  # weights and prmkit.json of both


def test_blobs_are_named_by_their_content_and_read_only(registry, make_publication):
    registry.publish(make_publication())
    for path in blobs(registry):
        assert hash_file(path) == path.name
        assert path.stat().st_mode & 0o222 == 0


def test_editing_a_pulled_file_leaves_the_store_alone(registry, make_publication, tmp_path):
    registry.publish(make_publication())
    pulled = registry.pull("math", tmp_path / "here")
    for path in pulled.folder.rglob("*"):
        if path.is_file() and path.name != PULLED_FILE:
            assert path.stat().st_nlink == 1
            with path.open("r+b") as file:
                file.write(b"edited")
    assert registry.verify().ok
    with pytest.raises(ConflictError, match=r"here/.*differs from the pair's file.*--force"):
        registry.pull("math", pulled.folder)
    assert registry.pull("math", pulled.folder, force=True).copied == 10


def test_an_edited_pair_json_is_no_proof_of_ownership(registry, make_publication, tmp_path):
    registry.publish(make_publication())
    pulled = registry.pull("math", tmp_path / "here")
    with (pulled.folder / PULLED_FILE).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ConflictError, match=r"pair\.json: not as a pull left it"):
        registry.pull("math", pulled.folder)
    assert registry.pull("math", pulled.folder, force=True).copied == 0


def test_only_what_is_missing_is_copied(registry, make_publication, tmp_path):
    registry.publish(make_publication(weights=0))
    registry.publish(make_publication(weights=1))
    pulled = registry.pull("math@1", tmp_path / "here")
    assert registry.pull("math@1", pulled.folder).copied == 0
    (pulled.policy / "config.json").unlink()
    assert registry.pull("math@1", pulled.folder).copied == 1
    assert registry.pull("math@2", pulled.folder).copied == 4  # pristine files give way without force
    assert json.loads((pulled.folder / PULLED_FILE).read_text())["version"] == 2


def test_files_of_the_version_before_go(registry, make_publication, tmp_path):
    publication = make_publication()
    (publication.policy / "chat_template.jinja").write_text("{{ messages }}")
    registry.publish(publication)
    (publication.policy / "chat_template.jinja").unlink()
    registry.publish(publication)
    pulled = registry.pull("math@1", tmp_path / "here")
    mine = pulled.policy / "notes.txt"
    mine.write_text("mine")
    registry.pull("math@2", pulled.folder)
    assert not (pulled.policy / "chat_template.jinja").exists()
    assert mine.read_text() == "mine"
    registry.pull("math@1", pulled.folder)
    (pulled.policy / "chat_template.jinja").write_text("mine")
    with pytest.raises(ConflictError, match="changed after it was pulled"):
        registry.pull("math@2", pulled.folder)


@pytest.mark.parametrize("path", ["policy/model.safetensors", "prm/config.json", "prm/tokenizer.json"])
def test_pull_refuses_a_flipped_bit_and_names_the_file(registry, make_publication, tmp_path, path):
    manifest = registry.publish(make_publication())
    damaged = blob_of(registry, manifest, path)
    flip_bit(damaged)
    with pytest.raises(DamagedError, match=damaged.name):
        registry.pull("math", tmp_path / "here")
    assert not (tmp_path / "here" / path).exists()
    assert not (tmp_path / "here" / PULLED_FILE).exists()
    assert not list((tmp_path / "here").rglob("*.part"))


def test_a_killed_pull_goes_on(registry, make_publication, make_model, tmp_path):
    publication = make_publication()
    make_model(publication.policy, weights=5, size=300_000)
    manifest = registry.publish(publication)
    file = manifest.located()["policy/model.safetensors"]
    target = tmp_path / "here" / "policy" / "model.safetensors"
    target.parent.mkdir(parents=True)
    content = (publication.policy / "model.safetensors").read_bytes()
    for left in (content[:500_000], content + b"more", b"x" * 1000, b""):
        part_of(target, file.sha256).write_bytes(left)
        registry.pull("math", tmp_path / "here")
        assert target.read_bytes() == content
        assert not part_of(target, file.sha256).exists()
        target.unlink()


def test_a_half_pulled_folder_does_not_pass_for_a_pair(registry, make_publication, tmp_path):
    first = registry.publish(make_publication(weights=0))
    second = registry.publish(make_publication(weights=1))
    registry.pull(first.ref, tmp_path / "here")
    hidden = blob_of(registry, second, "prm/prmkit.json")
    hidden.rename(tmp_path / "hidden")
    with pytest.raises(NotFoundError, match=hidden.name):
        registry.pull(second.ref, tmp_path / "here")
    assert not (tmp_path / "here" / PULLED_FILE).exists()
    (tmp_path / "hidden").rename(hidden)
    registry.pull(second.ref, tmp_path / "here")
    assert hash_file(tmp_path / "here/prm/prmkit.json") == hidden.name


def test_nothing_is_written_through_links(registry, make_publication, tmp_path):
    registry.publish(make_publication())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "policy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PrmkitError, match="symbolic link"):
        registry.pull("math", tmp_path / "here")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_one_pull_a_folder(registry, make_publication, tmp_path):
    registry.publish(make_publication())
    (tmp_path / "here").mkdir()
    with locked_folder(tmp_path / "here"), pytest.raises(BusyError, match="another process"):
        registry.pull("math", tmp_path / "here")


def test_pull_from_a_store_that_may_only_be_read(registry, make_publication, tmp_path):
    registry.publish(make_publication())
    for path in [registry.storage.root, *registry.storage.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(registry.storage.root.rglob("*"))
    registry.pull("math", tmp_path / "here")
    assert sorted(registry.storage.root.rglob("*")) == before
    for path in [registry.storage.root, *registry.storage.root.rglob("*")]:
        path.chmod(0o755)


def test_checkout_keeps_a_copy(registry, make_publication, tmp_path):
    publication = make_publication()
    registry.publish(Publication("math", str(publication.policy), str(publication.prm)))
    first = registry.checkout("math@latest", tmp_path / "cache")
    again = registry.checkout("math@1", tmp_path / "cache")
    assert (first.copied, again.copied, first.folder) == (10, 0, again.folder)
    (first.policy / "config.json").unlink()
    assert registry.checkout("math@1", tmp_path / "cache").copied == 1


def test_what_is_not_published(registry, make_publication, make_model, tmp_path):
    publication = make_publication()
    (publication.policy / ".gitattributes").write_text("hidden files stay behind")
    manifest = registry.publish(publication)
    assert "policy/.gitattributes" not in manifest.located()
    for name, message in (("pytorch_model.bin", "safetensors, not pickles"), ("my notes.txt", "relative path")):
        (publication.policy / name).write_text("x")
        with pytest.raises(DataError, match=message):
            registry.publish(publication)
        (publication.policy / name).unlink()
    (publication.policy / "linked").symlink_to(tmp_path)
    with pytest.raises(DataError, match="a link to a folder"):
        registry.publish(publication)
    with pytest.raises(DataError, match="not a model folder"):
        registry.publish(Publication("math", tmp_path, tmp_path))
    assert registry.versions("math") == [1]


def test_links_to_files_are_read(registry, make_publication, tmp_path):
    publication = make_publication()
    weights = publication.policy / "model.safetensors"
    shutil.move(weights, tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    registry.publish(publication)
    assert not (registry.pull("math", tmp_path / "here").policy / "model.safetensors").is_symlink()


def test_an_incompatible_pair_is_refused_on_publish_and_on_pull(registry, make_publication, make_model, tmp_path):
    publication = make_publication()
    make_model(publication.prm, "prm", "qwen2.5-math-prm")
    with pytest.raises(IncompatibleError, match=r"steps end with '\\n', those the PRM was trained on with '\\n\\n'"):
        registry.publish(publication)
    assert registry.versions("math") == []
    from dataclasses import replace

    manifest = registry.publish(replace(publication, allow_incompatible=True))
    assert not manifest.compatibility.ok
    with pytest.raises(IncompatibleError):
        registry.pull("math", tmp_path / "here")
    registry.pull("math", tmp_path / "here", force=True)


def test_publishing_under_the_same_key_changes_nothing(registry, make_publication):
    first = registry.publish(make_publication(weights=0, key="run 1, iteration 1"))
    again = registry.publish(make_publication(weights=0, key="run 1, iteration 1"))
    other = registry.publish(make_publication(weights=0, key="run 1, iteration 2"))
    assert (again, other.version) == (first, 2)


def test_a_publisher_that_was_killed_can_just_publish_again(registry, make_publication, make_metrics):
    """Whether it had published, or also moved its aliases: the second time does what is left, and no more."""
    first = make_publication(weights=0, metrics=make_metrics(0.2), key="one")
    registry.publish(first)
    for _ in range(2):  # killed before it moved the alias; and again when all is done
        assert registry.publish(first, alias="best").version == 1
        assert registry.publish(first, alias="candidate").version == 1
    second = make_publication(weights=1, metrics=make_metrics(0.9), parent="math@1", key="two")
    registry.publish(second, alias="best")
    registry.set_alias("math@2", "candidate")
    registry.publish(first, alias="best")
    registry.publish(first, alias="candidate")
    assert registry.aliases("math") == {"best": 2, "candidate": 2}
    assert len(registry.history("math")) == 4


def test_large_files_are_found_again_and_told_apart(registry, make_publication, make_model):
    """Above 8 MiB a file is copied while it is hashed, unless a stored one of its size looks like it."""
    publication = make_publication()
    size = 9 * 2**20 // 4
    make_model(publication.policy, weights=1, size=size)
    one = registry.publish(publication)
    inode = blob_of(registry, one, "policy/model.safetensors").stat().st_ino
    assert registry.publish(publication).policy == one.policy
    assert blob_of(registry, one, "policy/model.safetensors").stat().st_ino == inode
    weights = publication.policy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[3 * 2**20] ^= 1  # between the samples
    weights.write_bytes(data)
    assert registry.publish(publication).policy != one.policy
    assert registry.verify().ok
    assert not list((registry.storage.root / "tmp").iterdir())


def test_publishing_a_damaged_small_file_again_restores_it(registry, make_publication):
    manifest = registry.publish(make_publication())
    flip_bit(blob_of(registry, manifest, "policy/config.json"))
    assert not registry.verify().ok
    registry.publish(make_publication())
    assert registry.verify().ok


def test_a_folder_with_other_files_does_not_become_a_registry(tmp_path, make_publication):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds other files"):
        Registry(tmp_path / "thesis").publish(make_publication())
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_a_registry_of_the_future_is_refused(registry, make_publication):
    registry.publish(make_publication())
    (registry.storage.root / "registry.json").write_text('{"format": "prmkit pairs", "schema": 2}\n')
    with pytest.raises(DataError, match="Upgrade prmkit"):
        Registry(registry.storage.root).pairs()


def test_what_is_not_there(registry, make_publication):
    with pytest.raises(NotFoundError, match="no registry of pairs here"):
        registry.pairs()
    registry.publish(make_publication())
    for ref, message in (("text", "there are: math"), ("math@2", r"there are \[1\]"), ("math@best", "no such alias")):
        with pytest.raises(NotFoundError, match=message):
            registry.manifest(ref)


def test_who_publishes_is_written_down(registry, make_publication, monkeypatch):
    monkeypatch.setenv("PRMKIT_USER", "ada@engine")
    assert registry.publish(make_publication()).by == "ada@engine"
    monkeypatch.delenv("PRMKIT_USER")
    assert "@" in registry.publish(make_publication()).by


def test_the_registry_of_the_environment(tmp_path, make_publication, monkeypatch):
    monkeypatch.setenv("PRMKIT_REGISTRY", os.fspath(tmp_path / "from_environment"))
    Registry().publish(make_publication())
    assert Registry(f"file://{tmp_path}/from_environment").pairs() == ["math"]
