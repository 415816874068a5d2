"""The registry on other file systems, through fsspec: one writer at a time, who says so."""

import uuid

import pytest

from prmkit.errors import ConfigError, MissingDependencyError
from registry import Registry
from registry.errors import DamagedError, NotFoundError
from registry.names import blob_key
from registry.storage import Silent


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/pairs"


@pytest.fixture
def remote(url):
    return Registry(url, single_writer=True)


def test_changes_need_the_word_of_a_single_writer(url, remote, make_publication):
    publication = make_publication()
    with pytest.raises(ConfigError, match=r"no conditional writes\. Say --single-writer"):
        Registry(url).publish(publication)
    remote.publish(publication)
    assert Registry(url).pairs() == ["math"]  # looking is free
    with pytest.raises(ConfigError, match="single-writer"):
        Registry(url).set_alias("math", "candidate")
    with pytest.raises(ConfigError, match="single-writer"):
        Registry(url).collect_garbage()


def test_publish_promote_pull(remote, make_publication, make_metrics, tmp_path):
    publication = make_publication(metrics=make_metrics(0.5))
    remote.publish(publication, alias="best")
    remote.publish(publication, alias="candidate")
    pulled = remote.pull("math@best", tmp_path / "here")
    assert (pulled.prm / "model.safetensors").read_bytes() == (publication.prm / "model.safetensors").read_bytes()
    assert remote.aliases("math") == {"best": 1, "candidate": 2}
    assert [move.alias for move in remote.history("math")] == ["best", "candidate"]
    assert remote.verify().ok


def test_create_and_replace(remote):
    storage = remote.storage
    assert storage.create("a/b", b"1")
    assert not storage.create("a/b", b"2")
    token = storage.read("a/b").token
    assert storage.replace("a/b", b"3", token)
    assert not storage.replace("a/b", b"4", token)
    assert storage.read("a/b").data == b"3"
    assert storage.names("a/") == ["b"]
    assert storage.names("nowhere/") == []


def test_garbage_and_damage(remote, make_publication, tmp_path):
    manifest = remote.publish(make_publication())
    (tmp_path / "orphan").write_bytes(b"orphan")
    remote.storage.put_blob(tmp_path / "orphan", None, Silent())
    assert remote.collect_garbage().size == 6
    key = blob_key(manifest.located()["prm/config.json"].sha256)
    remote.storage._fs.pipe_file(remote.storage._path(key), b"x" * remote.storage.size(key))
    with pytest.raises(DamagedError, match=key):
        remote.pull("math", tmp_path / "here")
    assert not remote.verify(remove_damaged=True).ok
    with pytest.raises(NotFoundError, match=key):
        remote.pull("math", tmp_path / "here")


def test_between_stores(remote, registry, make_publication, tmp_path):
    registry.publish(make_publication())
    assert [str(ref) for ref in registry.push(remote, "math")] == ["math@1"]
    other = Registry(tmp_path / "other")
    other.fetch(remote, "math")
    assert other.verify().ok


def test_a_scheme_nobody_knows():
    with pytest.raises(ConfigError, match="URL that fsspec knows"):
        Registry("nosuch://x")
    with pytest.raises(MissingDependencyError, match="adlfs"):
        Registry("abfs://container/x")
