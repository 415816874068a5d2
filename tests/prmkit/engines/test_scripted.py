import asyncio
import subprocess
import sys

import pytest

from prmkit.engines import ScriptedEngine
from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

BOUND = BoundStepFormat(STEP_FORMATS["plain"], AccumulatorTask().tokenizer())


def generate(engine, prefix, **params):
    request = GenerationRequest(BOUND.prompt_ids(prefix), params=SamplingParams(**params))
    return asyncio.run(engine.generate(request))[0]


@pytest.mark.parametrize(
    ("params", "text", "finish", "stop"),
    [
        ({}, "ab\ncd", "stop", None),
        ({"stop": ("\n",)}, "ab\n", "stop", "\n"),
        ({"stop": ("d", "b\n")}, "ab\n", "stop", "b\n"),
        ({"max_tokens": 4}, "ab\nc", "length", None),
        ({"max_tokens": 5}, "ab\ncd", "length", None),
        ({"max_tokens": 6}, "ab\ncd", "stop", None),
        ({"max_tokens": 2, "stop": ("\n",)}, "ab", "length", None),
        ({"max_tokens": 3, "stop": ("\n",)}, "ab\n", "stop", "\n"),
    ],
)
def test_conventions(params, text, finish, stop):
    completion = generate(ScriptedEngine(BOUND, {"q\n": "ab\ncd"}, logprob=-1.0), "q", **params)
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (text, finish, stop)
    assert completion.logprobs == (-1.0,) * len(completion.token_ids)
    ended = finish == "stop" and stop is None
    assert len(completion.token_ids) == len(text) + ended
    assert (completion.token_ids[-1] == BOUND.eos_id) == ended


def test_script_sees_prefix_sample_and_seed():
    engine = ScriptedEngine(BOUND, lambda prefix, index, seed: f"{prefix.strip()}{index}{seed}")
    request = GenerationRequest(BOUND.prompt_ids("q"), n=2, seed=5)
    assert [completion.text for completion in asyncio.run(engine.generate(request))] == ["q05", "q15"]
    assert (engine.stats.requests, engine.stats.generated_tokens) == (1, 8)


def test_a_prefix_without_an_entry_is_named():
    with pytest.raises(ConfigError, match=r"script: got 'z\\n'"):
        generate(ScriptedEngine(BOUND, {"q\n": "a"}), "z")


def test_package_does_not_import_torch():
    code = "import sys, prmkit.engines, prmkit.scoring; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
