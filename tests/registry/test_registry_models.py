"""What is pulled opens in transformers and in prmkit, and the facts read from folders are those of the models."""

import pytest

from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from registry import Publication, check_folders
from registry.facts import read_facts

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a policy and of PRMs with every head, as prmkit writes them; and the models themselves."""
    from prmkit.models import ModelSource, build_policy, build_prm, load_tokenizer, save_policy

    source = ModelSource(config=CONFIG, tokenizer="accumulator")
    tokenizer = load_tokenizer(source)
    root = tmp_path_factory.mktemp("models")
    policy = build_policy(source, tokenizer)
    save_policy(policy, tokenizer, get_step_format("plain"), root / "policy")
    built = {"policy": policy}
    scalar = {"base": "plain-head", "prm": {"head": "scalar"}}
    for name, step_format in (("label_tokens", "plain"), ("token_head", "plain-head"), ("scalar", scalar)):
        prm = build_prm(source, BoundStepFormat(get_step_format(step_format), tokenizer))
        prm.save_pretrained(root / name)
        built[name] = prm
    return root, built


@pytest.mark.parametrize(("head", "outputs"), [("label_tokens", None), ("token_head", 2), ("scalar", 1)])
def test_facts_are_those_of_the_models(models, head, outputs):
    root, built = models
    facts = read_facts(root / head)
    assert (facts.outputs, facts.context_length) == (outputs, 256)
    assert facts.step_format["prm"]["head"] == head
    assert check_folders(root / "policy", root / head).ok
    policy = read_facts(root / "policy")
    assert policy.parameters == sum(p.numel() for p in built["policy"].parameters())
    assert policy.vocab_size == policy.tokenizer.size == built["policy"].config.vocab_size


def test_a_pulled_pair_opens_as_it_was(models, registry, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from prmkit.models import PRMModel, load_policy

    root, built = models
    registry.publish(Publication("toy", root / "policy", root / "token_head"))
    pulled = registry.pull("toy", tmp_path / "here")
    plain = AutoModelForCausalLM.from_pretrained(pulled.policy)
    ours = load_policy(pulled.policy, get_step_format("plain"), "float32", "cpu").model
    for name, tensor in built["policy"].state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
    prm = PRMModel.from_pretrained(pulled.prm, get_step_format("plain-head"), "float32", "cpu")
    for name, tensor in built["token_head"].state_dict().items():
        torch.testing.assert_close(prm.state_dict()[name], tensor, rtol=0, atol=0)
