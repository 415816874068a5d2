import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from prmkit.errors import DataError, StepFormatError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.spec import PRMFormat, StepFormat
from prmkit.models import LoraSpec, ModelSource, PRMModel, build_prm, load_tokenizer, save_policy
from prmkit.ownership import file_sizes

QUESTION, STEPS = "f+5g*3h-8,7", ["f+5=C", "g*3=4", "h-8=C"]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(source())


def source(**changes) -> ModelSource:
    tied = changes.pop("tied", True)
    config = {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": tied}
    return ModelSource(**{"config": config, "tokenizer": "accumulator", **changes})


def form(head: str) -> StepFormat:
    return StepFormat(head, prm=PRMFormat(head=head))


def batch(prm: PRMModel) -> dict[str, torch.Tensor]:
    """Two traces of 3 and 2 steps, the second padded with junk."""
    rows = [prm.format.encode_steps(QUESTION, STEPS), prm.format.encode_steps(QUESTION, STEPS[:2])]
    width = len(rows[0].input_ids)
    ids = torch.full((2, width), 7)
    mask = torch.zeros(2, width, dtype=torch.bool)
    positions, wanted = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
        mask[i, : len(row.input_ids)] = True
        positions[i, : len(row.positions)] = torch.tensor(row.positions)
        wanted[i, : len(row.positions)] = True
    return {"input_ids": ids, "attention_mask": mask, "positions": positions, "position_mask": wanted}


def one_by_one(prm: PRMModel, full) -> torch.Tensor:
    """Outputs of `full(ids [1, T]) -> [1, T, K]` at the positions of both traces, without any batching or padding."""
    found = []
    for steps in (STEPS, STEPS[:2]):
        row = prm.format.encode_steps(QUESTION, steps)
        found.append(full(torch.tensor([row.input_ids]))[0, list(row.positions)])
    return torch.cat(found)


@pytest.mark.parametrize("tied", [True, False])
def test_label_tokens_equal_softmax_of_full_logits(tokenizer, tied: bool, tmp_path: Path) -> None:
    prm = build_prm(source(tied=tied), BoundStepFormat(form("label_tokens"), tokenizer)).eval()
    prm.save_pretrained(tmp_path / "prm")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "prm")
    logits = one_by_one(prm, lambda ids: other(ids).logits)
    minus, plus = tokenizer.convert_tokens_to_ids(["-", "+"])
    wanted = torch.stack([logits[:, minus], logits[:, plus]], 1)
    found = prm(**batch(prm))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prm.probability(found), wanted.softmax(1)[:, 1], rtol=1e-4, atol=1e-5)


def test_label_rows_carry_the_bias(tokenizer) -> None:
    prm = build_prm(source(tied=False), BoundStepFormat(form("label_tokens"), tokenizer)).eval()
    head = prm.model.lm_head
    head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    hidden = torch.randn(5, 32)
    torch.testing.assert_close(prm.logits_at(hidden), head(hidden)[:, list(prm.format.label_ids)])


@pytest.mark.parametrize(("head", "outputs"), [("token_head", 2), ("scalar", 1)])
def test_classifier_heads_equal_transformers(tokenizer, head: str, outputs: int, tmp_path: Path) -> None:
    prm = build_prm(source(), BoundStepFormat(form(head), tokenizer)).eval()
    prm.save_pretrained(tmp_path / "prm")
    other = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").eval()
    wanted = one_by_one(prm, lambda ids: other(ids).logits)
    found = prm(**batch(prm))
    assert found.shape == (5, outputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    score = wanted.softmax(1)[:, 1] if outputs == 2 else wanted[:, 0].sigmoid()
    torch.testing.assert_close(prm.probability(found), score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["label_tokens", "token_head", "scalar"])
def test_round_trip(tokenizer, head: str, tmp_path: Path) -> None:
    prm = build_prm(source(), BoundStepFormat(form(head), tokenizer)).eval()
    prm.save_pretrained(tmp_path / "prm", weight_version=4)
    again = PRMModel.from_pretrained(tmp_path / "prm")
    assert again.format.spec == prm.format.spec
    assert json.loads((tmp_path / "prm" / "prmkit.json").read_text()) == {
        "schema": 1,
        "kind": "prm",
        "weight_version": 4,
        "files": file_sizes(tmp_path / "prm", leave_out="prmkit.json"),
    }
    torch.testing.assert_close(again(**batch(prm)), prm(**batch(prm)), rtol=0, atol=0)
    assert (again.hidden_size, again.training) == (32, False)


@pytest.mark.parametrize("head", ["token_head", "scalar"])
def test_new_head_on_a_policy_is_seeded_and_warned_of(tokenizer, head: str, tmp_path: Path, caplog) -> None:
    policy = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SHAPE))
    save_policy(policy, tokenizer, form("label_tokens"), tmp_path / "policy")
    with caplog.at_level(logging.WARNING):
        first = PRMModel.from_pretrained(tmp_path / "policy", form(head), seed=3)
    assert "2 weights are new and random (seed 3): score.bias, score.weight" in caplog.text
    same = PRMModel.from_pretrained(tmp_path / "policy", form(head), seed=3)
    other = PRMModel.from_pretrained(tmp_path / "policy", form(head), seed=4)
    assert torch.equal(first.model.score.weight, same.model.score.weight)
    assert not torch.equal(first.model.score.weight, other.model.score.weight)
    assert torch.equal(first.backbone.embed_tokens.weight, policy.model.embed_tokens.weight)


def published(folder: Path, tokenizer, tensors: dict[str, torch.Tensor], **config) -> Path:
    """A folder as somebody else's training code leaves it: foreign keys, and pointers to remote code."""
    tokenizer.save_pretrained(folder)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    values = {**Qwen2Config(vocab_size=len(tokenizer), **SHAPE).to_dict(), **config}
    values["auto_map"] = {"AutoConfig": "configuration_evil.Config", "AutoModel": "modeling_evil.Model"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modeling_evil.py").write_text("raise SystemExit('remote code was run')")
    (folder / "configuration_evil.py").write_text("raise SystemExit('remote code was run')")
    return folder


def decoder(tokenizer) -> Qwen2Model:
    torch.manual_seed(0)
    return Qwen2Model(Qwen2Config(vocab_size=len(tokenizer), **SHAPE)).eval()


def test_two_layer_head_of_qwen_math_prm(tokenizer, tmp_path: Path) -> None:
    model = decoder(tokenizer)
    w0, b0, w2, b2 = torch.randn(32, 32), torch.randn(32), torch.randn(2, 32), torch.randn(2)
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    tensors |= {"score.0.weight": w0, "score.0.bias": b0, "score.2.weight": w2, "score.2.bias": b2}
    folder = published(tmp_path / "hub", tokenizer, tensors, architectures=["Qwen2ForProcessRewardModel"])
    prm = PRMModel.from_pretrained(folder, form("token_head"))
    hidden = one_by_one(prm, lambda ids: model(ids).last_hidden_state)
    wanted = torch.relu(hidden @ w0.T + b0) @ w2.T + b2
    torch.testing.assert_close(prm(**batch(prm)), wanted, rtol=1e-4, atol=1e-5)
    prm.save_pretrained(tmp_path / "own")
    assert load_file(tmp_path / "own" / "model.safetensors").keys() == tensors.keys()
    assert json.loads((tmp_path / "own" / "config.json").read_text())["architectures"] == ["Qwen2ForProcessRewardModel"]
    again = PRMModel.from_pretrained(tmp_path / "own")
    torch.testing.assert_close(again(**batch(prm)), prm(**batch(prm)), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_value_heads_of_skywork_and_trl(tokenizer, prefix: str, tmp_path: Path) -> None:
    model = decoder(tokenizer)
    w, b = torch.randn(1, 32), torch.randn(1)
    tensors = {f"{prefix}model.{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"{prefix}lm_head.weight": torch.randn(len(tokenizer), 32)}
    tensors |= {"v_head.summary.weight": w, "v_head.summary.bias": b}
    folder = published(tmp_path / "hub", tokenizer, tensors, architectures=["Qwen2ForPrmModel"])
    prm = PRMModel.from_pretrained(folder, form("scalar"))
    hidden = one_by_one(prm, lambda ids: model(ids).last_hidden_state)
    torch.testing.assert_close(prm(**batch(prm)), hidden @ w.T + b, rtol=1e-4, atol=1e-5)


def test_head_without_bias(tokenizer, tmp_path: Path) -> None:
    model, w = decoder(tokenizer), torch.randn(2, 32)
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()} | {"score.weight": w}
    prm = PRMModel.from_pretrained(published(tmp_path / "hub", tokenizer, tensors), form("token_head"))
    hidden = one_by_one(prm, lambda ids: model(ids).last_hidden_state)
    torch.testing.assert_close(prm(**batch(prm)), hidden @ w.T, rtol=1e-4, atol=1e-5)


def test_format_that_names_another_head_is_refused(tokenizer, tmp_path: Path) -> None:
    build_prm(source(), BoundStepFormat(form("scalar"), tokenizer)).save_pretrained(tmp_path / "prm")
    with pytest.raises(StepFormatError, match=r"prm.head is 'label_tokens', but the folder holds 'scalar'"):
        PRMModel.from_pretrained(tmp_path / "prm", form("label_tokens"))
    with pytest.raises(StepFormatError, match=r"prm.head is 'token_head', but the folder holds 'scalar'"):
        PRMModel.from_pretrained(tmp_path / "prm", form("token_head"))


def test_folders_that_cannot_be_read(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such model folder"):
        PRMModel.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no config.json"):
        PRMModel.from_pretrained(tmp_path / "empty")
    folder = published(
        tmp_path / "hub", tokenizer, {f"model.{n}": t for n, t in decoder(tokenizer).state_dict().items()}
    )
    with pytest.raises(StepFormatError, match=r"step_format.json: no such file"):
        PRMModel.from_pretrained(folder)
    with pytest.raises(DataError, match=r"1 weights of Qwen2ForCausalLM are not in it, e.g. lm_head.weight"):
        PRMModel.from_pretrained(folder, form("label_tokens"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no \*.safetensors file. Pickled"):
        PRMModel.from_pretrained(folder, form("token_head"))
    (folder / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(DataError, match=r"not a safetensors file"):
        PRMModel.from_pretrained(folder, form("token_head"))


def test_padding_and_row_order_change_nothing(tokenizer) -> None:
    prm = build_prm(source(), BoundStepFormat(form("label_tokens"), tokenizer)).eval()
    whole = batch(prm)
    swapped = {name: t.flip(0) for name, t in whole.items()}
    wider = dict(whole)
    wider["input_ids"] = torch.nn.functional.pad(whole["input_ids"], (0, 9), value=11)
    wider["attention_mask"] = torch.nn.functional.pad(whole["attention_mask"], (0, 9))
    found = prm(**whole)
    torch.testing.assert_close(prm(**wider), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prm(**swapped), torch.cat([found[3:], found[:3]]), rtol=1e-4, atol=1e-5)


def test_no_tensor_of_tokens_times_vocabulary(tokenizer) -> None:
    config = {**source().config, "vocab_size": 4001}
    prm = build_prm(source(config=config), BoundStepFormat(form("label_tokens"), tokenizer))
    largest = 0

    def record(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        if not isinstance(tensor, torch.nn.Parameter) and tensor.untyped_storage().nbytes() < 4001 * 32 * 4:
            largest = max(largest, tensor.numel())
        return tensor

    given = batch(prm)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        prm(**given)
    assert 0 < largest < given["input_ids"].numel() * 64 * 2


@pytest.mark.parametrize("head", ["label_tokens", "token_head"])
def test_lora_trains_adapters_and_new_heads_only_and_is_merged_once(tokenizer, head: str, tmp_path: Path) -> None:
    prm = build_prm(source(lora=LoraSpec(r=2, alpha=8.0)), BoundStepFormat(form(head), tokenizer))
    trained = {name for name, p in prm.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name or "score" in name for name in trained)
    assert any("score" in name for name in trained) == (head == "token_head")
    with torch.no_grad():
        for name, p in prm.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    prm.eval()
    before = prm(**batch(prm))
    for folder in ("first", "second"):  # a second export finds the same adapters, not merged ones
        prm.save_pretrained(tmp_path / folder)
        again = PRMModel.from_pretrained(tmp_path / folder)
        assert not any("lora" in name for name in again.state_dict())
        torch.testing.assert_close(again(**batch(prm)), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prm(**batch(prm)), before, rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LoraSpec(r=2)])
def test_gradient_checkpointing_gives_the_same_gradients(tokenizer, lora) -> None:
    found = []
    for checkpointing in (False, True):
        prm = build_prm(
            source(gradient_checkpointing=checkpointing, lora=lora), BoundStepFormat(form("token_head"), tokenizer)
        )
        prm(**batch(prm)).square().sum().backward()
        assert any(getattr(m, "gradient_checkpointing", False) for m in prm.modules()) == checkpointing
        found.append({n: p.grad for n, p in prm.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 4
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
