"""Rows as trees give what the rows give."""

import pytest
import torch

from prmkit.losses import token_logprobs
from prmkit.models import ModelSource, build_policy, forest_states, load_tokenizer, plant_forest
from prmkit.models import prefix_forest as module

CONFIG = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 48, "tie_word_embeddings": True, "initializer_range": 0.2}
PROMPTS = ((5, 6, 7), (5, 6), (9,))
ANSWERS = {0: ((8, 8, 2), (8, 8, 2), (8, 9, 9, 2), (4,)), 1: ((7, 8, 2),), 2: ((9, 9), (9, 9, 9))}


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    made = [(PROMPTS[n], answer) for n, answers in ANSWERS.items() for answer in answers]
    made.append(((5, 6, 7), ()))  # nothing counts
    width = max(len(p) + len(a) for p, a in made)
    ids, mask = torch.full((len(made), width), 3), torch.zeros(len(made), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(made):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        mask[row, len(prompt) : len(prompt) + len(answer)] = True
    return ids, mask


def test_what_is_common_is_there_once():
    ids, mask = rows()
    forest = plant_forest(ids, mask)
    # Prompts 3 + 2 + 1 (no tree is shared by prompts that only begin alike); behind them 8, 88, 89, 899; 7, 78; 9, 99.
    assert forest.nodes == 6 + 4 + 2 + 2
    assert len(forest.edge_token) == 7 + 3 + 3  # 8 8 2 | 9 9 2 | 4; 7 8 2; 9 9 9
    assert len(forest.edge_of) == int(mask.sum())
    assert forest.edge_of[:3].equal(forest.edge_of[3:6])
    assert forest.edge_token[forest.edge_of].equal(ids[mask])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logprobs_and_gradients_are_those_of_the_rows(attention, monkeypatch):
    monkeypatch.setattr(module, "_CPU_TOKENS", 8)  # more than one pass
    source = ModelSource(config=CONFIG, tokenizer="accumulator")
    model = build_policy(source, load_tokenizer(source))
    model.set_attn_implementation(attention)
    ids, mask = rows()
    weights = torch.linspace(-1.0, 1.0, int(mask.sum()))

    def gradients(logprobs: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        (weights * logprobs).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0][mask[:, 1:]]
    wanted = gradients(plain)
    forest = plant_forest(ids, mask)
    head = model.get_output_embeddings()
    states = forest_states(model.base_model, forest, ids.device)
    found = token_logprobs(states, forest.edge_token, head, head.out_features).logprobs[forest.edge_of]
    torch.testing.assert_close(found, plain)
    for one, other in zip(gradients(found), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
