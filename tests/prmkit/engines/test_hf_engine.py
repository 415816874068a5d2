import asyncio
import random
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from prmkit.engines import HFEngine
from prmkit.engines.inprocess import rows
from prmkit.engines.inprocess.lanes import Lanes
from prmkit.engines.inprocess.sampling import sample_keys, uniforms
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
BOUND = BoundStepFormat(TASK.step_format, TASK.tokenizer())
PROMPTS = [BOUND.prompt_ids(TASK.problem("train", n).question) for n in range(12)]


def policy(seed=0, **change):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(BOUND.tokenizer), **sizes | change)).eval()


def run(engine, *requests):
    async def main():
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    return asyncio.run(main())


def request(n=0, samples=1, seed=0, **params):
    return GenerationRequest(PROMPTS[n], n=samples, seed=seed, params=SamplingParams(**params))


@torch.no_grad()
def twin(model, wanted, index):
    """The same sample written slowly: the model's own forward of the whole prefix for every token."""
    params, ids = wanted.params, list(wanted.prompt_ids)
    key = sample_keys(torch.tensor([wanted.seed]), torch.tensor([index]))
    logprobs = []
    while len(ids) < len(wanted.prompt_ids) + params.max_tokens:
        logits = model(torch.tensor([ids])).logits[0, -1].double() / (params.temperature or 1.0)
        logp = torch.log_softmax(logits, -1)
        if params.temperature and params.top_k:
            logp = logp.masked_fill(logp < logp.topk(params.top_k).values[-1], -torch.inf).log_softmax(-1)
        if params.temperature == 0:
            token = int(logp.argmax())
        else:
            u = float(uniforms(key, torch.tensor([len(ids)])))
            token = int((logp.exp().cumsum(-1) <= u).sum())
        ids.append(token)
        logprobs.append(float(logp[token]))
        text = BOUND.decode(ids[len(wanted.prompt_ids) :])
        if token == BOUND.eos_id or any(stop in text for stop in params.stop):
            break
    return tuple(ids[len(wanted.prompt_ids) :]), logprobs


@pytest.mark.parametrize(
    "model", [policy(), policy(tie_word_embeddings=False), policy(use_sliding_window=True, sliding_window=150)]
)
def test_samples_equal_a_slow_twin(model):
    requests = [
        request(0, 3, seed=5, max_tokens=30),
        request(1, 2, seed=6, max_tokens=40, temperature=0.6, stop=("\n",)),
        request(2, 2, seed=7, max_tokens=25, temperature=1.4, top_k=4),
        request(3, 1, seed=8, max_tokens=20, temperature=0),
        request(4, 2, seed=-9, max_tokens=40, stop=("=", "+3")),
    ]
    for wanted, completions in zip(requests, run(HFEngine(model, BOUND, max_rows=4), *requests), strict=True):
        for index, completion in enumerate(completions):
            ids, logprobs = twin(model, wanted, index)
            assert completion.token_ids == ids
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-5)


def crowd(n=100):
    rng = random.Random(0)
    return [
        GenerationRequest(
            PROMPTS[rng.randrange(12)][: rng.randint(1, 18)],
            n=rng.randint(1, 3),
            seed=1024 * i,
            params=SamplingParams(
                max_tokens=rng.randint(1, 60),
                temperature=rng.choice([0.0, 0.7, 1.0, 1.0]),
                top_k=rng.choice([0, 0, 5]),
                top_p=rng.choice([1.0, 1.0, 0.8]),
                stop=rng.choice([(), ("\n",), ("=",)]),
            ),
        )
        for i in range(n)
    ]


def alike(completions, others):
    """The same tokens, and the same log-probabilities to the last bit where products are MKL's."""
    if torch.backends.mkl.is_available():
        return completions == others
    pairs = list(zip(completions, others, strict=True))
    close = all(a.logprobs == pytest.approx(b.logprobs, abs=1e-6) for a, b in pairs)
    return close and all(a.token_ids == b.token_ids for a, b in pairs)


DEMO = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 256}


@pytest.mark.parametrize("sizes", [{}, DEMO], ids=["small", "demo"])
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_samples_do_not_depend_on_company_by_a_bit(threads, sizes):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, asked = policy(**sizes), request(0, 3, seed=77, max_tokens=100)
        alone = run(HFEngine(model, BOUND), asked)[0]
        others = crowd()
        for max_rows, cache in ((1, 65536), (24, 65536), (128, 0), (128, 50)):
            engine = HFEngine(model, BOUND, max_rows=max_rows, cache_tokens=cache, prefill_tokens=64)
            amid = others[: 12 if max_rows == 1 else 100]
            assert alike(run(engine, *amid[:50], asked, *amid[50:])[min(50, len(amid))], alone)
    finally:
        torch.set_num_threads(before)


def test_what_samples_have_in_common_is_computed_once_and_no_bit_changes(monkeypatch):
    """Low temperatures, so that samples part late; stops that flag many tokens, so that parted ones rest and go on."""
    model = policy(**DEMO)
    asked = [request(n % 5, 24, n, max_tokens=40, temperature=0.05, stop=("=0", "+a", "zz")) for n in range(10)]
    engine = HFEngine(model, BOUND, max_rows=256)
    together = run(engine, *asked)
    assert all(map(alike, together, run(HFEngine(model, BOUND, max_rows=1), *asked)))
    assert len({completion.token_ids for each in together for completion in each}) > 30
    assert engine.stats.generated_tokens <= engine.stats.decode_rows
    assert engine.stats.computed_rows < engine.stats.decode_rows / 2
    # Requests for the same prompt are one lane, too.
    twins = HFEngine(model, BOUND)
    run(twins, *[request(0, 1, max_tokens=20, temperature=0)] * 64)
    assert twins.stats.computed_rows == 16 * twins.stats.decode_steps
    # As on a GPU: a lane a sample.
    monkeypatch.setattr(rows, "Lanes", lambda spec, samples, share: Lanes(spec, samples, share=not share))
    apart = HFEngine(model, BOUND, max_rows=150)
    assert all(map(alike, together, run(apart, *asked)))
    assert apart.stats.computed_rows >= apart.stats.decode_rows


def test_step_by_step_equals_one_go_by_a_bit_and_encodes_nothing_twice():
    model, prompt = policy(), PROMPTS[0]
    params = SamplingParams(max_tokens=90)
    (whole,) = run(HFEngine(model, BOUND), GenerationRequest(prompt, seed=3, params=params))[0]
    assert sum(whole.text.count(digit) for digit in "0123456789") >= 3
    engine = HFEngine(model, BOUND)
    ids, logprobs = (), ()
    while len(ids) < len(whole.token_ids):
        limit = SamplingParams(max_tokens=min(7, 90 - len(ids)), stop=tuple("0123456789"))
        (step,) = run(engine, *crowd(4), GenerationRequest((*prompt, *ids), seed=3, params=limit))[-1]
        ids, logprobs = (*ids, *step.token_ids), (*logprobs, *step.logprobs)
    assert alike([replace(whole, token_ids=ids, logprobs=logprobs)], [whole])
    encoded = engine.stats.prefill_tokens
    run(engine, GenerationRequest((*prompt, *ids[:-1]), n=4), GenerationRequest((*prompt, *ids[:20]), n=4))
    assert engine.stats.prefill_tokens == encoded


def test_counters():
    engine = HFEngine(policy(), BOUND, max_rows=16)
    completions = run(engine, request(0, 8, max_tokens=10), request(0, 4, seed=9, max_tokens=10), request(1, 2))
    stats = engine.stats
    assert stats.requests == 3
    assert stats.generated_tokens == sum(len(c.token_ids) for each in completions for c in each)
    shared = next(n for n in range(99) if PROMPTS[0][n] != PROMPTS[1][n])
    assert stats.prefill_tokens == len(PROMPTS[0]) - 1 + len(PROMPTS[1]) - 1 - shared
    assert stats.reused_tokens == len(PROMPTS[0]) - 1 + shared
    assert 1 <= stats.occupancy <= 14
    assert stats.decode_rows >= stats.generated_tokens


def test_rows_that_finish_make_room():
    """40 samples of length 3 or 30 on 16 rows: far fewer steps than in batches that wait for their longest."""
    requests = [request(n % 12, seed=n, max_tokens=30 if n % 8 == 0 else 3, stop=()) for n in range(40)]
    engine = HFEngine(policy(initializer_range=0.01), BOUND, max_rows=16)
    run(engine, *requests)
    assert engine.stats.decode_steps <= 45


def test_stop_strings_of_several_tokens():
    """Tokens that may complete one are frequent here, and mostly do not."""
    engine = HFEngine(policy(), BOUND)
    stops = (("\n\n", "=+"), ("a+",), ("zz", "="))
    found = set()
    for stop, each in zip(
        stops, run(engine, *(request(n, 20, seed=n, max_tokens=60, stop=s) for n, s in enumerate(stops))), strict=True
    ):
        for completion in each:
            assert completion.stop_reason == next((s for s in stop if completion.text.endswith(s)), None)
            assert not any(s in BOUND.decode(completion.token_ids[:-1]) for s in stop)
            found.add(completion.stop_reason)
    assert len(found) >= 3


def test_weights_are_a_copy_until_updated():
    model = policy()
    engine = HFEngine(model, BOUND, weight_version=4)
    asked = request(0, 4, seed=1, max_tokens=20)
    before = run(engine, asked)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert run(engine, asked)[0] == before
    engine.update_weights(None, 5)
    after = run(engine, asked)[0]
    assert after == run(HFEngine(model, BOUND, weight_version=5), asked)[0]
    assert [c.token_ids for c in after] != [c.token_ids for c in before]
    assert {c.weight_version for c in after} == {5}
    other = policy(seed=1)
    for source in (other, other.state_dict()):
        engine.update_weights(source, 6)
        assert run(engine, asked)[0] == run(HFEngine(other, BOUND, weight_version=6), asked)[0]
    untied = policy(seed=2, tie_word_embeddings=False)
    engine = HFEngine(policy(seed=3, tie_word_embeddings=False), BOUND)
    engine.update_weights(untied, 0)
    assert run(engine, asked)[0] == run(HFEngine(untied, BOUND), asked)[0]


def test_update_empties_the_cache():
    engine = HFEngine(policy(), BOUND)
    run(engine, request())
    encoded = engine.stats.prefill_tokens
    engine.update_weights(None, 1)
    run(engine, request())
    assert engine.stats.prefill_tokens == 2 * encoded


def test_update_amid_samples_is_refused():
    engine = HFEngine(policy(), BOUND)

    async def main():
        writing = asyncio.ensure_future(engine.generate(request(0, max_tokens=50)))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in flight"):
            engine.update_weights(None, 1)
        assert (await writing)[0].weight_version == 0
        engine.update_weights(None, 1)

    asyncio.run(main())


def test_bad_requests_fail_alone():
    engine = HFEngine(policy(), BOUND)

    async def main():
        return await asyncio.gather(
            engine.generate(GenerationRequest((5,) * 160)),
            engine.generate(GenerationRequest((5, len(BOUND.tokenizer)))),
            engine.generate(GenerationRequest((-1, 5))),
            engine.generate(request(max_tokens=5)),
            return_exceptions=True,
        )

    long, large, negative, good = asyncio.run(main())
    assert isinstance(long, ConfigError)
    assert str(long).startswith("request.prompt_ids: got '160 ids'; accepted: at most 159 ids")
    assert isinstance(large, ConfigError)
    assert isinstance(negative, ConfigError)
    assert len(good) == 1


def test_the_context_ends_a_sample():
    model = policy()
    with torch.no_grad():
        model.model.embed_tokens.weight[BOUND.eos_id] = 0
    prompt = (5,) * 150
    completions = run(HFEngine(model, BOUND), GenerationRequest(prompt, n=20, params=SamplingParams(max_tokens=99)))[0]
    assert {len(c.token_ids) for c in completions if c.finish_reason == "length"} == {10}


@pytest.mark.parametrize("prompt", [(5,), (BOUND.eos_id, 5, BOUND.eos_id)])
def test_odd_prompts(prompt):
    model, asked = policy(), GenerationRequest(prompt, n=2, params=SamplingParams(max_tokens=9))
    assert [c.token_ids for c in run(HFEngine(model, BOUND), asked)[0]] == [twin(model, asked, i)[0] for i in range(2)]


def test_logits_that_are_not_finite_fail_loudly_and_leave_no_trace():
    model = policy()
    engine = HFEngine(model, BOUND)
    good = run(engine, request(seed=1, max_tokens=5))
    state = {name: tensor * torch.nan for name, tensor in model.state_dict().items()}
    engine.update_weights(state, 1)
    with pytest.raises(RuntimeError, match="not finite"):
        run(engine, request(0), request(1))
    engine.update_weights(model, 0)
    assert run(engine, request(seed=1, max_tokens=5)) == good


def test_an_architecture_without_a_fused_decoder():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(BOUND.tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config).train()
    engine = HFEngine(model, BOUND, max_rows=4)
    requests = [request(n, 2, seed=n, max_tokens=12) for n in range(3)]
    completions = run(engine, *requests)
    assert model.training
    model.eval()
    for asked, each in zip(requests, completions, strict=True):
        for index, completion in enumerate(each):
            ids, logprobs = twin(model, asked, index)
            assert completion.token_ids == ids
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-5)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.5)
    engine.update_weights(None, 1)
    (changed,) = run(engine, requests[0])
    assert changed[0].token_ids == twin(model, requests[0], 0)[0]


@pytest.mark.parametrize("field", ["max_rows", "cache_tokens", "prefill_tokens"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=f"engine.{field}: got -1"):
        HFEngine(policy(), BOUND, **{field: -1})
