"""Which PRMs vLLM's pooling serves, and that its scores are ours."""

import asyncio
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from prmkit.engines.vllm.options import CPU_TRIAL
from prmkit.engines.vllm.server import VLLMServer
from prmkit.errors import ConfigError, StepFormatError
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.formats.spec import PRMFormat, StepFormat
from prmkit.models import ModelSource, PRMModel, build_prm
from prmkit.scoring import PRMScorer
from prmkit.scoring.config import HttpScorerConfig
from prmkit.scoring.http import HTTPScorer
from prmkit.scoring.vllm import VLLMScorer
from prmkit.scoring.vllm_plan import plan_pooling
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
TAG, BEFORE = PRMFormat(), PRMFormat(read="before_tag", head="token_head")


def make_prm(prm: PRMFormat, folder, model_type="qwen2"):
    config = {
        "model_type": model_type,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    bound = BoundStepFormat(StepFormat("x", prm=prm), TASK.tokenizer())
    model = build_prm(ModelSource(config=config, tokenizer="accumulator", seed=1), bound)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name:  # its bias is zero at the start
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return bound


def test_reading_at_a_tag_takes_its_logits_only(tmp_path):
    bound = make_prm(TAG, tmp_path)
    plan = plan_pooling(tmp_path, bound)
    tag = bound.tokenizer.encode("\n")[-1]
    assert plan.serves
    assert plan.arguments["pooler_config"] == {"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": tag}
    assert plan.arguments["hf_overrides"] == {"classifier_from_token": ["-", "+"], "method": "no_post_processing"}
    # the tag stands behind the question, too
    assert plan.pick(EncodedSteps((7, tag, 8, tag, 9, 9, tag), (3, 6)), ["q", "a", "b"]) == ["a", "b"]
    everywhere = plan_pooling(tmp_path, bound, every_token=True)
    assert everywhere.arguments["pooler_config"] == {"task": "token_classify", "tok_pooling_type": "ALL"}
    assert everywhere.pick(EncodedSteps((7, tag, 8, tag), (3,)), "abcd") == ["d"]
    with pytest.raises(StepFormatError, match="2 rows of logits for 3 places"):
        plan.pick(EncodedSteps((7, tag, 8, tag, 9, 9, tag), (3, 6)), ["q", "a"])


def test_reading_elsewhere_takes_all_logits(tmp_path):
    plan = plan_pooling(tmp_path, make_prm(BEFORE, tmp_path))
    assert plan.serves
    assert plan.arguments["pooler_config"] == {"task": "token_classify", "tok_pooling_type": "ALL"}
    assert "hf_overrides" not in plan.arguments
    assert plan.pick(EncodedSteps((7, 8, 9), (0, 2)), ["a", "b", "c"]) == ["a", "c"]


def test_what_is_not_served_says_why(tmp_path):
    bound = make_prm(BEFORE, tmp_path)
    other = BoundStepFormat(StepFormat("x", prm=TAG), bound.tokenizer)
    plan = plan_pooling(tmp_path, other)
    assert not plan.serves
    assert "no causal language model" in plan.reason
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("score.", "v_head.summary."): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    assert "trl's names" in plan_pooling(tmp_path, bound).reason
    with pytest.raises(ConfigError, match=r"trl's names.*Score in process"):
        VLLMScorer(tmp_path, bound)


@pytest.mark.vllm
@pytest.mark.parametrize("prm", [TAG, BEFORE], ids=["label tokens at the tag", "token head before the tag"])
def test_scores_are_those_of_the_in_process_scorer(prm, tmp_path):
    pytest.importorskip("vllm")
    bound = make_prm(prm, tmp_path)
    problems = [TASK.problem("train", number) for number in range(6)]

    async def scores(scorer):
        return await asyncio.gather(
            *(scorer.score(p.question, bound.split_text(p.solution)[: n + 1]) for n, p in enumerate(problems))
        )

    wanted = asyncio.run(scores(PRMScorer(PRMModel.from_pretrained(tmp_path))))
    with VLLMScorer(tmp_path, bound, replace(CPU_TRIAL, weight_updates=False)) as scorer:
        found = asyncio.run(scores(scorer))
        for ours, theirs in zip(wanted, found, strict=True):
            assert theirs.values == pytest.approx(ours.values, abs=1e-4)
        with pytest.raises(ConfigError, match=r"score\.steps"):
            asyncio.run(scorer.score("1", ["2" * 300]))
        assert asyncio.run(scorer.score("1", [])).values == ()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_scores_for_the_http_scorer(tmp_path):
    pytest.importorskip("vllm")
    bound = make_prm(TAG, tmp_path)
    plan = plan_pooling(tmp_path, bound, every_token=True)
    options = replace(CPU_TRIAL, weight_updates=False)
    wanted = PRMScorer(PRMModel.from_pretrained(tmp_path))
    with (
        VLLMServer(tmp_path, bound, options, startup=1800, more=plan.arguments) as server,
        HTTPScorer(HttpScorerConfig(endpoints=[server.url]), bound) as scorer,
    ):
        for number in range(4):
            problem = TASK.problem("train", number)
            steps = bound.split_text(problem.solution)
            ours = asyncio.run(wanted.score(problem.question, steps))
            theirs = asyncio.run(scorer.score(problem.question, steps))
            assert theirs.values == pytest.approx(ours.values, abs=1e-4)
