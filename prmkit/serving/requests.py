"""What clients may ask of `prm serve`: JSON bodies into records. What is not understood is refused, never ignored."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.records import GenerationRequest, SamplingParams

__all__ = ["CompletionsBody", "parse_completions", "parse_pooling"]

# Settings that are accepted at the value at which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": (None, {}),
    "min_p": (None, 0),
    "min_tokens": (0,),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "stream": (None, False),
    "suffix": (None, ""),
}
# Settings that say how text is shown; ids are what counts here.
_SHOWN = ("add_special_tokens", "return_tokens_as_token_ids", "spaces_between_special_tokens", "user")
_POOLING_TASKS = (None, "token_classify")


@dataclass(frozen=True, slots=True)
class CompletionsBody:
    """A body of `/v1/completions`.

    Attributes:
        requests: one a prompt.
        return_token_ids: put ids into the choices.
        logprobs: put log-probabilities of the sampled tokens into the choices.
        keep_stop: leave the stop string in the text.
    """

    requests: tuple[GenerationRequest, ...]
    return_token_ids: bool
    logprobs: bool
    keep_stop: bool


def parse_completions(body: Mapping[str, Any], fmt: BoundStepFormat) -> CompletionsBody:
    """A body of `/v1/completions`; ConfigError names the field that cannot be used."""
    rest = dict(body)
    rest.pop("model", None)
    prompts = _prompts(rest.pop("prompt", None), fmt)
    stop = rest.pop("stop", None)
    texts = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        _refuse("stop", stop, "a string or a list of strings, none empty")
    top_k = _integer(rest, "top_k", 0)
    params = SamplingParams(
        max_tokens=_integer(rest, "max_tokens", 16),
        temperature=_number(rest, "temperature", 1.0),
        top_p=_number(rest, "top_p", 1.0),
        top_k=0 if top_k == -1 else top_k,
        stop=tuple(texts),
    )
    n, seed = _integer(rest, "n", 1), rest.pop("seed", None)
    if seed is None:
        seed = secrets.randbits(63)
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        _refuse("seed", seed, "an integer of 64 bits")
    logprobs = rest.pop("logprobs", None)
    if logprobs not in (None, 0) or logprobs is False:
        _refuse("logprobs", logprobs, "0 (of the sampled tokens) or null")
    flags = [_flag(rest, name) for name in ("return_token_ids", "include_stop_str_in_output")]
    ends = rest.pop("stop_token_ids", None)
    if not isinstance(ends, list | None) or not fmt.end_ids.issuperset(ends or ()):
        _refuse("stop_token_ids", ends, f"ids at which the served policy ends, of {sorted(fmt.end_ids)}")
    rest.pop("skip_special_tokens", None)
    _nothing_else(rest)
    requests = tuple(GenerationRequest(prompt, n, seed, params) for prompt in prompts)
    return CompletionsBody(requests, flags[0], logprobs == 0 and logprobs is not None, flags[1])


def parse_pooling(body: Mapping[str, Any], fmt: BoundStepFormat) -> list[EncodedSteps]:
    """A body of `/pooling`: inputs, each with the positions at which scores are wanted, all of them by default."""
    rest = dict(body)
    rest.pop("model", None)
    if rest.pop("use_activation", True) is False:
        _refuse("use_activation", False, "true: probabilities are what is served")
    if (task := rest.pop("task", None)) not in _POOLING_TASKS:
        _refuse("task", task, "token_classify")
    inputs = _prompts(rest.pop("input", None), fmt, "input")
    positions = rest.pop("positions", None)
    if rest.pop("encoding_format", "float") != "float":
        _refuse("encoding_format", body["encoding_format"], "float")
    _nothing_else(rest)
    if positions is None:
        return [EncodedSteps(ids, tuple(range(len(ids)))) for ids in inputs]
    if len(inputs) == 1 and isinstance(positions, list) and positions and type(positions[0]) is int:
        positions = [positions]
    if not isinstance(positions, list) or len(positions) != len(inputs):
        _refuse("positions", positions, "a list of positions for every input")
    return [EncodedSteps(ids, _positions(wanted, len(ids))) for ids, wanted in zip(inputs, positions, strict=True)]


def _positions(wanted: Any, length: int) -> tuple[int, ...]:
    ok = isinstance(wanted, list) and wanted and all(type(position) is int for position in wanted)
    if not ok or wanted != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] < length:
        _refuse("positions", wanted, f"different positions in order, from 0 to {length - 1}")
    return tuple(wanted)


def _prompts(value: Any, fmt: BoundStepFormat, name: str = "prompt") -> list[tuple[int, ...]]:
    """Token ids of every prompt: from text, ids, or a list of either."""
    several: Sequence[Any] = [value]
    if isinstance(value, list) and value and not isinstance(value[0], int):
        several = value
    found: list[tuple[int, ...]] = []
    for prompt in several:
        if isinstance(prompt, str) and prompt:
            found.append(tuple(fmt.tokenizer.encode(prompt, add_special_tokens=False)))
        elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            found.append(tuple(prompt))
        else:
            _refuse(name, prompt, "text or token ids, not empty, or a list of them")
    return found


def _number(rest: dict[str, Any], name: str, default: float) -> float:
    value = rest.pop(name, None)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(name, value, "a number")
    return float(value)


def _integer(rest: dict[str, Any], name: str, default: int) -> int:
    value = rest.pop(name, None)
    if value is None:
        return default
    if type(value) is not int:
        _refuse(name, value, "an integer")
    return int(value)


def _flag(rest: dict[str, Any], name: str) -> bool:
    value = rest.pop(name, None)
    if value not in (None, True, False):
        _refuse(name, value, "true or false")
    return bool(value)


def _nothing_else(rest: dict[str, Any]) -> None:
    for name, value in rest.items():
        if name in _SHOWN or (name in _NEUTRAL and value in _NEUTRAL[name]):
            continue
        accepted = f"one of {_NEUTRAL[name]}" if name in _NEUTRAL else "no such field here"
        _refuse(name, value, accepted)


def _refuse(name: str, got: object, accepted: str) -> NoReturn:
    raise ConfigError(name, got, accepted)
