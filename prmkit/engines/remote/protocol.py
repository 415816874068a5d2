"""Completions over HTTP, as OpenAI's `/v1/completions` and its kin understand them: requests, and what replies must be.

Pure functions. Every setting that shapes the distribution is sent, neutral ones too: servers put their own or the
model's in place of what is missing. A reply that does not do what its request said is an `EngineLostError`: a server
that ignores a setting once ignores it always.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from prmkit.engines.stops import find_stop
from prmkit.errors import ConfigError, DataError, EngineLostError, ServerError
from prmkit.formats.bound import BoundStepFormat
from prmkit.json_objects import located, shown
from prmkit.records import Completion, FinishReason, GenerationRequest

__all__ = ["Asked", "Sampled", "ask_for", "completion_of", "read_choices", "understood"]

_TOKEN_PREFIX = "token_id:"


@dataclass(frozen=True, slots=True)
class Asked:
    """What one HTTP request asks for.

    Attributes:
        body: JSON object to send.
        n: samples.
        max_tokens: tokens of a sample at most, within the server's context.
        prompt_tokens: ids of the prompt; 0 when it is sent as text.
        stop: stop strings.
        logprobs: log-probabilities are wanted.
        context_known: no sample ends for want of room before max_tokens.
    """

    body: dict[str, Any]
    n: int
    max_tokens: int
    prompt_tokens: int
    stop: tuple[str, ...]
    logprobs: bool
    context_known: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """One choice of a reply, checked against its request.

    Attributes:
        token_ids: ids that the server sampled; None from a server that is asked for text.
        logprobs: one a token, or empty.
        text: the server's own.
        finish: "stop", "length", or "abort" when the server gave up on it.
        stop_reason: what the server says it stopped at.
        said_why: the server says what it stopped at, the end of sequence included.
    """

    token_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...]
    text: str
    finish: FinishReason
    stop_reason: str | int | None
    said_why: bool


def ask_for(
    request: GenerationRequest,
    model: str,
    *,
    ends: Collection[int],
    context: int | None,
    logprobs: bool,
    text: str | None = None,
) -> Asked:
    """The HTTP request for a generation request.

    Args:
        request: what to generate.
        model: its name on the server.
        ends: ids that end a sample.
        context: the server's longest sequence; None when it does not tell.
        logprobs: ask for log-probabilities.
        text: the prompt as text, for servers that are not to see ids.

    Raises:
        ConfigError: the prompt leaves no room in the context.
    """
    params, length = request.params, len(request.prompt_ids)
    if context is not None and length >= context:
        raise ConfigError(
            "request.prompt_ids", f"{length} ids", f"at most {context - 1} ids, one less than the context"
        )
    max_tokens = params.max_tokens if context is None else min(params.max_tokens, context - length)
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_ids) if text is None else text,
        "n": request.n,
        "seed": request.seed,
        "max_tokens": max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "stop_token_ids": sorted(ends),
    }
    if text is None:
        body["return_token_ids"] = True
    else:
        body["add_special_tokens"] = False  # the prompt's text has them
    if params.stop:
        body["stop"] = list(params.stop)
    if logprobs:
        body["logprobs"] = 0  # of the sampled token alone
    prompt_tokens = length if text is None else 0
    return Asked(body, request.n, max_tokens, prompt_tokens, params.stop, logprobs, context is not None)


@contextmanager
def understood(where: str) -> Iterator[None]:
    """Whatever a reply of another build raises in the block becomes an EngineLostError that names the endpoint."""
    try:
        with located(where, "reply as it was asked for"):
            yield
    except DataError as error:
        raise EngineLostError(str(error)) from error


def read_choices(asked: Asked, reply: Mapping[str, Any], where: str) -> list[Sampled]:
    """The samples of a reply, in order.

    Args:
        asked: the request.
        reply: parsed JSON.
        where: the endpoint's address, for errors.

    Raises:
        EngineLostError: the reply does not do what was asked.
        ServerError: the server gives no text where text was asked for.
    """
    with understood(where):
        return _choices(asked, reply, where)


def _choices(asked: Asked, reply: Mapping[str, Any], where: str) -> list[Sampled]:
    model = reply.get("model", asked.body["model"])
    if model != asked.body["model"]:
        _broken(where, f"model {asked.body['model']!r}", f"a reply of model {model!r}")
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != asked.n:
        got = len(choices) if isinstance(choices, list) else repr(choices)
        remedy = "This server ignores `n`; set engine.http.split_samples." if got == 1 else ""
        _broken(where, f"{asked.n} choices", got, remedy)
    numbers = [choice.get("index", place) for place, choice in enumerate(choices)]
    if sorted(numbers) != list(range(asked.n)):
        _broken(where, f"choices numbered 0 to {asked.n - 1}", numbers)
    ordered = [choice for _, choice in sorted(zip(numbers, choices, strict=True), key=lambda pair: int(pair[0]))]
    samples = [_read_choice(asked, choice, where) for choice in ordered]
    _check_usage(asked, reply.get("usage"), samples, where)
    return samples


def _read_choice(asked: Asked, choice: Mapping[str, Any], where: str) -> Sampled:
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length", "abort", "error"):
        _broken(where, "finish_reason stop, length or abort", finish)
    reason = choice.get("stop_reason", choice.get("matched_stop"))
    said_why = "stop_reason" in choice or "matched_stop" in choice
    text = choice.get("text")
    if finish in ("abort", "error"):
        return Sampled((), (), "", "abort", None, said_why)
    if not isinstance(text, str) and (text is not None or not asked.prompt_tokens):
        raise ServerError(f"{where}: a choice has the text {shown(text)}; expected a string")
    text = text or ""
    if not asked.prompt_tokens:
        return Sampled(None, (), text, finish, reason, said_why)
    ids = _token_ids(choice)
    if ids is None:
        _broken(
            where,
            "token ids in every choice",
            f"the fields {sorted(choice)}",
            "Set engine.http.prompts to text for servers that know no ids.",
        )
    if not 1 <= len(ids) <= asked.max_tokens:
        _broken(where, f"1 to {asked.max_tokens} tokens", len(ids))
    if finish == "length" and asked.context_known and len(ids) < asked.max_tokens:
        _broken(where, f"{asked.max_tokens} tokens in a sample that its length ended", len(ids))
    logprobs = _logprobs(choice, len(ids), where) if asked.logprobs else ()
    return Sampled(ids, logprobs, text, finish, reason, said_why)


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Sampled ids, from wherever a server puts them; None when it gives none."""
    details = choice.get("logprobs") or {}
    found = choice.get("token_ids") or choice.get("tokens")
    if found is None and details.get("content"):
        found = [entry.get("id") for entry in details["content"]]
    if found is None and details.get("tokens"):
        named = details["tokens"]
        if all(isinstance(token, str) and token.startswith(_TOKEN_PREFIX) for token in named):
            found = [int(token.removeprefix(_TOKEN_PREFIX)) for token in named]
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        return None
    return tuple(found)


def _logprobs(choice: Mapping[str, Any], count: int, where: str) -> tuple[float, ...]:
    details = choice.get("logprobs") or {}
    values = details.get("token_logprobs")
    if values is None and details.get("content"):
        values = [entry.get("logprob") for entry in details["content"]]
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(value, (int, float)) and math.isfinite(value) and value <= 1e-3 for value in values)
    ):
        _broken(where, f"{count} log-probabilities, one a token", values)
    return tuple(min(float(value), 0.0) for value in values)


def _check_usage(asked: Asked, usage: Any, samples: Sequence[Sampled], where: str) -> None:
    if not isinstance(usage, Mapping) or not asked.prompt_tokens:
        return
    if any(sample.finish == "abort" for sample in samples):
        return
    counted, written = usage.get("completion_tokens"), sum(len(sample.token_ids or ()) for sample in samples)
    if counted is not None and counted != written:
        _broken(where, f"usage of {written} completion tokens, those in the choices", counted)
    read = usage.get("prompt_tokens")
    if read is not None and read != asked.prompt_tokens:
        _broken(where, f"usage of {asked.prompt_tokens} prompt tokens, those sent", read)


def completion_of(
    sampled: Sampled,
    fmt: BoundStepFormat,
    stop: Sequence[str],
    where: str,
    *,
    exact: bool,
    weight_version: int,
) -> Completion:
    """A completion from a server's sample. Ids are kept as sampled, also where a stop string cut the text in a token.

    Args:
        sampled: with ids, or with text that is tokenised here.
        fmt: the policy's format.
        stop: stop strings of the request.
        where: the endpoint's address, for errors.
        exact: refuse an end of sequence that the format does not know. Otherwise such an end, which a server may have
            from its own files, is given as the format's own.
        weight_version: stamped on the completion.

    Raises:
        EngineLostError: the server ended the sample for no reason that was given it, or went on behind one.
    """
    if sampled.token_ids is None:
        sampled = _tokenised(sampled, fmt, stop, where)
    ids = sampled.token_ids or ()
    text = fmt.decode(ids)
    found = find_stop(text, stop) if stop and ids[-1] not in fmt.end_ids else None
    if found is not None and sampled.finish == "stop" and _ends_with(ids, text, found, fmt):
        return Completion(ids, sampled.logprobs, text, "stop", found, weight_version)
    if any(string in text for string in stop):
        _broken(where, f"samples that end at the stop strings {list(stop)}", text)
    if fmt.end_ids.intersection(ids[:-1]):
        remedy = "A server that ignores stop_token_ids must know these ends from the model's own files."
        _broken(where, f"nothing behind the ends of sequence {sorted(fmt.end_ids)}", list(ids), remedy)
    if sampled.finish == "length":
        if ids[-1] in fmt.end_ids:  # at the last place allowed both are true; ours says that it ended
            return Completion(ids, sampled.logprobs, text, "stop", None, weight_version)
        return Completion(ids, sampled.logprobs, text, "length", None, weight_version)
    if ids[-1] not in fmt.end_ids:
        if exact or sampled.stop_reason != ids[-1]:
            _broken(
                where,
                f"samples that end with an end of sequence {sorted(fmt.end_ids)} or a stop string",
                f"an end with token {ids[-1]} (stop_reason {sampled.stop_reason!r})",
                "Start vLLM with --generation-config vllm, which leaves out the model's further ends of sequence.",
            )
        ids = (*ids[:-1], fmt.eos_id)
        text = fmt.decode(ids)
    return Completion(ids, sampled.logprobs, text, "stop", None, weight_version)


def _ends_with(ids: Sequence[int], text: str, stop: str, fmt: BoundStepFormat) -> bool:
    """Is the stop string completed by the last token? That token may bring more text behind it."""
    return text.find(stop) + len(stop) == len(text) or stop not in fmt.decode(ids[:-1])


def _tokenised(sampled: Sampled, fmt: BoundStepFormat, stop: Sequence[str], where: str) -> Sampled:
    """A sample that came as text, with ids of our own: those of the text, its stop string or end of sequence added."""
    text, ended = sampled.text, False
    if sampled.finish == "stop" and find_stop(text, stop) is None:
        if stop and not sampled.said_why:
            _broken(where, "to say in stop_reason or matched_stop what ended a sample", "neither")
        ended = sampled.stop_reason not in stop
        text += "" if ended else str(sampled.stop_reason)
    ids = (*fmt.sampled_ids(text), *([fmt.eos_id] if ended else []))
    return replace(sampled, token_ids=ids or (fmt.eos_id,), finish=sampled.finish if ids else "stop")


def _broken(where: str, promise: str, got: object, remedy: str = "") -> NoReturn:
    tail = f" {remedy}" if remedy else ""
    raise EngineLostError(f"{where} does not do what it was asked: expected {promise}, got {got}.{tail}")
