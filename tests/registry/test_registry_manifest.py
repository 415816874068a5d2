"""Manifests: read back, sealed, versioned, and closed against what does not belong there."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prmkit.errors import DataError
from registry import Card, Manifest
from registry.errors import DamagedError, NewerSchemaError
from registry.sealed import seal, unseal


@pytest.fixture
def manifest(registry, make_publication, make_metrics):
    return registry.publish(
        make_publication(metrics=make_metrics(0.5), card=Card("A pair.", license="apache-2.0", tags=("toy",)))
    )


def edited(manifest, **changes):
    """A sealed manifest file with other fields."""
    value = unseal(manifest.to_bytes(), "x")
    for path, item in changes.items():
        *parents, last = path.split("__")
        place = value
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[last] = item
    return seal(value)


def test_round_trip(manifest):
    assert Manifest.from_bytes(manifest.to_bytes(), "x") == manifest


def test_people_can_read_it(manifest):
    text = manifest.to_bytes().decode()
    value = json.loads(text)
    assert text.isascii()
    assert max(map(len, text.splitlines())) < 400
    assert (value["schema"], value["requires"]) == (1, "prmkit>=0.1.0")
    assert value["card"]["license"] == "apache-2.0"
    assert value["policy"]["files"][0].keys() == {"path", "sha256", "size"}


@given(data=st.data())
def test_any_flipped_bit_is_found(data):
    sealed = seal({"schema": 1, "text": "é", "numbers": [1, 2.5]})
    position = data.draw(st.integers(0, len(sealed) * 8 - 1))
    damaged = bytearray(sealed)
    damaged[position // 8] ^= 1 << position % 8
    with pytest.raises(DamagedError, match=r"^where: damaged"):
        unseal(bytes(damaged), "where")


@pytest.mark.parametrize("cut", [0, 5, 80, -1])
def test_half_a_file_is_found(cut):
    with pytest.raises(DamagedError):
        unseal(seal({"a": 1})[:cut], "x")


def test_the_seal_is_the_sha256_of_the_file_with_zeros_in_its_place():
    import hashlib

    sealed = seal({"a": 1})
    text = b'{\n  "seal": "' + b"0" * 64 + b'",\n  "a": 1\n}\n'
    assert json.loads(sealed)["seal"] == hashlib.sha256(text).hexdigest()


def test_a_newer_schema_is_refused_with_the_version_it_needs(manifest):
    data = edited(manifest, schema=2, requires="prmkit>=0.9", surprise={"anything": 1})
    with pytest.raises(
        NewerSchemaError, match=r"math@1: schema 2 needs prmkit>=0\.9; this is prmkit 0\.[12]\.0.*Upgrade"
    ):
        Manifest.from_bytes(data, "math@1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, r"x\.surprise: no such field"),
        ({"version": "1"}, r"x\.version: got '1'; accepted: a value of type int"),
        ({"version": True}, r"x\.version"),
        ({"policy__files__0__size": -1}, r"x\.policy\.files\[0\]: .*size"),
        ({"policy__files__0__sha256": "../../etc"}, r"x\.policy\.files\[0\]: sha256"),
        ({"policy__files__0__path": "../../etc/passwd"}, r"relative path"),
        ({"prm__files__0__path": "/etc/passwd"}, r"relative path"),
        ({"pair": "../math"}, r"pair: got '\.\./math'"),
        ({"parent": "math@best"}, r"parent: got 'math@best'"),
        ({"gate__config__confidence": 2.0}, r"gate\.confidence"),
        ({"schema": 0}, r"schema: got 0"),
        ({"card": None}, r"x\.card: got 'None'; accepted: an object"),
    ],
)
def test_hostile_manifests(manifest, changes, message):
    with pytest.raises(DataError, match=message):
        Manifest.from_bytes(edited(manifest, **changes), "x")


def test_a_missing_field_is_named(manifest):
    value = unseal(manifest.to_bytes(), "x")
    del value["policy"]["facts"]["parameters"]
    with pytest.raises(DataError, match=r"x\.policy\.facts\.parameters: missing"):
        Manifest.from_bytes(seal(value), "x")


def test_a_manifest_under_another_number_is_refused(registry, manifest):
    path = registry.storage.root / "pairs/math/versions"
    (path / "2.json").write_bytes((path / "1.json").read_bytes())
    with pytest.raises(DamagedError, match="is the manifest of math@1"):
        registry.manifest("math@2")


def test_nothing_that_is_not_a_number_is_written(manifest):
    with pytest.raises(ValueError, match="Out of range"):
        replace(manifest, recipe=replace(manifest.recipe, packages={"x": float("nan")})).to_bytes()
