"""A model for the tests of vLLM."""

import pytest


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("vllm")
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from prmkit.tasks.accumulator import AccumulatorTask

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(AccumulatorTask().tokenizer()),
        hidden_size=128,  # vLLM's CPU attention takes heads of 32 and more
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()
