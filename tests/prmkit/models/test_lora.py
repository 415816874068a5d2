"""Adapters: every name is either refused before training or comes back from the exported folder."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from prmkit.engines.weight_sync import check_names
from prmkit.errors import ConfigError
from prmkit.models import LoraSpec, ModelSource, build_policy, load_tokenizer, save_policy
from prmkit.steps import STEP_FORMATS

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
IDS = torch.tensor([[5, 9, 12, 30, 22, 51, 8]])


def build(targets, tied: bool):
    config = {**CONFIG, "tie_word_embeddings": tied}
    source = ModelSource(config=config, tokenizer="accumulator", lora=LoraSpec(r=2, target_modules=targets))
    tokenizer = load_tokenizer(source)
    return build_policy(source, tokenizer), tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_every_layer_is_refused_or_exported_as_it_is(tied, tmp_path):
    plain, _ = build("all-linear", tied)
    names = {name.rpartition(".")[2] for name, _ in plain.model.named_modules() if "lora" not in name}
    exported = set()
    for name in sorted(names - {"", "base_layer", "default"}):
        try:
            model, tokenizer = build([name], tied)
        except ConfigError:
            continue
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        save_policy(model, tokenizer, STEP_FORMATS["plain"], tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        torch.testing.assert_close(again(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-4)
        exported.add(name)
    assert exported >= {"q_proj", "down_proj"}
    assert "embed_tokens" in exported
    assert json.loads((tmp_path / "q_proj" / "config.json").read_text())["tie_word_embeddings"] is tied
    assert json.loads((tmp_path / "embed_tokens" / "config.json").read_text())["tie_word_embeddings"] is False
    assert model.config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_prj"], r"got 'v_prj'; accepted: .*q_proj.*Did you mean \[v_proj\]"),
        (["q_proj", "nothing_like_it"], r"got 'nothing_like_it'; accepted"),
        ("q_proj", r"got 'q_proj'; .*Did you mean \[q_proj\]"),
        ("q_proj(", r"As a pattern: missing \)"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_beside_one_that_does(targets, message):
    with pytest.raises(ConfigError, match=message):
        build(targets, tied=False)
    assert any("lora" in name for name, _ in build(r".*\.[qv]_proj", tied=False)[0].named_parameters())


def test_tied_embeddings_with_adapters_are_not_sent_to_vllm():
    """Its model computes logits with the embeddings that it has."""
    model, _ = build(["embed_tokens"], tied=True)
    with pytest.raises(ConfigError, match=r"lora\.target_modules: got 'tied embeddings'"):
        check_names(model)
    check_names(build(["embed_tokens"], tied=False)[0])
    check_names(build(["q_proj"], tied=True)[0])
