"""The engine over HTTP against real servers on loopback that can be told to fail."""

import asyncio
import time
from dataclasses import replace

import pytest

from prmkit.engines.config import HttpEngineConfig
from prmkit.engines.contract import ENGINE_CHECKS
from prmkit.engines.http import HTTPEngine
from prmkit.errors import ConfigError, EngineLostError, ServerError
from prmkit.types import GenerationRequest, SamplingParams

QUICK = {"backoff": 0.01, "probe_every": 0.1, "patience": 5.0, "timeout": 20.0}


@pytest.fixture
def connect(bound):
    opened = []

    def make(*servers, logprobs=True, fmt=None, **options):
        config = HttpEngineConfig([getattr(s, "url", s) for s in servers], **{**QUICK, **options})
        opened.append(HTTPEngine(config, fmt or bound, logprobs=logprobs))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def requests_of(prompts, **params):
    return [
        GenerationRequest(p, n=3, seed=1024 * i, params=SamplingParams(max_tokens=24, stop=("\n",), **params))
        for i, p in enumerate(prompts * 2)
    ]


def run(engine, requests):
    async def main():
        return await asyncio.gather(*map(engine.generate, requests))

    return asyncio.run(main())


@pytest.mark.parametrize("check", ENGINE_CHECKS)
def test_keeps_the_promises_of_engines(check, policy_server, connect, prompts):
    asyncio.run(check(connect(policy_server()), prompts))


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 20}])
def test_samples_are_those_of_the_engine_in_process(params, policy_server, connect, make_engine, prompts):
    engine, requests = connect(policy_server()), requests_of(prompts, **params)
    expected = run(make_engine(), requests)
    assert run(engine, requests) == expected
    assert run(engine, requests[:2]) == expected[:2], "another event loop, the same connections"
    written = sum(len(c.token_ids) for found in [*expected, *expected[:2]] for c in found)
    assert (engine.stats.requests, engine.stats.generated_tokens) == (len(requests) + 2, written)
    assert engine.stats.prompt_tokens == sum(len(r.prompt_ids) for r in [*requests, *requests[:2]])
    assert engine.served.context == 128


def test_without_log_probabilities(policy_server, connect, make_engine, prompts):
    server, requests = policy_server(), requests_of(prompts)
    expected = [[replace(c, logprobs=()) for c in found] for found in run(make_engine(), requests)]
    assert run(connect(server, logprobs=False), requests) == expected
    assert all("logprobs" not in body for body in server.bodies)


@pytest.mark.parametrize("name", ["drop", "half", "garbage", "500", "503", "429"])
def test_faults_are_outlived(name, faults, policy_server, connect, make_engine, prompts):
    server = policy_server()
    engine = connect(server, dead_after=100)
    busy = faults["status"](429, {"Retry-After": "0.01"})
    fault = busy if name == "429" else faults["status"](int(name)) if name.isdigit() else faults[name]
    server.faults += [fault] * 7
    requests = requests_of(prompts)
    assert run(engine, requests) == run(make_engine(), requests)
    assert engine.client_stats.retries == 7
    assert engine.client_stats.busy == (7 if name == "429" else 0)
    assert engine.client_stats.deaths == 0


def test_a_reply_that_does_not_come_is_given_up(faults, policy_server, connect, make_engine, prompts):
    server = policy_server()
    engine = connect(server, timeout=1.0, retries=50, dead_after=100)
    server.faults.append(faults["slow"](3600.0))
    request = requests_of(prompts)[:1]
    assert run(engine, request) == run(make_engine(), request)
    assert engine.client_stats.retries >= 1


def test_a_refused_request_is_not_sent_again(policy_server, connect, prompts):
    server = policy_server()
    engine, sent = connect(server), len(server.bodies)
    with pytest.raises(ServerError, match=r"status 400: request\.prompt_ids"):
        run(engine, [GenerationRequest((10**6,))])
    assert len(server.bodies) == sent + 1
    with pytest.raises(ConfigError, match="at most 127 ids"):
        run(engine, [GenerationRequest(prompts[0] * 30)])
    (completion,) = run(engine, [GenerationRequest((prompts[0] * 30)[:125], params=SamplingParams(max_tokens=9))])[0]
    assert len(completion.token_ids) <= 3, "the context's end is the sample's"


def test_a_request_that_always_fails_ends_alone(faults, policy_server, connect, prompts):
    server = policy_server()
    engine = connect(server, retries=2, dead_after=100)
    server.faults += [faults["status"](500)] * 3
    with pytest.raises(ServerError, match="3 attempts failed, the last with: status 500: as told"):
        run(engine, [GenerationRequest(prompts[0])])
    assert run(engine, [GenerationRequest(prompts[0])])


def edit_choice(**fields):
    return lambda reply: reply["choices"][0].update(fields)


@pytest.mark.parametrize("text", [None, 7, "missing"])
def test_a_reply_without_text_is_never_a_step(faults, policy_server, connect, prompts, text):
    server = policy_server()
    engine = connect(server, prompts="text", logprobs=False)

    def edit(reply):
        reply["choices"][0]["text"] = text
        if text == "missing":
            del reply["choices"][0]["text"]

    server.faults += [faults["change"](edit)]
    with pytest.raises(ServerError, match=r"a choice has the text (None|7); expected a string"):
        run(engine, [GenerationRequest(prompts[0])])
    assert run(engine, [GenerationRequest(prompts[0])]), "only that request fails"


MISBUILT = [
    lambda reply: reply.update(choices=[None] * len(reply["choices"])),
    lambda reply: reply["choices"][0].update(index="first"),
    lambda reply: reply["choices"][0].update(logprobs=7),
    lambda reply: reply["choices"][0].update(logprobs={"content": [None]}, token_ids=None),
    lambda reply: reply.update(usage={"prompt_tokens_details": 7}),
]


@pytest.mark.parametrize("number", range(len(MISBUILT)))
def test_a_reply_of_another_build_is_one_clear_error(faults, policy_server, connect, prompts, number):
    server = policy_server()
    engine = connect(server)
    server.faults += [faults["change"](MISBUILT[number])]
    with pytest.raises(EngineLostError, match=r"http://.*: "):
        run(engine, [GenerationRequest(prompts[0], 3)])


DISHONOURED = {
    "ignores n": (lambda reply: reply.update(choices=reply["choices"][:1]), r"3 choices, got 1\..*split_samples"),
    "numbers": (edit_choice(index=1), "choices numbered 0 to 2"),
    "another model": (lambda reply: reply.update(model="large"), "got a reply of model 'large'"),
    "no ids": (
        lambda reply: [c.pop("token_ids") for c in reply["choices"]],
        "token ids in every choice.*prompts to text",
    ),
    "too long": (edit_choice(token_ids=[5] * 25), "1 to 24 tokens, got 25"),
    "cut off": (edit_choice(token_ids=[5], finish_reason="length"), "24 tokens in a sample that its length ended"),
    "half the log-probabilities": (edit_choice(logprobs={"token_logprobs": [-1.0]}), "log-probabilities, one a token"),
    "ignores stop": (lambda reply: _ignores_stop(reply), "samples that end at the stop strings"),
    "other stop": (lambda reply: _other_stop(reply), "end of sequence .* or a stop string.*--generation-config vllm"),
    "usage": (lambda reply: reply["usage"].update(completion_tokens=1), "completion tokens, those in the choices"),
    "no finish": (edit_choice(finish_reason=None), "finish_reason stop, length or abort"),
}


def _ignores_stop(reply):
    _ids(reply["choices"][0], NEWLINE + OTHER)


def _other_stop(reply):
    _ids(reply["choices"][0], OTHER)


def _ids(choice, ids):
    choice.update(token_ids=ids, finish_reason="stop", logprobs={"token_logprobs": [-1.0] * len(ids)})


NEWLINE, OTHER = [], []


@pytest.mark.parametrize("name", DISHONOURED)
def test_a_reply_that_does_not_honour_its_request_ends_the_run(name, faults, policy_server, connect, prompts, bound):
    NEWLINE[:], OTHER[:] = bound.encode_piece("\n"), bound.encode_piece("7")
    edit, message = DISHONOURED[name]
    server = policy_server()
    engine, sent = connect(server), len(server.bodies)

    def change(reply):
        edit(reply)
        if name in ("too long", "cut off", "half the log-probabilities", "ignores stop", "other stop"):
            reply["usage"]["completion_tokens"] = sum(len(c["token_ids"]) for c in reply["choices"])

    server.faults.append(faults["change"](change))
    with pytest.raises(EngineLostError, match=message):
        run(engine, [requests_of(prompts)[0]])
    assert len(server.bodies) == sent + 1


def test_samples_that_are_given_up_are_asked_for_again(faults, policy_server, connect, make_engine, prompts):
    server = policy_server()
    engine = connect(server)
    server.faults += [faults["change"](edit_choice(finish_reason="abort"))] * 2
    assert run(engine, requests_of(prompts)[:1]) == run(make_engine(), requests_of(prompts)[:1])


def test_servers_that_ignore_n(faults, policy_server, connect, make_engine, prompts):
    server = policy_server()
    server.always = faults["change"](lambda reply: reply.update(choices=reply["choices"][:1]))
    with pytest.raises(EngineLostError, match="split_samples"):
        connect(server)
    request = requests_of(prompts)[0]
    found = run(connect(server, split_samples=True), [request])[0]
    alone = [replace(request, n=1, seed=request.seed + i) for i in range(3)]
    assert found == [completion for (completion,) in run(make_engine(), alone)]


def test_servers_that_know_no_ids(policy_server, connect, make_engine, prompts):
    server, requests = policy_server(), requests_of(prompts)
    engine = connect(server, prompts="text", logprobs=False)
    assert run(engine, requests) == [[replace(c, logprobs=()) for c in found] for found in run(make_engine(), requests)]
    assert all(isinstance(body["prompt"], str) and "return_token_ids" not in body for body in server.bodies)
    with pytest.raises(ConfigError, match="ids, where log-probabilities are needed"):
        connect(server, prompts="text")


def test_log_probabilities_of_another_distribution_are_refused(faults, policy_server, connect, prompts):
    def raw(reply):
        for choice in reply["choices"]:
            choice["logprobs"]["token_logprobs"] = [-0.5] * len(choice["token_ids"])

    server = policy_server()
    server.always = faults["change"](raw)
    engine = connect(server)
    run(engine, requests_of(prompts))
    with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
        run(engine, requests_of(prompts, temperature=0.7))


def test_one_of_two_endpoints_dies_and_comes_back(policy_server, connect, make_engine, prompts):
    one, two = policy_server(), policy_server()
    engine, requests = connect(one, two, dead_after=2), requests_of(prompts) * 4
    expected = run(make_engine(), requests)

    async def main():
        tasks = [asyncio.ensure_future(engine.generate(request)) for request in requests]
        await asyncio.wait(tasks[:3], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(one.stop)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == expected
    run(engine, requests[:8])
    assert [endpoint.alive for endpoint in engine.endpoints] == [False, True]
    one.start()
    deadline = time.monotonic() + 20
    while not engine.endpoints[0].alive and time.monotonic() < deadline:
        time.sleep(0.02)
    before = engine.endpoints[0].requests
    assert run(engine, requests) == expected
    assert engine.endpoints[0].requests > before


def test_a_run_waits_for_its_only_endpoint_but_not_for_ever(policy_server, connect, make_engine, prompts):
    server = policy_server()
    engine = connect(server, dead_after=1, patience=30.0)
    server.stop()

    async def main():
        task = asyncio.ensure_future(engine.generate(requests_of(prompts)[0]))
        await asyncio.sleep(0.3)
        assert not task.done()
        await asyncio.to_thread(server.start)
        return await task

    assert [asyncio.run(main())] == run(make_engine(), requests_of(prompts)[:1])
    impatient = connect(server, dead_after=1, patience=0.3)
    server.stop()
    with pytest.raises(EngineLostError, match=rf"no endpoint has answered for 0\.3 s: {server.url}: .*goes on where"):
        run(impatient, requests_of(prompts))


def test_endpoints_are_asked_before_work_begins(policy_server, connect, bound, prompts):
    server, dead = policy_server(), policy_server()
    dead.stop()
    with pytest.raises(EngineLostError, match=rf"no endpoint answers: {dead.url}: .*prm serve"):
        connect(dead)
    assert [endpoint.alive for endpoint in connect(server, dead).endpoints] == [True, False]
    with pytest.raises(ConfigError, match=r"http\.model: got 'large'; accepted: one of tiny"):
        connect(server, model="large")
    other = policy_server(weights="w9", seed=9)
    with pytest.raises(ConfigError, match="servers of the same model"):
        connect(server, other)
    swapped = type(bound)(bound.spec, _shifted(bound.tokenizer))
    with pytest.raises(ConfigError, match="a server with the policy's tokenizer"):
        connect(server, fmt=swapped)
    locked = policy_server(api_key="secret")
    with pytest.raises(EngineLostError, match="401"):
        connect(locked)


class _shifted:
    """A tokenizer that reads every id as its neighbour's text."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, ids, **options):
        return self._tokenizer.decode([i + 1 if 10 < i < 30 else i for i in ids], **options)


def test_bearer_token(policy_server, connect, monkeypatch):
    server = policy_server(api_key="secret")
    monkeypatch.setenv("A_KEY", "secret")
    assert connect(server, api_key_env="A_KEY").served.model == "tiny"
    with pytest.raises(ConfigError, match=r"http\.api_key_env: got 'NO_SUCH_KEY'"):
        connect(server, api_key_env="NO_SUCH_KEY")


def test_concurrency_is_bounded_and_used(policy_server, connect, prompts):
    server = policy_server()
    run(connect(server, concurrency=3), requests_of(prompts) * 3)
    assert server.busiest == 3


def test_a_busy_server_says_so(policy_server, connect, make_engine, prompts):
    server = policy_server(max_waiting=2)
    engine = connect(server, backoff=0.01)
    server.policy.worker.stats.requests = 0
    requests = requests_of(prompts)[:5]
    assert run(engine, requests) == run(make_engine(), requests)
    assert engine.client_stats.busy > 0


def test_giving_up_takes_the_samples_out_of_the_servers_batch(policy_server, connect, bound):
    server = policy_server()
    engine = connect(server)
    engine_there = server.policy.worker

    async def main():
        params = SamplingParams(max_tokens=100)
        task = asyncio.ensure_future(engine.generate(GenerationRequest(bound.prompt_ids("1"), n=400, params=params)))
        while engine_there.stats.decode_steps == 0:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    engine_there.stats.decode_steps = 0
    asyncio.run(main())
    run(engine, [GenerationRequest(bound.prompt_ids("1"), params=SamplingParams(max_tokens=4))])
    assert engine_there.stats.generated_tokens < 400 * 20
