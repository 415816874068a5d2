"""Packed rows: the same loss and gradients as padded ones, on a real tiny model."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from datamodules.encoding import SFTCodec
from datamodules.packing import PACKING_ATTENTION, check_packing
from datamodules.readers import Demonstration
from prmkit.errors import ConfigError

ROWS = [Demonstration("f+5,7", "f+5=C"), Demonstration("g*3h-4,2", "g*3=6\nh-4=2"), Demonstration("f-5,B", "f-5=6")]


def loss_sum(model, batch):
    """Sum of cross-entropies of the counted tokens; token t is predicted at t - 1."""
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=None if batch.attention_mask is None else batch.attention_mask.long(),
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    counted = batch.loss_mask[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][counted], batch.input_ids[:, 1:][counted], reduction="sum")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_packed_loss_and_gradients_equal_padded_ones(bound, attention, training):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(bound.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attn_implementation=attention,
        initializer_range=0.5,
    )
    model = Qwen2ForCausalLM(config).train(training)
    check_packing(model)
    found = []
    for packed in (False, True):
        codec = SFTCodec(bound, 64, packed=packed)
        batch = codec.collate([codec.encode(str(i), row) for i, row in enumerate(ROWS)])
        model.zero_grad()
        loss = loss_sum(model, batch)
        loss.backward()
        found.append((batch.count, loss, [p.grad.clone() for p in model.parameters()]))
    (n, padded, gradients), (m, packed_loss, packed_gradients) = found
    assert n == m == sum(len(row.solution) + 1 for row in ROWS)
    torch.testing.assert_close(packed_loss, padded, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # Rows that did see each other would show: without position ids the loss is another one.
    alone = loss_sum(model, SimpleNamespace(**{**vars(batch), "position_ids": None}))
    assert abs(alone.item() - padded.item()) > 0.1


def test_other_attention_is_refused():
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flex_attention"))
    with pytest.raises(ConfigError, match=r"data\.packing: got True; accepted: false, with attention 'flex_attention'"):
        check_packing(model)
    assert "sdpa" in PACKING_ATTENTION
