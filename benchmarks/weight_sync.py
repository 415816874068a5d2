"""Weights that are trained here and sent to vLLM: how well the two agree afterwards, and what an update costs.

    python benchmarks/weight_sync.py [--updates 20] [--forms in_process server] [--cases tied_head adapters]
                                     [--interpreter PYTHON]

A small policy takes optimiser steps; after each its weights go to a vLLM that was started without any, which samples at
temperature 0.8. Compared are the log-probabilities that vLLM gives its samples with those of a forward pass of the
module under training. Needs vLLM in this environment for the form in_process, and for the form server in that of
--interpreter (this one by default). Cases: all weights trained, with a tied head; adapters on a head of its own.

Written to results/weight_sync.json, where what other calls found stays:

- weight_sync_max_logprob_error: largest difference of a token's log-probability after any update, over all cases.
- by_case: for every form and case that maximum; stale_logprob_error, the least over updates of the largest difference
  before the weights are sent, which is what would be seen if an update were lost; tokens compared; seconds an update
  (median) and megabytes sent.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _environment import RESULTS, write_result
from torch import Tensor

from prmkit.engines.config import HttpEngineConfig
from prmkit.engines.remote.http import HTTPEngine
from prmkit.engines.vllm.engine import VLLMEngine
from prmkit.engines.vllm.options import CPU_TRIAL
from prmkit.engines.vllm.server import VLLMServer, vllm_version_of
from prmkit.engines.vllm.weight_sync import SyncReport, iter_weights
from prmkit.formats.bound import BoundStepFormat
from prmkit.io import read_json
from prmkit.models import LoraSpec, ModelSource, build_policy
from prmkit.records import Completion, GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

TEMPERATURE = 0.8
TASK = AccumulatorTask()
BOUND = BoundStepFormat(TASK.step_format, TASK.tokenizer())
PROMPTS = [BOUND.prompt_ids(TASK.problem("train", number).question) for number in range(8)]
CASES: dict[str, dict[str, Any]] = {
    "tied_head": {"tied": True, "lora": None},
    "adapters": {"tied": False, "lora": LoraSpec(r=8)},
}


def make_policy(tied: bool, lora: LoraSpec | None) -> Any:
    config = {
        "model_type": "qwen2",
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "tie_word_embeddings": tied,
    }
    return build_policy(ModelSource(config=config, tokenizer="accumulator", lora=lora), BOUND.tokenizer)


def train_step(model: Any, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One step on the task's own solutions."""
    problems = [TASK.problem("train", 16 * number + n) for n in range(16)]
    rows = [[*BOUND.prompt_ids(p.question), *BOUND.solution_ids(p.solution or "")] for p in problems]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [BOUND.eos_id] * (longest - len(row)) for row in rows])
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def largest_error(model: Any, prompts: Sequence[tuple[int, ...]], samples: Sequence[list[Completion]]) -> float:
    """Largest difference between the samples' log-probabilities and those of a forward pass of the module."""
    worst = 0.0
    for prompt, group in zip(prompts, samples, strict=True):
        for sample in group:
            with torch.no_grad():
                logits: Tensor = model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1]
            wanted = (logits / TEMPERATURE).log_softmax(-1).gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            worst = max(worst, (torch.tensor(sample.logprobs) - wanted).abs().max().item())
    return worst


class InProcess:
    """vLLM in this process."""

    def __init__(self, folder: Path) -> None:
        self.engine: Any = VLLMEngine(folder, BOUND, OPTIONS)

    def update(self, model: Any, version: int) -> SyncReport:
        return self.engine.update_weights(iter_weights(model), version)

    def close(self) -> None:
        self.engine.close()


class Server:
    """vLLM as a server that is started here."""

    def __init__(self, folder: Path, interpreter: str) -> None:
        self.server = VLLMServer(folder, BOUND, OPTIONS, interpreter=interpreter, startup=1800)
        self.engine: Any = HTTPEngine(HttpEngineConfig(endpoints=[self.server.url]), BOUND)

    def update(self, model: Any, version: int) -> SyncReport:
        report = self.server.update_weights(iter_weights(model), version)
        self.engine.weight_version = version
        return report

    def close(self) -> None:
        self.engine.close()
        self.server.close()


OPTIONS = replace(CPU_TRIAL, extra={"load_format": "dummy"})


@contextmanager
def opened(form: str, model: Any, interpreter: str) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        vllm = InProcess(Path(folder)) if form == "in_process" else Server(Path(folder), interpreter)
        try:
            yield vllm
        finally:
            vllm.close()


def measure(form: str, case: str, updates: int, interpreter: str) -> dict[str, Any]:
    model = make_policy(**CASES[case])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    params = SamplingParams(max_tokens=48, temperature=TEMPERATURE)

    async def sample(engine: Any, seed: int) -> list[list[Completion]]:
        requests = [GenerationRequest(p, 4, 1024 * (100 * seed + n), params) for n, p in enumerate(PROMPTS)]
        return await asyncio.gather(*map(engine.generate, requests))

    errors, stale, seconds, tokens, sent = [], [], [], 0, 0
    with opened(form, model, interpreter) as vllm:
        for version in range(1, updates + 1):
            train_step(model, optimizer, version)
            stale.append(largest_error(model, PROMPTS, asyncio.run(sample(vllm.engine, version))))
            report = vllm.update(model, version)
            samples = asyncio.run(sample(vllm.engine, version))
            assert {s.weight_version for group in samples for s in group} == {version}
            errors.append(largest_error(model, PROMPTS, samples))
            seconds.append(report.seconds)
            sent = report.bytes
            tokens += sum(len(s.token_ids) for group in samples for s in group)
    return {
        "updates": updates,
        "max_logprob_error": max(errors),
        "stale_logprob_error": min(stale),
        "tokens": tokens,
        "seconds_per_update": round(statistics.median(seconds), 3),
        "megabytes": round(sent / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--forms", nargs="+", choices=("in_process", "server"), default=["in_process", "server"])
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--interpreter", default=sys.executable)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    version = vllm_version_of(arguments.interpreter)
    for form, case in itertools.product(arguments.forms, arguments.cases):
        found = measure(form, case, arguments.updates, arguments.interpreter)
        print(form, case, found, flush=True)
        record(f"{form}/{case}", found, version)


def record(name: str, found: dict[str, Any], version: str) -> None:
    """Put an entry into the result file, beside those of other calls."""
    path = RESULTS / "weight_sync.json"
    before = read_json(path)["figures"]["by_case"] if path.is_file() else {}
    entries = {**before, name: found}
    worst = max(entry["max_logprob_error"] for entry in entries.values())
    figures = {"weight_sync_max_logprob_error": worst, "by_case": entries}
    print(write_result("weight_sync", figures, ("torch", "transformers"), vllm=version, dtype="float32"))


if __name__ == "__main__":
    main()
