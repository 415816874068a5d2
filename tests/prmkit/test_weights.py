"""Broken weights and models of the wrong kind are known from the folder alone, and loading says it in one line."""

import json
import struct
from io import BytesIO

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.models import ModelSource, PRMModel, build_policy, build_prm, load_policy, load_tokenizer, save_policy
from prmkit.weights import check_finite, check_kind, check_weights, model_kind, not_finite, read_header

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SOURCE)


@pytest.fixture
def policy(tokenizer, tmp_path):
    save_policy(build_policy(SOURCE, tokenizer), tokenizer, get_step_format("plain"), tmp_path / "policy")
    return tmp_path / "policy"


def prm(head, tokenizer, folder):
    step_format = get_step_format({"base": "plain-head" if head != "label_tokens" else "plain", "prm": {"head": head}})
    build_prm(SOURCE, BoundStepFormat(step_format, tokenizer)).save_pretrained(folder)
    return folder


def split(folder):
    """The folder with its weights in two parts and an index."""
    tensors = load_all(folder)
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part, metadata={"format": "pt"})
    places = {name: part for part, held in parts.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / WEIGHTS).unlink()
    return places


def load_all(folder):
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def cut(folder, size):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])


def truncate(folder):
    cut(folder, -7)


def truncate_header(folder):
    cut(folder, 40)


def empty(folder):
    cut(folder, 0)


def pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 99\n")


def grow(folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")


def overlap(folder):
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = next(key for key, value in header.items() if key != "__metadata__" and value["data_offsets"][0] > 0)
    header[name]["data_offsets"][0] -= 4
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def lose_part(folder):
    places = split(folder)
    (folder / sorted(set(places.values()))[1]).unlink()


def lose_index(folder):
    split(folder)
    (folder / INDEX).unlink()


def break_index(folder):
    split(folder)
    (folder / INDEX).write_text('{"weight_map": 3}')


def lose_tensor(folder):
    places = split(folder)
    part = next(iter(places.values()))
    held = [name for name, place in places.items() if place == part]
    save_file({name: torch.zeros(2) for name in held[1:]}, folder / part, metadata={"format": "pt"})


def spoil(folder, value=float("nan")):
    tensors = load_all(folder)
    next(iter(tensors.values())).view(-1)[3] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


BROKEN = [truncate, truncate_header, empty, pointer, grow, overlap, lose_part, lose_index, break_index, lose_tensor]


@pytest.mark.parametrize("damage", [*BROKEN, spoil])
def test_loading_what_is_broken_is_one_line_with_file_and_cure(policy, damage):
    damage(policy)
    for load in (load_policy, PRMModel.from_pretrained):
        with pytest.raises(DataError, match=rf"{policy}.*(again|Export an earlier checkpoint)") as caught:
            load(policy)
        assert len(str(caught.value).splitlines()) == 1
    if damage is not spoil:
        with pytest.raises(DataError, match=rf"{policy}.*again"):
            check_weights(policy)


def test_parts_are_one_model(policy):
    whole = {name: tuple(tensor.shape) for name, tensor in load_all(policy).items()}
    before = load_policy(policy).model.state_dict()
    split(policy)
    assert check_weights(policy) == whole
    check_finite(policy)
    after = load_policy(policy).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4, 0.0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e5m2", "float8_e4m3fn", "int8"])
def test_finite_as_torch_says(tmp_path, dtype, value):
    tensor = torch.randn(3_000_000 if dtype == "float16" else 300, generator=torch.Generator().manual_seed(0))
    if np.isfinite(value) or dtype != "int8":
        tensor[-1] = value if dtype != "int8" else 7
    tensor = tensor.to(getattr(torch, dtype))
    save_file({"a": torch.zeros(5), "b": tensor, "c": torch.zeros(1)}, tmp_path / WEIGHTS)
    data = (tmp_path / WEIGHTS).read_bytes()

    class Dribbling(BytesIO):  # as raw files and sockets may be read
        def read(self, size=-1):
            return super().read(min(size, 1_000_003) if size > 0 else size)

    file = Dribbling(data)
    wanted = None if tensor.float().isfinite().all() else "b"
    assert not_finite(file, read_header(file, len(data), "x")) == wanted


KINDS = {"label_tokens": "prm", "token_head": "prm", "scalar": "prm"}


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("card", [True, False])
def test_what_a_model_is(tokenizer, policy, tmp_path, head, card):
    folder = prm(head, tokenizer, tmp_path / "prm")
    if not card:
        for place in (policy, folder):
            (place / "prmkit.json").unlink()
    assert model_kind(policy) == ("policy" if card else None)
    sure = card or head != "label_tokens"  # a language model may be either
    assert model_kind(folder) == ("prm" if sure else None)
    check_kind("--prm", "x", folder, "prm")
    check_kind("--policy", "x", policy, "policy")
    if sure:
        with pytest.raises(ConfigError, match=r"--policy: got 'x'; accepted: .*of a policy\. .* says that it is a PRM"):
            check_kind("--policy", "x", folder, "policy")
        with pytest.raises(ConfigError, match="that it is a PRM"):
            load_policy(folder)
    if card:
        with pytest.raises(ConfigError, match=r"--prm: got 'x'; accepted: .*of a PRM\. .* says that it is a policy"):
            check_kind("--prm", "x", policy, "prm")
