"""May this PRM score that policy? Facts from folders, and the verdict on them."""

import json
import struct

import pytest

from prmkit.errors import DataError, PrmkitError
from prmkit.formats.presets import get_step_format
from registry import check_folders
from registry.errors import IncompatibleError
from registry.facts import read_facts, tokenizer_facts

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


@pytest.fixture
def pair(tmp_path, make_model):
    return make_model(tmp_path / "policy"), make_model(tmp_path / "prm", "prm", "plain-head")


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_facts(pair):
    policy, prm = (read_facts(folder) for folder in pair)
    assert (policy.architecture, policy.model_type, policy.context_length) == ("Qwen2ForCausalLM", "qwen2", 128)
    assert (policy.parameters, policy.outputs, prm.parameters, prm.outputs) == (64, None, 72, 2)
    assert (policy.tokenizer.size, policy.tokenizer.open) == (12, False)
    assert policy.step_format["name"] == "plain"


def test_a_pair_that_fits(pair):
    verdict = check_folders(*pair)
    assert (verdict.ok, verdict.problems, verdict.notes) == (True, (), ())
    verdict.require("math")


@pytest.mark.parametrize(
    ("side", "file", "change", "reason"),
    [
        (0, "config.json", {"architectures": ["BertModel"]}, "the policy is a BertModel"),
        (1, "config.json", {"architectures": ["BertModel"]}, "the PRM is a BertModel"),
        (0, "config.json", {"vocab_size": 5}, "the policy's tokenizer has 12 tokens, its embedding only 5 rows"),
        (1, "config.json", {"max_position_embeddings": 50}, "the PRM takes 50 tokens, 100 are needed"),
        (0, "config.json", {"max_position_embeddings": 50}, "the policy takes 50 tokens, 100 are needed"),
    ],
)
def test_problems(pair, side, file, change, reason):
    rewrite(pair[side] / file, lambda value: value.update(change))
    verdict = check_folders(*pair, tokens=100)
    assert any(reason in problem for problem in verdict.problems), verdict
    with pytest.raises(IncompatibleError, match="math: this PRM cannot score this policy"):
        verdict.require("math")


@pytest.mark.parametrize(
    ("side", "file", "reason"),
    [
        (0, "step_format.json", "the policy has no step_format.json"),
        (1, "step_format.json", "the PRM has no step_format.json"),
        (0, "tokenizer.json", "the policy has no tokenizer.json"),
        (1, "tokenizer.json", "the PRM has no tokenizer.json"),
    ],
)
def test_missing_files(pair, side, file, reason):
    (pair[side] / file).unlink()
    assert any(reason in problem for problem in check_folders(*pair).problems)


def test_separators(pair):
    get_step_format({"base": "plain-head", "policy": {"separator": "\n\n"}}).save(pair[1])
    assert "steps end with" in check_folders(*pair).problems[0]
    assert check_folders(*pair, prm_format=get_step_format("plain-head")).ok


def test_another_prompt_is_a_note(pair):
    get_step_format({"base": "plain-head", "policy": {"template": "Q: {question}\n"}}).save(pair[1])
    verdict = check_folders(*pair)
    assert verdict.ok
    assert "prompted differently" in verdict.notes[0]


@pytest.mark.parametrize(
    ("prm_format", "made_as", "fits"),
    [("plain-head", "plain-head", True), ("plain", "plain", True), ("plain-head", "plain", False),
     ("plain", "plain-head", False)],
)  # fmt: skip
def test_heads(tmp_path, make_model, prm_format, made_as, fits):
    policy, prm = make_model(tmp_path / "policy"), make_model(tmp_path / "prm", "prm", made_as)
    verdict = check_folders(policy, prm, prm_format=get_step_format(prm_format))
    assert verdict.ok == fits
    assert fits or any("head" in problem for problem in verdict.problems)


def test_tokenizers_by_what_they_do(tmp_path, make_model, make_tokenizer):
    folder = make_model(tmp_path / "model")
    path = folder / "tokenizer.json"
    original = tokenizer_facts(folder).sha256

    def digest(value, **layout):
        path.write_text(json.dumps(value, **layout))
        return tokenizer_facts(folder).sha256

    base = make_tokenizer()
    reordered = dict(reversed(base.items()))
    assert digest(reordered, indent=7) == original
    assert (
        digest({**base, "padding": {"length": 3}, "truncation": {"max_length": 7}, "post_processor": None}) == original
    )
    other = dict(base["model"]["vocab"])
    other["a"], other["b"] = other["b"], other["a"]
    assert digest(make_tokenizer(other)) != original
    assert digest({**base, "normalizer": {"type": "Lowercase"}}) != original
    merges = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}}
    pairs = digest({**base, "model": {**merges, "merges": [["a", "b"]]}})
    assert digest({**base, "model": {**merges, "merges": ["a b"]}}) == pairs
    assert digest({**base, "model": {**merges, "merges": ["b a"]}}) != pairs


def test_two_tokenizers(tmp_path, make_model, make_tokenizer):
    """A byte-level PRM reads any policy's text; one with a closed vocabulary only its own."""
    closed = make_tokenizer()
    opened = make_tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL]})
    for name, policy_tokenizer, prm_tokenizer, ok in (("a", closed, opened, True), ("b", opened, closed, False)):
        policy = make_model(tmp_path / f"policy_{name}", tokenizer=policy_tokenizer)
        prm = make_model(tmp_path / f"prm_{name}", "prm", "plain-head", tokenizer=prm_tokenizer)
        verdict = check_folders(policy, prm)
        assert verdict.ok == ok
        assert any("tokenizers differ" in text for text in (*verdict.problems, *verdict.notes))


def test_notes(pair):
    rewrite(
        pair[1] / "config.json", lambda value: value.update(max_position_embeddings=64, auto_map={"AutoModel": "x"})
    )
    (pair[1] / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    verdict = check_folders(*pair)
    assert verdict.ok
    assert any("takes 64 tokens, the policy 128" in note for note in verdict.notes)
    assert any("auto_map" in note for note in verdict.notes)


@pytest.mark.parametrize("data", [b"", b"abc", struct.pack("<Q", 2**40), struct.pack("<Q", 5) + b"{}xx,",
                                  struct.pack("<Q", 7) + b'{"a":1}'])  # fmt: skip
def test_malformed_weights(pair, data):
    (pair[0] / "model.safetensors").write_bytes(data)
    with pytest.raises(DataError, match="not a safetensors file"):
        read_facts(pair[0])


@pytest.mark.parametrize(
    "text", ["[]", '{"model": 1}', '{"model": {"vocab": {"a": null}}}', '{"added_tokens": [{}], "model": {}}']
)
def test_malformed_tokenizers(pair, text):
    (pair[0] / "tokenizer.json").write_text(text)
    with pytest.raises(PrmkitError, match=r"tokenizer\.json: not a tokenizer"):
        read_facts(pair[0])
