"""The promises of `prmkit.engines.contract`, kept by every engine that needs no server."""

import asyncio

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from prmkit.engines import HFEngine, ScriptedEngine
from prmkit.engines.contract import ENGINE_CHECKS
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import GenerationRequest
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()


def hf_engine(bound):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(bound.tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return HFEngine(Qwen2ForCausalLM(config), bound, max_rows=8, weight_version=3)


def scripted_engine(bound):
    def script(prefix: str, index: int, seed: int) -> str:
        return "".join("abc="[(index + seed // 1024 + n) % 4] + "\n" * (n % 5 == 4) for n in range(len(prefix), 40))

    return ScriptedEngine(bound, script, weight_version=3, logprob=-0.5)


@pytest.mark.parametrize("make", [hf_engine, scripted_engine])
@pytest.mark.parametrize("check", ENGINE_CHECKS)
def test_engine_keeps(check, make):
    bound = BoundStepFormat(TASK.step_format, TASK.tokenizer())
    prompts = [bound.prompt_ids(TASK.problem("train", n).question) for n in range(5)]
    asyncio.run(check(make(bound), prompts))


class Chatty(ScriptedEngine):
    """Breaks a promise: goes on behind the stop string."""

    async def generate(self, request):
        return await super().generate(GenerationRequest(request.prompt_ids, request.n, request.seed))


class Moody(ScriptedEngine):
    """Breaks a promise: says something else every time."""

    async def generate(self, request):
        return await super().generate(
            GenerationRequest(request.prompt_ids, request.n, request.seed + 1024 * self.stats.requests, request.params)
        )


@pytest.mark.parametrize(("check", "kind"), [("check_completions", Chatty), ("check_repeatable", Moody)])
def test_checks_notice_a_broken_promise(check, kind):
    bound = BoundStepFormat(TASK.step_format, TASK.tokenizer())
    engine = kind(bound, lambda prefix, index, seed: "ab\nc" * 3 + "xyz"[seed // 1024 % 3])
    prompts = [bound.prompt_ids("a+1,2")]
    (wanted,) = (known for known in ENGINE_CHECKS if known.__name__ == check)
    with pytest.raises(AssertionError, match=r"; got "):
        asyncio.run(wanted(engine, prompts))
