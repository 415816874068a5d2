"""What `prm serve` takes and refuses."""

import pytest

from prmkit.errors import ConfigError
from prmkit.formats.bound import EncodedSteps
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.serving.requests import parse_completions, parse_pooling


def test_completions(bound):
    text = "a+1,2\n"
    ids = bound.prompt_ids("a+1,2")
    body = parse_completions({"prompt": text, "seed": 3, "max_tokens": 5, "stop": "\n", "min_p": 0}, bound)
    assert body.requests == (GenerationRequest(ids, 1, 3, SamplingParams(max_tokens=5, stop=("\n",))),)
    assert (body.return_token_ids, body.logprobs, body.keep_stop) == (False, False, False)
    several = parse_completions({"prompt": [list(ids), list(ids[:2])], "seed": 0, "n": 2, "top_k": -1}, bound)
    assert [request.prompt_ids for request in several.requests] == [ids, ids[:2]]
    assert several.requests[0].params == SamplingParams(max_tokens=16)
    assert parse_completions({"prompt": [text, text], "logprobs": 0, "seed": 0}, bound).logprobs
    unseeded = {parse_completions({"prompt": text}, bound).requests[0].seed for _ in range(3)}
    assert len(unseeded) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "prompt: got"),
        ({"prompt": None}, "prompt: got None"),
        ({"prompt": ["a", [1]], "n": 1.5}, "n: got 1.5; accepted: an integer"),
        ({"stream": True}, "stream: got True"),
        ({"presence_penalty": 0.5}, "presence_penalty: got 0.5"),
        ({"logprobs": 3}, "logprobs: got 3"),
        ({"stop": ["", "x"]}, "stop: got"),
        ({"seed": 2**63}, "seed: got"),
        ({"temperature": "hot"}, "temperature: got 'hot'"),
        ({"top_p": 0}, "sampling.top_p: got 0"),
        ({"guided_regex": "a"}, "guided_regex: got 'a'; accepted: no such field"),
    ],
)
def test_completions_that_are_refused(bound, fields, message):
    with pytest.raises(ConfigError, match=message):
        parse_completions({"prompt": "a", **fields}, bound)


def test_pooling(bound):
    assert parse_pooling({"input": [5, 6, 7]}, bound) == [EncodedSteps((5, 6, 7), (0, 1, 2))]
    assert parse_pooling({"input": [5, 6, 7], "positions": [0, 2]}, bound) == [EncodedSteps((5, 6, 7), (0, 2))]
    two = parse_pooling({"input": [[5], [6, 7]], "positions": [[0], [1]], "task": "token_classify"}, bound)
    assert two == [EncodedSteps((5,), (0,)), EncodedSteps((6, 7), (1,))]
    for fields in (
        {"positions": [2, 0]},
        {"positions": [3]},
        {"positions": []},
        {"task": "embed"},
        {"use_activation": False},
    ):
        with pytest.raises(ConfigError):
            parse_pooling({"input": [5, 6, 7], **fields}, bound)
