"""Servers on loopback, with a tiny real policy and PRM behind them, that can be told to fail."""

import asyncio
import json
import threading

import pytest
import torch
from aiohttp import web
from transformers import Qwen2Config, Qwen2ForCausalLM

from prmkit.engines import HFEngine
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.spec import StepFormat
from prmkit.models.prm import PRMModel
from prmkit.scoring import PRMScorer
from prmkit.serving.app import ServedModel, make_app
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()


def tiny_model(vocabulary, seed=0):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


class LiveServer:
    """A server in a thread of its own. A context manager.

    Attributes:
        url: its address, the same after `stop` and `start`.
        bodies: what was posted to it.
        busiest: most requests in work at once.
        faults: called one after the other with (request, reply) for each POST, each once; what they return is sent.
        always: likewise, for every POST behind the others.
    """

    def __init__(self, policy=None, prm=None, **options):
        self.policy, self.prm, self.options = policy, prm, options
        self.bodies, self.faults, self.always = [], [], None
        self.busiest = self._in_work = self._port = 0

    def start(self):
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def stop(self):
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    __enter__ = start

    def __exit__(self, *_):
        if self._thread.is_alive():
            self.stop()

    async def _main(self, ready):
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        app = make_app(self.policy, self.prm, **self.options)
        app.middlewares.insert(0, self._fault)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"
        ready.set()
        await self._stopped.wait()
        await runner.cleanup()

    @property
    def _fault(self):
        @web.middleware
        async def middleware(request, handler):
            if request.method == "GET":
                return await handler(request)
            self.bodies.append(json.loads(await request.read()))
            self._in_work += 1
            self.busiest = max(self.busiest, self._in_work)
            fault = self.faults.pop(0) if self.faults else self.always
            try:
                return await handler(request) if fault is None else await fault(request, handler)
            finally:
                self._in_work -= 1

        return middleware


def _change(edit):
    """A fault that edits the body of a reply."""

    async def fault(request, handler):
        reply = await handler(request)
        value = json.loads(reply.body)
        edit(value)
        return web.json_response(value)

    return fault


def _status(status, headers=None):
    async def fault(request, handler):
        return web.json_response({"error": {"message": "as told"}}, status=status, headers=headers)

    return fault


async def _drop(request, handler):
    request.transport.abort()
    return await handler(request)


async def _half(request, handler):
    """A reply that breaks off: less is sent than was announced."""
    reply = web.StreamResponse(headers={"Content-Length": "1000"})
    await reply.prepare(request)
    await reply.write(b'{"choices": [')
    request.transport.abort()
    return reply


async def _garbage(request, handler):
    return web.Response(text="<html>gateway</html>")


def _slow(seconds):
    async def fault(request, handler):
        await asyncio.sleep(seconds)
        return await handler(request)

    return fault


@pytest.fixture(scope="session")
def faults():
    """Things that go wrong, by name; `change`, `status` and `slow` are told what."""
    return {"drop": _drop, "half": _half, "garbage": _garbage, "change": _change, "status": _status, "slow": _slow}


@pytest.fixture(scope="session")
def bound():
    return BoundStepFormat(TASK.step_format, TASK.tokenizer())


@pytest.fixture(scope="session")
def prompts(bound):
    return [bound.prompt_ids(TASK.problem("train", n).question) for n in range(5)]


@pytest.fixture(scope="session")
def make_engine(bound):
    return lambda seed=0: HFEngine(tiny_model(len(bound.tokenizer), seed), bound, max_rows=8, weight_version=3)


@pytest.fixture(scope="session")
def make_scorer():
    def make(**fields):
        fmt = BoundStepFormat(StepFormat(prm=fields.pop("prm")), TASK.tokenizer())
        return PRMScorer(PRMModel(tiny_model(len(fmt.tokenizer)), fmt).eval())

    return make


@pytest.fixture
def policy_server(make_engine):
    """Makes servers of the tiny policy."""
    running = []

    def make(name="tiny", weights="w0", seed=0, engine=None, **options):
        served = make_engine(seed) if engine is None else engine
        server = LiveServer(ServedModel(name, weights, 3, served), **options).start()
        running.append(server)
        return server

    yield make
    for server in running:
        server.__exit__()


@pytest.fixture
def prm_server():
    """Makes servers of a scorer."""
    running = []

    def make(scorer, **options):
        server = LiveServer(prm=ServedModel("prm", "w1", 0, scorer), **options).start()
        running.append(server)
        return server

    yield make
    for server in running:
        server.__exit__()
