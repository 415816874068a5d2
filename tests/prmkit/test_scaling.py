"""The formulas of docs/scaling.md against its tables, and against what torch holds on a CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from prmkit.scaling import DecoderShape, Division, activation_bytes, logit_bytes, state_bytes, step_seconds

N = 7_620_000_000


@pytest.mark.parametrize(
    ("stage", "offload", "eight", "sixty_four"),
    [(1, False, 41.9, 31.9), (2, False, 28.6, 16.9), (3, False, 15.2, 1.9), (2, True, 17.1, 15.5)],
)
def test_states_are_those_of_the_table(stage, offload, eight, sixty_four):
    for processes, expected in ((8, eight), (64, sixty_four)):
        found = state_bytes(N, 0, 4, Division(stage, processes, mixed=True, offload_optimizer=offload))
        assert (found.weights + found.gradients + found.optimizer) / 1e9 == pytest.approx(expected, abs=0.06)
        assert found.host == (12 * N / processes if offload else 0)
    ddp = state_bytes(N, 0, 4, Division(0, 8, mixed=True))
    assert ddp.weights + ddp.gradients + ddp.optimizer == 16 * N


@pytest.mark.parametrize(("stage", "measured"), [(1, 14.0), (2, 12.0), (3, 10.0)])
def test_states_in_float32(stage, measured):
    """`benchmarks/zero.py` counted them tensor by tensor."""
    found = state_bytes(1000, 0, 4, Division(stage, 2))
    assert found.weights + found.gradients + found.optimizer == 1000 * measured


def test_frozen_weights_have_no_gradients_and_no_states():
    found = state_bytes(10, 90, 2, Division())
    assert (found.weights, found.gradients, found.optimizer) == (200, 20, 40)
    away = state_bytes(10, 90, 4, Division(3, 2, True, offload_optimizer=True, offload_parameters=True))
    assert (away.weights, away.gradients, away.optimizer, away.host) == (0, 10, 0, 100 + 60)


def decoder(layers, hidden, intermediate, key_value_heads, tied=True):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=key_value_heads, tie_word_embeddings=tied,
    )  # fmt: skip
    shape = DecoderShape(layers, hidden, intermediate, key_value_heads * hidden // 4, 64)
    return AutoModelForCausalLM.from_config(config).train(), shape


def kept(model, tokens):
    """Bytes that the forward pass of a decoder keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, held = {}, []

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            sizes[place] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(torch.zeros(1, tokens, dtype=torch.long))
    return sum(sizes.values())


@pytest.mark.parametrize(
    "sizes", [(1, 64, 128, 4), (3, 64, 128, 4), (2, 64, 256, 4), (2, 128, 128, 4), (2, 64, 128, 2)]
)
def test_activations_are_what_torch_keeps(sizes):
    model, shape = decoder(*sizes)
    assert activation_bytes(shape, 256, 4, False) == pytest.approx(kept(model, 256), rel=0.05)


def test_activations_with_checkpointing():
    model, shape = decoder(12, 64, 128, 4)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = kept(model, 256)  # what is kept between layers, without the one at work
    layer = activation_bytes(DecoderShape(1, 64, 128, 64, 64), 256, 4, False)
    assert activation_bytes(shape, 256, 4, True) == pytest.approx(inputs + layer, rel=0.1)


def test_states_are_what_torch_holds():
    model, _ = decoder(2, 64, 128, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    count = sum(p.numel() for p in model.parameters())
    found = state_bytes(count, 0, 4, Division())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found.weights == sum(p.nbytes for p in model.parameters())
    assert found.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert found.optimizer == sum(moment.nbytes for moment in moments)


def test_logits_and_time():
    shape = DecoderShape(28, 3584, 18944, 512, 152_064)
    assert logit_bytes(shape, 8192) == 2 * 4 * 2**25
    assert logit_bytes(shape, 10) == 2 * 4 * 10 * 152_064
    assert step_seconds(N, 65_536, 0.4 * 989e12, adapters=False) == pytest.approx(7.6, abs=0.05)
    assert step_seconds(6, 10, 1.0, adapters=True) == 240
