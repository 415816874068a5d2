"""Weights that are whole and finite, and models of the right kind: asked at publication, at pull and by verify."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from prmkit.errors import DataError
from registry import Publication, check_folders
from registry.errors import IncompatibleError
from registry.manifest import FileEntry
from registry.storage import Silent
from registry.versions import create_version

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-4])


def spoil(folder):
    head = np.zeros((2, 4), dtype=np.float32)
    save_file({"a": np.array([0.0, np.nan], dtype=np.float32), "score.weight": head}, folder / WEIGHTS)


def overflow(folder):
    """An infinity in bfloat16, which numpy does not know."""
    shapes = {"a": ([2], [0, 4]), "score.weight": ([2, 1], [4, 8])}
    text = json.dumps({n: {"dtype": "BF16", "shape": s, "data_offsets": o} for n, (s, o) in shapes.items()}).encode()
    data = struct.pack("<HHHH", 0x3F80, 0xFF80, 0, 0)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def lose_part(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00002.safetensors"}}))


def lose_tensor(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": WEIGHTS}}))


def lose_index(folder):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")


FAULTS = {
    truncate: "it is not whole",
    spoil: "a holds NaN or infinite numbers",
    overflow: "a holds NaN or infinite numbers",
    lose_part: "model-00002-of-00002.safetensors is missing",
    lose_tensor: "does not hold a",
    lose_index: f"{INDEX} is missing",
}


@pytest.mark.parametrize("member", ["policy", "prm"])
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_weights_are_not_published(registry, make_publication, fault, member):
    publication = make_publication()
    fault(getattr(publication, member))
    with pytest.raises(DataError, match=FAULTS[fault]):
        registry.publish(publication)
    assert registry.storage.entries("") == []


def publish_as_it_is(registry, publication, folder, member):
    """A second version as older programs published it: of one member's folder, whatever is in it."""
    first = registry.publish(publication)

    def stored(path):
        blob = registry.storage.put_blob(path, None, Silent())
        return FileEntry(path.name, blob.sha256, blob.size)

    files = tuple(stored(path) for path in sorted(folder.iterdir()))
    entry = replace(getattr(first, member), files=files)
    made, _ = create_version(registry.storage, "math", lambda n: replace(first, version=n, **{member: entry}), None)
    return made


@pytest.mark.parametrize("member", ["policy", "prm"])
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_weights_of_old_are_reported_and_not_pulled(
    registry, make_publication, make_model, tmp_path, fault, member
):
    broken = make_model(tmp_path / "broken", member, "plain" if member == "policy" else "plain-head", weights=9)
    fault(broken)
    publish_as_it_is(registry, make_publication(), broken, member)
    report = registry.verify()
    (problem,) = report.problems
    assert FAULTS[fault] in problem.text
    assert "math@2" in problem.affects[0]
    assert registry.verify("math@1").ok
    before = registry.storage.entries("blobs/")
    assert not registry.verify(remove_damaged=True).ok
    assert registry.storage.entries("blobs/") == before, "what is stored as published is never removed"
    if fault in (spoil, overflow):  # pulling reads headers only
        return
    with pytest.raises(DataError, match=rf"math@2: {member}.*{FAULTS[fault]}"):
        registry.pull("math@2", tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_models_of_the_wrong_kind_are_not_published(registry, make_model, tmp_path):
    policy, prm = make_model(tmp_path / "policy"), make_model(tmp_path / "prm", "prm", "plain")
    assert check_folders(policy, prm).ok
    for given, text in (((policy, policy), "the PRM's folder says that it is a policy"),
                        ((prm, prm), "the policy's folder says that it is a PRM")):  # fmt: skip
        verdict = check_folders(*given)
        assert verdict.problems == (text,)
        with pytest.raises(IncompatibleError, match=text):
            registry.publish(Publication("math", *given))
    registry.publish(Publication("math", policy, policy, allow_incompatible=True))
    (problem,) = registry.verify().problems
    assert problem.text == "the PRM's folder says that it is a policy"
