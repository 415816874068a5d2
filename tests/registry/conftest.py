"""Small model folders, written without torch, and registries that hold them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prmkit.formats.presets import get_step_format
from registry import Figure, Metrics, Publication, Registry

LETTERS = {letter: index for index, letter in enumerate("abcdefgh\n+-")}


def tokenizer_json(vocabulary=LETTERS, **more):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(vocabulary), "content": "<eos>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": "+"},
        **more,
    }


def write_model(folder, kind="policy", step_format="plain", weights=0, size=64, config=None, tokenizer=None):
    """A folder with everything a model needs but sense: `weights` seeds its numbers, `size` is how many."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = get_step_format(step_format).prm.head
    own_head = kind == "prm" and head != "label_tokens"
    values = {
        "architectures": ["Qwen2ForTokenClassification" if own_head else "Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 128,
        "vocab_size": len(LETTERS) + 1,
        **(config or {}),
    }
    tensors = {"model.embed": np.random.default_rng(weights).normal(size=size).astype(np.float32)}
    if own_head:
        tensors["score.weight"] = np.zeros((2 if head == "token_head" else 1, 4), dtype=np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or tokenizer_json()))
    (folder / "prmkit.json").write_text(json.dumps({"schema": 1, "kind": kind, "weight_version": weights}))
    get_step_format(step_format).save(folder)
    return folder


def write_metrics(accuracy, problems=200, auroc=0.9, ece=0.05, seed=0, **more):
    """Metrics with the results of that many problems, of which a share is solved."""
    solved = np.random.default_rng(seed).permutation(problems) < accuracy * problems
    figures = {"accuracy": Figure(float(solved.mean())), "prm_auroc": Figure(auroc), "prm_ece": Figure(ece)}
    results = {f"p{i}": float(hit) for i, hit in enumerate(solved)}
    return Metrics(**{"dataset": "toy/test", "figures": figures, "results": results, **more})


@pytest.fixture
def make_model():
    return write_model


@pytest.fixture
def make_tokenizer():
    return tokenizer_json


@pytest.fixture
def make_metrics():
    return write_metrics


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def make_publication(tmp_path):
    """A pair of fresh folders; `weights` tells pairs apart, PRM and policy share their tokenizer."""

    def make(pair="math", weights=0, **more):
        policy = write_model(tmp_path / f"policy{weights}", weights=weights)
        prm = write_model(tmp_path / f"prm{weights}", "prm", "plain-head", weights=weights + 1000)
        return Publication(pair, policy, prm, **more)

    return make
