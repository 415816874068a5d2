"""Tokens per second of the HTTP engine over those of the same server under a bare load generator.

    python benchmarks/http_engine.py [--vllm_python PATH] [--quick] [--requests 96] [--samples 8] [--repeats 5]

One server of a small random policy on loopback: vLLM of the environment that PATH belongs to, or `prm serve` where
none is named. Two clients take turns at it, with the same requests, each sample of up to 64 tokens:

- bare: bodies made beforehand, as many in flight as the server can hold; of a reply only its usage is read.
- engine: `HTTPEngine.generate` from as many coroutines as there are requests, its replies checked, ids and
  log-probabilities read, texts decoded.

Prompts and seeds are new in every repeat; the first repeat warms up and is not counted. Written to
results/http_engine.json:

- http_engine_vs_server_bench: median over repeats of engine over bare, both asking for ids and log-probabilities.
- without_logprobs: the same with neither asking for log-probabilities, as annotation does.
- range: lowest and highest repeat of each; tokens_per_second: medians of both sides.
- client_microseconds_per_token: processor time of each client, threads together; says what the engine costs where the
  machine is busy with other things.
- vllm_bench_tokens_per_second: `vllm bench serve` on that server, where it runs: one streamed sample a request, so
  not the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from _environment import write_result
from generation import demo_model

from prmkit.engines.config import HttpEngineConfig
from prmkit.engines.remote.http import HTTPEngine
from prmkit.engines.remote.protocol import ask_for
from prmkit.formats.bound import BoundStepFormat
from prmkit.models import save_policy
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

NAME = "policy"
TOKENS = 64
ROWS = 128


@dataclass(frozen=True)
class Server:
    """A running server: its address, and the interpreter of vLLM's environment, None for `prm serve`."""

    url: str
    python: str | None


@contextmanager
def running(python: str | None, folder: Path, tokenizer: Path, port: int) -> Iterator[Server]:
    """The server, until the block ends."""
    environment = dict(os.environ)
    if python is None:
        command = [sys.executable, "-m", "prmkit.cli", "serve", "--policy", str(folder), "--policy_name", NAME]
        command += ["--port", str(port), "--engine.max_rows", str(ROWS)]
    else:
        environment.pop("PYTHONPATH", None)
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment |= {"VLLM_NO_USAGE_STATS": "1"}
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--tokenizer"]
        command += [str(tokenizer), "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20)]
        command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--max-num-seqs", str(ROWS)]
        # A prompt that is read in two parts ends vLLM 0.32 on a CPU when its request has a seed.
        command += ["--max-num-batched-tokens", "65536"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Server(f"http://127.0.0.1:{port}", python)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def requests_of(bound: BoundStepFormat, count: int, samples: int, repeat: int) -> list[GenerationRequest]:
    """New prompts and seeds for every repeat."""
    problems = AccumulatorTask().problems("train", count, repeat * count)
    params = SamplingParams(max_tokens=TOKENS)
    return [
        GenerationRequest(bound.prompt_ids(p.question), samples, (repeat * count + i) * 1024, params)
        for i, p in enumerate(problems)
    ]


async def bare(url: str, bodies: Sequence[bytes], in_flight: int) -> tuple[int, float]:
    """Tokens and seconds of a client that does as little as it can."""
    room = asyncio.Semaphore(in_flight)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def one(body: bytes) -> int:
            async with room, session.post(f"{url}/v1/completions", data=body) as response:
                reply: dict[str, Any] = json.loads(await response.read())
                if response.status != 200:
                    raise RuntimeError(f"status {response.status}: {reply}")
                return int(reply["usage"]["completion_tokens"])

        start = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(one, bodies)))
        return tokens, time.perf_counter() - start


async def ours(engine: HTTPEngine, requests: Sequence[GenerationRequest]) -> tuple[int, float]:
    """Tokens and seconds of the engine."""
    start = time.perf_counter()
    found = await asyncio.gather(*map(engine.generate, requests))
    seconds = time.perf_counter() - start
    return sum(len(completion.token_ids) for completions in found for completion in completions), seconds


def compare(server: Server, bound: BoundStepFormat, args: argparse.Namespace, logprobs: bool) -> dict[str, Any]:
    """Both sides in turns."""
    in_flight = -(-2 * ROWS // args.samples)  # twice what the server decodes together: there is always more to take
    config = HttpEngineConfig([server.url], startup=300.0, concurrency=in_flight)
    rates: dict[str, list[float]] = {"bare": [], "engine": []}
    cpu: dict[str, list[float]] = {"bare": [], "engine": []}
    with HTTPEngine(config, bound, logprobs=logprobs) as engine:
        for repeat in range(args.repeats + 1):
            for side in ("bare", "engine") if repeat % 2 else ("engine", "bare"):
                number = 2 * repeat + (side == "engine")
                requests = requests_of(bound, args.requests, args.samples, number + 100 * logprobs)
                before = time.process_time()
                if side == "engine":
                    tokens, seconds = asyncio.run(ours(engine, requests))
                else:
                    asked = [ask_for(r, NAME, context=engine.served.context, logprobs=logprobs) for r in requests]
                    bodies = [json.dumps(one.body).encode() for one in asked]
                    before = time.process_time()
                    tokens, seconds = asyncio.run(bare(server.url, bodies, in_flight))
                if repeat:
                    rates[side].append(tokens / seconds)
                    cpu[side].append((time.process_time() - before) / tokens * 1e6)
                    print(f"  {side:7}{tokens / seconds:9.0f} tokens/s", flush=True)
    ratios = [a / b for a, b in zip(rates["engine"], rates["bare"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "tokens_per_second": {side: round(statistics.median(values)) for side, values in rates.items()},
        "client_microseconds": {side: round(statistics.median(values), 1) for side, values in cpu.items()},
    }


def vllm_bench(server: Server, tokenizer: Path, prompts: int) -> float | None:
    """Output tokens per second that vLLM's own benchmark client says; None where it cannot run."""
    if server.python is None:
        return None
    code = (
        "import argparse; from vllm.benchmarks.serve import add_cli_args, main\n"
        "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
    )
    command = [server.python, "-c", code, "--backend", "openai", "--base-url", server.url, "--model", NAME]
    command += ["--tokenizer", str(tokenizer), "--dataset-name", "random", "--random-input-len", "20"]
    command += ["--random-output-len", str(TOKENS), "--num-prompts", str(prompts), "--ignore-eos"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    found = re.search(r"Output token throughput \(tok/s\):\s+([\d.]+)", done.stdout)
    if found is None:
        print(f"vllm bench serve did not run: {done.stderr.strip().splitlines()[-1:]}")
    return float(found[1]) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm_python", help="interpreter of an environment with vLLM")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=8377)
    parser.add_argument("--quick", action="store_true", help="few requests, nothing written")
    args = parser.parse_args()
    if args.quick:
        args.requests, args.repeats = 24, 2
    task = AccumulatorTask()
    bound = BoundStepFormat(task.step_format, task.tokenizer())
    with tempfile.TemporaryDirectory() as place:
        folder, tokenizer = Path(place) / "policy", Path(place) / "tokenizer"
        save_policy(demo_model(bound, 1e9, 1e9), bound.tokenizer, bound, folder)
        bound.tokenizer.save_pretrained(tokenizer)
        with running(args.vllm_python, folder, tokenizer, args.port) as server:
            print("with log-probabilities")
            whole = compare(server, bound, args, logprobs=True)
            print("without")
            bare_ids = compare(server, bound, args, logprobs=False)
            benched = vllm_bench(server, tokenizer, args.requests * args.samples)
    figures = {
        "http_engine_vs_server_bench": whole["ratio"],
        "without_logprobs": bare_ids["ratio"],
        "range": {"http_engine_vs_server_bench": whole["range"], "without_logprobs": bare_ids["range"]},
        "tokens_per_second": {"with_logprobs": whole["tokens_per_second"], "without": bare_ids["tokens_per_second"]},
        "client_microseconds_per_token": {
            "with_logprobs": whole["client_microseconds"],
            "without": bare_ids["client_microseconds"],
        },
        "vllm_bench_tokens_per_second": benched,
    }
    print(json.dumps(figures, indent=2))
    if not args.quick:
        settings = {name: getattr(args, name) for name in ("requests", "samples", "repeats")}
        kind = "prm serve" if args.vllm_python is None else f"vLLM {_vllm_version(args.vllm_python)}"
        print(write_result("http_engine", figures, ("torch", "aiohttp"), server=kind, settings=settings))


def _vllm_version(python: str) -> str:
    code = (
        "import importlib.metadata as m\n"
        "for name in ('vllm', 'vllm-cpu'):\n"
        "    try: print(m.version(name)); break\n"
        "    except m.PackageNotFoundError: pass"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip()


if __name__ == "__main__":
    main()
