"""Fixtures shared by all tests."""

import json
import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data, named by PRMKIT_DATA; tests that need it skip where it is not set."""
    root = os.environ.get("PRMKIT_DATA")
    if not root:
        pytest.skip("PRMKIT_DATA is not set")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def as_prm(tmp_path_factory):
    """as_prm(folder) -> a copy of a policy's folder that says it is a PRM; with label tokens it can be one."""

    def copy(folder: Path) -> Path:
        made = tmp_path_factory.mktemp("as_prm") / "prm"
        shutil.copytree(folder, made)
        card = json.loads((made / "prmkit.json").read_text())
        (made / "prmkit.json").write_text(json.dumps({**card, "kind": "prm"}))
        return made

    return copy


@pytest.fixture(scope="session")
def tiny_qwen2_prm(tiny_qwen2, as_prm) -> Path:
    return as_prm(tiny_qwen2)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory):
    """A random Qwen2 over bytes with Qwen's chat words: the policy, and the PRM with a new head."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from prmkit.formats.presets import get_step_format
    from prmkit.models import save_policy

    blank_line = "\u010a\u010a"
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), blank_line]
    bpe = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[("\u010a", "\u010a")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<extra_0>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        intermediate_size=16,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        **sizes,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # ends of steps, ends of solutions and digits are likelier than other bytes
        for token, extra in ((len(words) - 1, 2.0), (tokenizer.eos_token_id, 2.0), (words.index("7"), 3.0)):
            model.lm_head.weight[token] *= 1.0 + extra
    folder = tmp_path_factory.mktemp("pair") / "model"
    save_policy(model.eval(), tokenizer, get_step_format("qwen2.5-math-prm"), folder)
    return folder
