"""The same client against a real vLLM server: run with `-m slow` and PRMKIT_VLLM_PYTHON naming an interpreter that has
vLLM, in whatever environment."""

import asyncio
import json
import os
import socket
import subprocess
from contextlib import contextmanager

import pytest
import torch

from prmkit.engines.config import HttpEngineConfig
from prmkit.engines.contract import ENGINE_CHECKS
from prmkit.engines.remote.http import HTTPEngine
from prmkit.errors import ConfigError
from prmkit.formats.spec import PRMFormat, StepFormat
from prmkit.models import PRMModel, load_policy, save_policy
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.scoring import PRMScorer
from prmkit.scoring.config import HttpScorerConfig
from prmkit.scoring.http import HTTPScorer
from prmkit.tasks.accumulator import AccumulatorTask

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PRMKIT_VLLM_PYTHON" not in os.environ, reason="PRMKIT_VLLM_PYTHON is not set"),
]

TASK = AccumulatorTask()


@pytest.fixture(scope="module")
def folder(bound, tmp_path_factory):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(
        vocab_size=len(bound.tokenizer),
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=bound.eos_id,
        bos_token_id=None,
        **sizes,
    )
    root = tmp_path_factory.mktemp("vllm")
    save_policy(Qwen2ForCausalLM(config).eval(), bound.tokenizer, bound, root / "policy")
    bound.tokenizer.save_pretrained(root / "tokenizer")
    return root


@contextmanager
def vllm(root, *arguments):
    """A server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [os.environ["PRMKIT_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(root / "policy"), "--tokenizer", str(root / "tokenizer"), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(64 << 20), "--max-num-batched-tokens", "65536", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def test_policy(folder, bound, prompts):
    modes = ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    with vllm(folder, *modes) as url, HTTPEngine(HttpEngineConfig([url], startup=300.0), bound) as engine:
        assert (engine.served.model, engine.served.context) == ("tiny", 512)
        for check in ENGINE_CHECKS:
            asyncio.run(check(engine, prompts))
        model = load_policy(folder / "policy").model
        for temperature in (1.0, 0.7):
            params = SamplingParams(max_tokens=30, temperature=temperature)
            request = GenerationRequest(prompts[0], n=8, seed=1024, params=params)
            completions = asyncio.run(engine.generate(request))
            for completion in completions:
                ids = torch.tensor([[*prompts[0], *completion.token_ids]])
                with torch.no_grad():
                    logits = model(ids).logits[0, len(prompts[0]) - 1 : -1] / temperature
                wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
                assert torch.tensor(completion.logprobs) == pytest.approx(wanted, abs=1e-4)
        with HTTPEngine(HttpEngineConfig([url], split_samples=True), bound) as split:
            assert asyncio.run(split.generate(request)) == completions, "child i has the seed `seed + i`"


def test_log_probabilities_before_temperature_are_noticed(folder, bound, prompts):
    with vllm(folder, "--generation-config", "vllm") as url:
        config = HttpEngineConfig([url], startup=300.0)
        params = SamplingParams(max_tokens=4, temperature=0.5)
        request = GenerationRequest(prompts[0], params=params)
        with HTTPEngine(config, bound) as engine, pytest.raises(ConfigError, match="processed_logprobs"):
            asyncio.run(engine.generate(request))


def test_prm(folder):
    overrides = {"classifier_from_token": ["-", "+"], "method": "no_post_processing"}
    pooling = ["--runner", "pooling", "--convert", "classify", "--pooler-config", '{"task": "token_classify"}']
    formats = [
        PRMFormat(),
        PRMFormat(read="before_tag", tag="+", after_step="\n"),
        PRMFormat(tag="", after_step="\n", read="step_end"),
    ]
    with vllm(folder, *pooling, "--hf-overrides", json.dumps(overrides)) as url:
        for fields in formats:
            model = PRMModel.from_pretrained(folder / "policy", StepFormat(prm=fields))
            with HTTPScorer(HttpScorerConfig([url], startup=300.0), model.format) as scorer:
                for problem in TASK.problems("train", 5):
                    steps = TASK.demonstration(problem, 1).split("\n")
                    theirs = asyncio.run(scorer.score(problem.question, steps))
                    ours = asyncio.run(PRMScorer(model).score(problem.question, steps))
                    assert theirs.values == pytest.approx(ours.values, abs=1e-4)
