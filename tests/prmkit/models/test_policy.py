import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.formats.presets import STEP_FORMATS, get_step_format
from prmkit.models import (
    LoraSpec,
    ModelCard,
    ModelSource,
    atomic_folder,
    build_policy,
    checked_lm_head,
    hidden_states,
    load_policy,
    load_tokenizer,
    save_policy,
)

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
PLAIN = STEP_FORMATS["plain"]
IDS = torch.tensor([[5, 9, 12, 30, 22, 51, 8]])


def source(**changes) -> ModelSource:
    return ModelSource(**{"config": CONFIG, "tokenizer": "accumulator", **changes})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(source())


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tokenizer, tied: bool, tmp_path: Path) -> None:
    model = build_policy(source(config={**CONFIG, "tie_word_embeddings": tied}), tokenizer).eval()
    save_policy(model, tokenizer, PLAIN, tmp_path / "policy", weight_version=7)
    loaded = load_policy(tmp_path / "policy")
    assert (loaded.weight_version, loaded.format.spec, loaded.model.training) == (7, PLAIN, False)
    torch.testing.assert_close(loaded.model(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_tokenizer_round_trip_keeps_every_id(tokenizer, tmp_path: Path) -> None:
    """AutoTokenizer would read this folder as a Qwen2 tokenizer, which drops the newline."""
    save_policy(build_policy(source(), tokenizer), tokenizer, PLAIN, tmp_path / "policy")
    text = "f+5g*3h-8,7\nf+5=C\n"
    again = load_policy(tmp_path / "policy").tokenizer
    assert again.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert again.decode(again.encode(text)) == text


def test_random_weights_depend_on_their_seed_only(tokenizer) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_policy(source(seed=5), tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    same, other = build_policy(source(seed=5), tokenizer), build_policy(source(seed=6), tokenizer)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.config.vocab_size == len(tokenizer)
    assert first.config.eos_token_id == tokenizer.eos_token_id


def test_pretrained_source_and_dtype(tokenizer, tmp_path: Path) -> None:
    save_policy(build_policy(source(), tokenizer), tokenizer, PLAIN, tmp_path / "policy")
    pretrained = ModelSource(path=str(tmp_path / "policy"), dtype="bfloat16", attn_implementation="eager")
    model = build_policy(pretrained, load_tokenizer(pretrained))
    assert (model.dtype, model.config._attn_implementation, model.training) == (torch.bfloat16, "eager", True)


def test_lora_export_is_plain_and_leaves_the_model_alone(tokenizer, tmp_path: Path) -> None:
    model = build_policy(source(lora=LoraSpec(r=2, target_modules=["q_proj", "down_proj"])), tokenizer)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    wanted = model.eval()(IDS).logits
    save_policy(model, tokenizer, PLAIN, tmp_path / "policy")
    torch.testing.assert_close(load_policy(tmp_path / "policy").model(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(IDS).logits, wanted)
    with pytest.raises(ConfigError, match=r'lora.target_modules: got \["w_q"\]|lora.target_modules.*w_q.*q_proj'):
        build_policy(source(lora=LoraSpec(target_modules=["w_q"])), tokenizer)


def test_packed_rows_do_not_see_each_other(tokenizer) -> None:
    model = build_policy(source(), tokenizer).eval()
    first, second = IDS[:, :4], IDS[:, 4:]
    packed = torch.cat([first, second], 1)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    backbone = model.base_model
    found = hidden_states(backbone, packed, None, positions)
    alone = [hidden_states(backbone, part, torch.ones_like(part, dtype=torch.bool)) for part in (first, second)]
    torch.testing.assert_close(found, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


def test_refusals(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path"):
        ModelSource()
    with pytest.raises(ConfigError, match=r"source.path"):
        ModelSource(path="x", config=CONFIG)
    with pytest.raises(ConfigError, match=r"source.tokenizer"):
        ModelSource(config=CONFIG)
    with pytest.raises(ConfigError, match=r"source.dtype: got 'int8'"):
        source(dtype="int8")
    with pytest.raises(ConfigError, match=r"source.config.model_type: got 'qwen99'"):
        build_policy(source(config={**CONFIG, "model_type": "qwen99"}), tokenizer)
    with pytest.raises(ConfigError, match=r"source.config.hiden_size.*hidden_size"):
        build_policy(source(config={**CONFIG, "hiden_size": 3}), tokenizer)
    with pytest.raises(StepFormatError, match=r"the tokenizer has 52 tokens, the model embeds 20"):
        build_policy(source(config={**CONFIG, "vocab_size": 20}), tokenizer)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"no tokenizer can be read"):
        load_tokenizer(source(tokenizer=str(tmp_path / "bare")))
    with pytest.raises(DataError, match=r"no such model folder"):
        load_policy(tmp_path / "none")


def test_models_that_change_their_logits_are_refused(tokenizer) -> None:
    model = build_policy(source(), tokenizer)
    assert checked_lm_head(model).out_features == len(tokenizer)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(StepFormatError, match="final_logit_softcapping = 30"):
        checked_lm_head(model)


def test_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(text: str, fail: bool = False) -> None:
        with atomic_folder(target, ModelCard("policy")) as folder:
            (folder / "a").write_text(text)
            if fail:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write("half", fail=True)
    assert list(tmp_path.iterdir()) == []
    write("one")
    with pytest.raises(RuntimeError, match="killed"):
        write("half", fail=True)
    assert (target / "a").read_text() == "one"
    write("two")
    assert (target / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_step_format_given_wins_over_the_folder(tokenizer, tmp_path: Path) -> None:
    save_policy(build_policy(source(), tokenizer), tokenizer, PLAIN, tmp_path / "policy")
    given = get_step_format({"base": "plain", "policy": {"separator": ";"}})
    assert load_policy(tmp_path / "policy", given).format.spec.policy.separator == ";"
    (tmp_path / "policy" / "step_format.json").unlink()
    with pytest.raises(StepFormatError, match="no such file"):
        load_policy(tmp_path / "policy")


def test_card_of_another_schema_is_refused(tokenizer, tmp_path: Path) -> None:
    save_policy(build_policy(source(), tokenizer), tokenizer, PLAIN, tmp_path / "policy")
    (tmp_path / "policy" / "prmkit.json").write_text(json.dumps({"schema": 9}))
    with pytest.raises(DataError, match="schema 9"):
        load_policy(tmp_path / "policy")
