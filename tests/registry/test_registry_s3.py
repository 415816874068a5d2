"""The registry on S3: a real server of the protocol on loopback (moto)."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace

import pytest

from prmkit.errors import ConfigError, DataError
from registry import Registry
from registry.errors import BusyError, ConflictError, DamagedError, NotFoundError
from registry.names import blob_key
from registry.storage import Silent
from registry.storage.s3 import S3Storage
from registry.storage.transfer import hash_file

boto3 = pytest.importorskip("boto3")

PUBLISH = """
import sys
from pathlib import Path
from registry import Publication, Registry
url, policy, prm, count = sys.argv[1:5]
registry = Registry(url)
for _ in range(int(count)):
    manifest = registry.publish(Publication("math", Path(policy), Path(prm)))
    registry.set_alias(manifest.ref, "newest")
    print(manifest.version, flush=True)
"""


@pytest.fixture(scope="module")
def server():
    """Its address in the environment, so that child processes find it too."""
    moto_server = pytest.importorskip("moto.server")
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield
    running.stop()


@pytest.fixture
def url(server):
    bucket = f"pairs-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def remote(url):
    return Registry(url)


def objects(url):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {item["Key"].removeprefix(f"{prefix}/"): item["Size"] for item in found}


def overwrite(url, key, data):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)


def test_publish_promote_pull(remote, url, make_publication, make_metrics, tmp_path):
    publication = make_publication(metrics=make_metrics(0.5))
    remote.publish(publication, alias="best")
    pulled = remote.pull("math@best", tmp_path / "here")
    assert (pulled.policy / "model.safetensors").read_bytes() == (publication.policy / "model.safetensors").read_bytes()
    assert (remote.pairs(), remote.aliases("math"), remote.versions("math")) == (["math"], {"best": 1}, [1])
    assert not [key for key in objects(url) if key.startswith(("leases/", "collections/"))]
    assert remote.verify().ok


def test_equal_files_are_sent_once(remote, url, make_publication):
    remote.publish(make_publication())
    before = {key: size for key, size in objects(url).items() if key.startswith("blobs/")}
    remote.publish(make_publication())
    assert {key: size for key, size in objects(url).items() if key.startswith("blobs/")} == before


def test_conditional_writes(url):
    storage = S3Storage(url)
    assert storage.read("a") is None
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    first = storage.read("a")
    assert first.data == b"1"
    assert storage.replace("a", b"3", first.token)
    assert not storage.replace("a", b"4", first.token)
    assert not storage.replace("absent", b"4", first.token)
    assert storage.read("a").data == b"3"


def test_publishers_at_once(remote, url, make_publication):
    publication = make_publication()
    command = [sys.executable, "-c", PUBLISH, url, str(publication.policy), str(publication.prm), "2"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    versions = [int(line) for worker in workers for line in worker.communicate()[0].split()]
    assert sorted(versions) == list(range(1, 5)) == remote.versions("math")
    moves = sorted(remote.history("math"), key=lambda move: move.serial)
    assert [move.serial for move in moves] == list(range(1, 5))
    assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
    assert remote.verify().ok


def test_a_server_that_ignores_the_conditions_is_found_out(url, make_publication):
    remote = Registry(url)

    def forget(request, **_):
        for header in ("If-None-Match", "If-Match"):
            if header in request.headers:
                del request.headers[header]

    remote.storage._s3.meta.events.register("before-sign.s3.PutObject", forget)
    with pytest.raises(ConfigError, match="honours conditional writes"):
        remote.publish(make_publication())
    assert list(objects(url)) == ["registry.json"]


def test_large_files_go_in_parts_and_are_resumed(url, tmp_path):
    part = 5 * 2**20
    storage = S3Storage(url, part=part)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(2 * part + 1000))
    digest = hash_file(source)
    key = blob_key(digest)
    # As a killed publisher leaves it: one part is there, another one with other content.
    client = boto3.client("s3")
    at = storage._at(key)
    upload = client.create_multipart_upload(**at, ChecksumAlgorithm="SHA256")["UploadId"]
    first = source.read_bytes()[:part]
    for number, data in ((1, first), (2, b"x" * part)):
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        client.upload_part(**at, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=checksum)
    sent = []
    storage._s3.meta.events.register(
        "before-call.s3.UploadPart", lambda params, **_: sent.append(params["query_string"]["partNumber"])
    )
    assert [entry.key for entry in storage.leftovers()] == [f"{key}?{upload}"]
    blob = storage.put_blob(source, None, Silent())
    assert (blob.sha256, blob.written) == (digest, True)
    with storage.open(key) as file:
        assert file.read() == source.read_bytes()
    with storage.open(key, part + 5) as file:
        assert file.read() == source.read_bytes()[part + 5 :]
    assert not storage.leftovers()
    assert sorted(sent) == [2, 3]
    assert not storage.put_blob(source, digest, Silent()).written


def test_push_and_fetch(remote, registry, make_publication, make_metrics, tmp_path):
    registry.publish(make_publication(weights=0, metrics=make_metrics(0.5)))
    registry.publish(make_publication(weights=1, parent="math@1"))
    assert [str(ref) for ref in registry.push(remote, "math", ancestors=True)] == ["math@1", "math@2"]
    assert registry.push(remote, "math") == []
    assert remote.manifest("math@2") == registry.manifest("math@2")
    other = Registry(tmp_path / "other")
    assert [str(ref) for ref in other.fetch(remote, "math@2")] == ["math@2"]
    assert other.verify().ok
    assert other.versions("math") == [2]
    assert not [path for path in (tmp_path / "other" / "tmp").iterdir() if path.suffix != ".lock"]
    twin = Registry(f"{remote.storage.url}-twin")
    twin.fetch(remote, "math@1")
    assert twin.verify().ok


def test_a_flipped_bit_is_found(remote, url, make_publication, tmp_path):
    manifest = remote.publish(make_publication())
    file = manifest.located()["policy/model.safetensors"]
    data = bytearray(b"".join(remote.storage.open(blob_key(file.sha256))))
    data[100] ^= 4
    overwrite(url, blob_key(file.sha256), bytes(data))
    with pytest.raises(DamagedError, match=file.sha256):
        remote.pull("math", tmp_path / "here")
    (problem,) = remote.verify(remove_damaged=True).problems
    assert problem.affects == ("math@1: policy/model.safetensors",)
    remote.publish(make_publication())
    assert remote.verify().ok


def test_garbage(remote, url, make_publication, tmp_path):
    remote.publish(make_publication())
    kept = set(objects(url))
    (tmp_path / "orphan").write_bytes(b"orphan")
    remote.storage.put_blob(tmp_path / "orphan", None, Silent())
    with remote.storage.publishing(), pytest.raises(BusyError, match="1 publishers are at work or were killed"):
        remote.collect_garbage(patience=0)
    assert len(remote.collect_garbage(dry_run=True).blobs) == 1
    assert remote.collect_garbage().size == 6
    assert set(objects(url)) == kept


def test_a_dead_publisher_does_not_stay_in_the_way(remote, make_publication):
    remote.publish(make_publication())
    remote.storage.create("leases/dead.json", json.dumps({}).encode())
    with pytest.raises(BusyError):
        remote.collect_garbage(patience=0)
    remote.collect_garbage(patience=0, grace=0)
    assert remote.storage.names("leases/") == []


def test_nobody_publishes_while_garbage_is_collected(remote, make_publication):
    remote.publish(make_publication())
    with remote.storage.collecting(0, 3600), pytest.raises(BusyError, match="garbage is being collected"):
        remote.publish(make_publication())
    remote.publish(make_publication())
    assert remote.versions("math") == [1, 2]


def test_a_publisher_taken_for_dead_learns_of_it(remote, make_publication):
    remote.publish(make_publication())
    publishing = remote.storage.publishing()
    publishing.__enter__()
    (name,) = remote.storage.names("leases/")
    remote.storage.delete(f"leases/{name}")
    with pytest.raises(ConflictError, match="taken for dead"):
        publishing.__exit__(None, None, None)


def test_errors_name_the_place(server, url, make_publication, tmp_path):
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x.*NoSuchBucket"):
        Registry("s3://no-such-bucket/x").pairs()
    with pytest.raises(ConfigError, match="s3://bucket"):
        Registry("s3://")
    with pytest.raises(NotFoundError, match="no registry of pairs"):
        Registry(url).pairs()
    publication = replace(make_publication(), parent="math@4")
    with pytest.raises(NotFoundError):
        Registry(url).publish(publication)
