"""vLLM in this process keeps the promises of engines, and follows the weights of a module under training."""

import asyncio
import inspect
import random
from dataclasses import replace

import pytest
import torch

from prmkit.engines import HFEngine
from prmkit.engines.contract import ENGINE_CHECKS
from prmkit.engines.vllm.engine import VLLMEngine, open_vllm_engine
from prmkit.engines.vllm.options import CPU_TRIAL, require_vllm
from prmkit.engines.vllm.weight_sync import iter_weights
from prmkit.errors import ConfigError, EngineLostError, MissingDependencyError
from prmkit.formats.bound import BoundStepFormat
from prmkit.models import LoraSpec, save_policy
from prmkit.models.lora import add_lora
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
BOUND = BoundStepFormat(TASK.step_format, TASK.tokenizer())
PROMPTS = [BOUND.prompt_ids(TASK.problem("train", n).question) for n in range(5)]


def test_without_vllm_the_remedy_is_named():
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match=r"environment of its own.*pip install 'vllm>=0\.32,<0\.34'"):
            VLLMEngine("nowhere", BOUND)
    else:
        assert require_vllm()


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match=r"engine\.vllm\.memory: got 3; accepted: .*gpu_memory_utilization"):
        open_vllm_engine("nowhere", BOUND, {"memory": 3}, dtype="float32", logprobs=True, weight_version=0)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("policy")
    save_policy(model, BOUND.tokenizer, BOUND, folder)
    state = random.getstate(), torch.get_rng_state()
    tight = replace(CPU_TRIAL, extra={**CPU_TRIAL.extra, "max_num_batched_tokens": 128})
    with VLLMEngine(folder, BOUND, tight, weight_version=3) as made:
        assert random.getstate() == state[0]
        assert torch.equal(torch.get_rng_state(), state[1])  # a trainer in this process draws on as before
        yield made


def generate(engine, prompt=PROMPTS[0], n=4, **params):
    request = GenerationRequest(prompt, n, 5 * 1024, SamplingParams(**params))
    return asyncio.run(engine.generate(request))


@pytest.mark.vllm
def test_more_prompts_than_are_encoded_at_once(engine):
    prompts = [BOUND.prompt_ids(TASK.problem("train", n).question) for n in range(40)]

    async def every():
        params = SamplingParams(max_tokens=8)
        return await asyncio.gather(*(engine.generate(GenerationRequest(p, 2, 5 * 1024, params)) for p in prompts))

    found = asyncio.run(every())
    assert [len({c.token_ids for c in each}) for each in found].count(2) > 20
    (tokens,) = {tuple(c.token_ids for c in each) for each in (found[7], generate(engine, prompts[7], 2, max_tokens=8))}
    assert len(tokens) == 2


def logprob_error(engine, model, temperature=0.8):
    """Largest difference between the engine's log-probabilities and those of a plain forward pass."""
    worst = 0.0
    for prompt in PROMPTS:
        for sample in generate(engine, prompt, max_tokens=24, temperature=temperature):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1]
            wanted = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            worst = max(worst, (torch.tensor(sample.logprobs) - wanted).abs().max().item())
    return worst


@pytest.mark.vllm
@pytest.mark.parametrize("check", ENGINE_CHECKS)
def test_engine_keeps(check, engine):
    asyncio.run(check(engine, PROMPTS))


@pytest.mark.vllm
def test_logprobs_are_of_the_distribution_sampled_from(engine, model):
    assert logprob_error(engine, model) < 1e-4
    for sample in generate(engine, max_tokens=30, temperature=0.7, top_k=4, top_p=0.9):
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPTS[0], *sample.token_ids]])).logits[0, len(PROMPTS[0]) - 1 : -1] / 0.7
        for token, logprob, row in zip(sample.token_ids, sample.logprobs, logits, strict=True):
            top = row.topk(4)
            kept = top.values.softmax(-1).cumsum(-1) - top.values.softmax(-1) < 0.9
            assert token in top.indices[kept]
            assert logprob == pytest.approx((row[token] - top.values[kept].logsumexp(-1)).item(), abs=1e-4)


@pytest.mark.vllm
def test_greedy_samples_are_those_of_the_in_process_engine(engine, model):
    ours = HFEngine(model, BOUND)
    for prompt in PROMPTS:
        mine = generate(ours, prompt, n=1, max_tokens=30, temperature=0.0)[0]
        theirs = generate(engine, prompt, n=2, max_tokens=30, temperature=0.0)
        assert [sample.token_ids for sample in theirs] == [mine.token_ids] * 2
        assert theirs[0].logprobs == pytest.approx(mine.logprobs, abs=1e-4)


@pytest.mark.vllm
def test_refusals(engine):
    with pytest.raises(ConfigError, match="at most 127 ids"):
        generate(engine, (1,) * 128)
    with pytest.raises(ConfigError, match=r"request\.prompt_ids"):
        generate(engine, (1, 10**6))
    with pytest.raises(ConfigError, match=r"temperature: got 2\.5"):
        generate(engine, temperature=2.5)
    with pytest.raises(ConfigError, match=r"vllm\.sleep"):
        engine.sleep()


@pytest.mark.vllm
def test_new_weights_are_used_and_their_version_stamped(engine, model):
    torch.manual_seed(1)
    for version in (11, 12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.03)
        assert logprob_error(engine, model) > 0.01  # the old ones, keys and values too
        engine.update_weights(iter_weights(model), version)
        assert logprob_error(engine, model) < 1e-4
        assert {sample.weight_version for sample in generate(engine)} == {engine.weight_version} == {version}


@pytest.mark.vllm
def test_adapters_are_folded_in(engine, model):
    add_lora(model.base_model, LoraSpec(r=4), seed=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    engine.update_weights(iter_weights(model), 20)
    assert logprob_error(engine, model) < 1e-4


@pytest.mark.vllm
def test_no_update_while_samples_are_written(engine, model):
    async def both():
        writing = asyncio.ensure_future(engine.generate(GenerationRequest(PROMPTS[0], params=SamplingParams(30))))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in flight"):
            engine.update_weights(iter_weights(model), 30)
        await writing

    asyncio.run(both())


@pytest.mark.vllm
def test_a_failed_update_says_so(engine, model):  # the last: the engine is lost afterwards
    def broken():
        yield next(iter(iter_weights(model)))
        raise OSError("the disk is full")

    with pytest.raises(EngineLostError, match=r"weight update 40 failed .*disk is full"):
        engine.update_weights(broken(), 40)


def test_vllm_has_what_is_used_of_it():
    """Guards the supported range: names and arguments that this code relies on."""
    vllm = pytest.importorskip("vllm")
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import reload
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.llm_engine import LLMEngine

    from prmkit.engines.vllm.options import VLLMOptions, engine_arguments

    every = replace(CPU_TRIAL, sleep=True, max_model_len=64)
    used = {
        vllm.SamplingParams: "n seed temperature top_p top_k max_tokens stop stop_token_ids ignore_eos detokenize "
        "skip_special_tokens spaces_between_special_tokens logprobs flat_logprobs output_kind",
        vllm.PoolingParams: "task use_activation",
        EngineArgs: " ".join(
            {**engine_arguments(every, "m", "t", "x"), **engine_arguments(VLLMOptions(), "m", "t", "x")}
        )
        + " runner convert hf_overrides pooler_config",
        CompletionOutput: "index token_ids logprobs finish_reason weight_versions",
        LLMEngine.add_request: "request_id prompt params",
        LLMEngine.set_weight_version: "weight_version",
        vllm.LLM.init_weight_transfer_engine: "request",
        vllm.LLM.update_weights: "request",
        vllm.LLM.finish_weight_update: "weight_version",
        vllm.LLM.sleep: "level",
        WeightTransferEngineFactory.register_engine: "name module_path_or_cls",
        WeightTransferEngine.__init__: "config vllm_config device model",
        reload.initialize_layerwise_reload: "model",
    }
    for what, names in used.items():
        missing = set(names.split()) - set(inspect.signature(what).parameters)
        assert not missing, f"{what} has no {missing}"
    assert callable(reload.finalize_layerwise_reload)
    for method in ("start_weight_update", "reset_prefix_cache", "wake_up"):
        assert callable(getattr(vllm.LLM, method))
    assert WeightTransferEngine.__abstractmethods__ == {
        *("init_transfer_engine", "start_weight_update", "finish_weight_update", "receive_weights", "shutdown")
    }
