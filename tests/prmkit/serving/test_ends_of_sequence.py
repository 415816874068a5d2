"""Every id that a model's files name ends its samples: in every engine, in exported folders, and in what is graded."""

import asyncio
import copy
import json
from contextlib import ExitStack

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lightning_modules.sft import SFT
from prmkit.engines.config import EngineConfig, HttpEngineConfig
from prmkit.engines.factory import open_engine
from prmkit.errors import DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.ends import model_end_ids
from prmkit.formats.presets import STEP_FORMATS
from prmkit.formats.spec import PolicyFormat, StepFormat
from prmkit.models import ModelSource, load_policy, save_policy
from prmkit.records import GenerationRequest, Problem, SamplingParams
from prmkit.rl.mdp import ReasoningMDP
from prmkit.rl.rollouts import sample_group
from prmkit.tasks.vocabulary import character_tokenizer

TURN = "<end_of_turn>"
SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
QWEN2 = Qwen2ForCausalLM, Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)
OTHER = GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tokenizer():
    made = character_tokenizer("abcxyz0123456789=+-\n")
    made.add_special_tokens({"additional_special_tokens": [TURN]})
    return made


def chain(kind, tokenizer):
    """A model that writes `x=7`, ends its turn, and without an end goes on to another answer, for ever."""
    make, config = kind
    model = make(config).eval()
    states = [*tokenizer.convert_tokens_to_ids(["\n", "x", "=", "7", TURN, "a", "=", "3"])]
    (newline, x, equals, seven, turn, a, _, three) = states
    successors = {newline: x, x: equals, equals: seven, seven: turn, turn: a, a: three, three: newline}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
        model.get_input_embeddings().weight.copy_(torch.eye(64))
        for before, after in successors.items():
            model.get_output_embeddings().weight[after, before] = 10.0
    return model


# `eos_token_id` of config.json and generation_config.json, "TURN" for the token that ends a turn.
PLACES = {
    "generation list": (1, [1, "TURN"]),
    "generation id": (1, "TURN"),
    "config list": ([2, "TURN"], None),
    "config id": ("TURN", 2),
}


def write(folder, kind, tokenizer, place):
    """A policy's folder as other programs write it."""
    save_policy(chain(kind, tokenizer), tokenizer, STEP_FORMATS["plain"], folder)
    turn = tokenizer.convert_tokens_to_ids(TURN)
    for name, value in zip(("config.json", "generation_config.json"), PLACES[place], strict=True):
        found = json.loads((folder / name).read_text())
        found["eos_token_id"] = json.loads(json.dumps(value).replace('"TURN"', str(turn)))
        (folder / name).write_text(json.dumps(found))
    return folder


async def samples(engine):
    params = SamplingParams(max_tokens=40, temperature=0.0), SamplingParams(max_tokens=40, stop=("\n",))
    requests = [GenerationRequest(engine.format.prompt_ids("x"), n=2, seed=0, params=p) for p in params]
    return [sample for request in requests for sample in await engine.generate(request)]


def check(engine, grader):
    """Samples are `x=7` with the end of the turn, in all ways of asking; the answer is 7 and right."""
    problem = Problem("p", "x", "7")
    group = asyncio.run(sample_group(problem, 0, engine, 4, SamplingParams(max_tokens=40), 0))
    steps = [step for rollout in group for step in rollout.trace.steps]
    found = asyncio.run(samples(engine))
    turn = engine.format.tokenizer.convert_tokens_to_ids(TURN)
    assert {rollout.trace.finish for rollout in group} | {s.finish_reason for s in found} == {"stop"}
    assert {step.text for step in steps} | {sample.text for sample in found} == {"x=7"}
    assert {step.token_ids[-1] for step in steps} | {sample.token_ids[-1] for sample in found} == {turn}
    assert all(grade.correct for grade in grader.grade([(grader.extract(s.text), "7") for s in found]))
    mdp = ReasoningMDP(end_ids=engine.format.end_ids)
    assert [mdp.step(mdp.initial(problem), step).next_state.end for step in steps] == ["stop"] * len(steps)


@pytest.mark.parametrize("kind", [QWEN2, OTHER], ids=["fused", "generic"])
@pytest.mark.parametrize("place", PLACES)
def test_engines_stop_where_files_name_the_end(place, kind, tokenizer, tmp_path, last_step_grader, policy_server):
    folder = write(tmp_path / "policy", kind, tokenizer, place)
    spec = STEP_FORMATS["plain"]
    with ExitStack() as stack:
        engine = open_engine(EngineConfig(), folder, spec, stack)
        check(engine, last_step_grader)
        server = policy_server(engine=engine)
        config = EngineConfig("http", http=HttpEngineConfig([server.url]))
        check(open_engine(config, folder, spec, stack), last_step_grader)
        ends = server.bodies[-1]["stop_token_ids"]
        assert ends == sorted(engine.format.end_ids)


def test_exported_folders_keep_the_ends(tokenizer, tmp_path):
    source = ModelSource(path=str(write(tmp_path / "policy", QWEN2, tokenizer, "generation list")))
    turn = tokenizer.convert_tokens_to_ids(TURN)
    module = SFT(source)
    module.configure_model()
    module.export_pretrained(tmp_path / "exported")
    assert set(json.loads((tmp_path / "exported/generation_config.json").read_text())["eos_token_id"]) == {1, 2, turn}
    assert load_policy(tmp_path / "exported").format.end_ids == module.bound_format.end_ids == {1, 2, turn}


def test_the_end_that_a_chat_template_writes_is_trained_and_exported(tokenizer, tmp_path):
    chat = "{% for m in messages %}{{ m.content }}" + TURN + "\n{% endfor %}"
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = chat
    spec = StepFormat("t", PolicyFormat(chat=True), STEP_FORMATS["plain"].prm)
    turn = tokenizer.convert_tokens_to_ids(TURN)
    assert BoundStepFormat(spec, talking).solution_ids("7")[-1] == turn
    save_policy(chain(QWEN2, tokenizer), talking, spec, tmp_path / "policy")
    assert turn in model_end_ids(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    prompt = torch.tensor([policy.format.prompt_ids("x\n")])
    assert policy.model.generate(prompt, max_new_tokens=20)[0, -1] == turn  # transformers stops there, too


@pytest.mark.parametrize("value", ["2", 2.5, [1, None], -1, True])
def test_ends_that_are_no_ids_are_named(value, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id: got .* accepted: a token id, a list"):
        model_end_ids(tmp_path)


def test_ends_of_a_configuration_in_parts(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": [1, 106]}, "eos_token_id": 106}')
    assert model_end_ids(tmp_path) == (106, 1)
