"""A vLLM server of our own: it samples for the HTTP engine, takes weights, starts again, and ends with its owner."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prmkit.engines.config import HttpEngineConfig
from prmkit.engines.contract import ENGINE_CHECKS
from prmkit.engines.remote.http import HTTPEngine
from prmkit.engines.vllm.options import CPU_TRIAL
from prmkit.engines.vllm.server import VLLMServer
from prmkit.engines.vllm.weight_sync import iter_weights
from prmkit.errors import EngineLostError
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TASK = AccumulatorTask()
BOUND = BoundStepFormat(TASK.step_format, TASK.tokenizer())
PROMPTS = [BOUND.prompt_ids(TASK.problem("train", n).question) for n in range(5)]
OPTIONS = replace(CPU_TRIAL, extra={**CPU_TRIAL.extra, "load_format": "dummy"})


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.config.architectures = ["Qwen2ForCausalLM"]
    model.config.save_pretrained(path)
    return path


def logprob_error(engine, model):
    worst = 0.0
    for prompt in PROMPTS:
        request = GenerationRequest(prompt, 2, 1024, SamplingParams(max_tokens=16))
        for sample in asyncio.run(engine.generate(request)):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1]
            wanted = logits.log_softmax(-1).gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            worst = max(worst, (torch.tensor(sample.logprobs) - wanted).abs().max().item())
    return worst


def test_server_samples_takes_weights_and_starts_again(model, folder):
    with VLLMServer(folder, BOUND, OPTIONS) as server:
        with HTTPEngine(HttpEngineConfig(endpoints=[server.url]), BOUND) as engine:
            server.update_weights(iter_weights(model), 1)
            engine.weight_version = 1
            for check in ENGINE_CHECKS:
                asyncio.run(check(engine, PROMPTS))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.03)
            assert logprob_error(engine, model) > 0.01
            server.update_weights(iter_weights(model), 2)
            assert logprob_error(engine, model) < 1e-4

        def broken():
            yield next(iter(iter_weights(model)))
            raise OSError("the disk is full")

        before = server.url
        with pytest.raises(EngineLostError, match=r"disk is full.*started again"):
            server.update_weights(broken(), 3)
        assert server.alive
        server.update_weights(iter_weights(model), 4)
        assert server.url == before  # whoever asks it goes on
        with HTTPEngine(HttpEngineConfig(endpoints=[server.url]), BOUND) as engine:
            assert logprob_error(engine, model) < 1e-4
    assert not server.alive


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    pytest.importorskip("vllm")
    log = tmp_path / "server.log"
    with pytest.raises(EngineLostError, match=r"ended before it answered(?s:.*)no-such-model"):
        VLLMServer(tmp_path / "no-such-model", BOUND, OPTIONS, log=log)
    assert "no-such-model" in log.read_text()


OWNER = """
import sys, time
from prmkit.engines.vllm.server import VLLMServer
from tests_server import BOUND, OPTIONS
server = VLLMServer(sys.argv[1], BOUND, OPTIONS)
print(server._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_owner_leaves_no_server(folder, tmp_path):
    (tmp_path / "tests_server.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path[:], str(tmp_path)])}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        assert len(members(group)) > 2  # the guard, the server, its engine
        os.kill(owner.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while members(group) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not members(group)
    finally:
        owner.kill()
        owner.wait()


def members(group: int) -> list[int]:
    """Processes of a group that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, in_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(in_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found
