"""What every engine promises, as checks that run against any of them: ours, a server's client, a script.

For tests of engines, here and in other projects: call each function of `ENGINE_CHECKS` with an engine and a few
prompts. A broken promise raises AssertionError with what was promised and what came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from prmkit.protocols import Engine
from prmkit.records import Completion, GenerationRequest, SamplingParams

__all__ = ["ENGINE_CHECKS", "EngineCheck"]

EngineCheck = Callable[[Engine, Sequence[tuple[int, ...]]], Awaitable[None]]


def _broken(promise: str, got: object) -> NoReturn:
    raise AssertionError(f"{promise}; got {got!r}")


def _inspect(engine: Engine, request: GenerationRequest, completion: Completion) -> None:
    """Promises on a single completion."""
    ids, params = completion.token_ids, request.params
    ends = engine.format.end_ids
    if not 1 <= len(ids) <= params.max_tokens:
        _broken(f"1 to {params.max_tokens} tokens", ids)
    if len(completion.logprobs) != len(ids) or any(not value <= 1e-6 for value in completion.logprobs):
        _broken("one log-probability, at most 0, for every token", completion.logprobs)
    if completion.text != engine.format.decode(ids):
        _broken("text is the decoded tokens", completion.text)
    if completion.weight_version != engine.weight_version:
        _broken("completions carry the weight version", completion.weight_version)
    if ends.intersection(ids[:-1]):
        _broken("nothing follows the end of sequence", ids)
    before = engine.format.decode(ids[:-1])
    if any(stop in before for stop in params.stop):
        _broken("a sample ends with the token that completes a stop string", completion.text)
    stopped = any(stop in completion.text for stop in params.stop)
    if completion.finish_reason == "stop":
        if completion.stop_reason is None and ids[-1] not in ends:
            _broken("a stop without a stop string ends with the end of sequence", completion)
        if completion.stop_reason is not None and completion.stop_reason not in completion.text:
            _broken("text keeps the stop string", completion)
    elif completion.finish_reason == "length":
        if stopped or ids[-1] in ends or completion.stop_reason is not None:
            _broken("a sample cut by the limit did not stop", completion)
    else:
        _broken("finished samples stop or reach their limit", completion.finish_reason)


async def _run(engine: Engine, request: GenerationRequest) -> list[Completion]:
    completions = await engine.generate(request)
    if len(completions) != request.n:
        _broken(f"{request.n} completions", len(completions))
    for completion in completions:
        _inspect(engine, request, completion)
    return completions


def _ids(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


async def check_completions(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> None:
    """Completions are well formed for all kinds of parameters."""
    separator = engine.format.spec.policy.separator
    for params in (
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=12),
        SamplingParams(max_tokens=40, stop=(separator,)),
        SamplingParams(max_tokens=40, temperature=0.0),
        SamplingParams(max_tokens=20, temperature=0.7, top_k=5, top_p=0.9, stop=(separator, "=")),
    ):
        await asyncio.gather(
            *(
                _run(engine, GenerationRequest(prompt, n=3, seed=1024 * n, params=params))
                for n, prompt in enumerate(prompts)
            )
        )


async def check_limit(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> None:
    """A lower limit cuts the same sample shorter."""
    whole = GenerationRequest(prompts[0], n=4, seed=1024, params=SamplingParams(max_tokens=16))
    short = replace(whole, params=SamplingParams(max_tokens=5))
    for long_ids, short_ids in zip(_ids(await _run(engine, whole)), _ids(await _run(engine, short)), strict=True):
        if long_ids[:5] != short_ids:
            _broken(f"the limit only cuts, {long_ids[:5]}", short_ids)


async def check_repeatable(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> None:
    """The same request gives the same samples: again, in company, and with more samples beside them."""
    request = GenerationRequest(prompts[0], n=3, seed=7 * 1024, params=SamplingParams(max_tokens=24))
    alone = _ids(await _run(engine, request))
    if _ids(await _run(engine, request)) != alone:
        _broken("the same samples again", "others")
    company = [
        GenerationRequest(prompt, n=2, seed=1024 * n, params=SamplingParams(max_tokens=3 + n % 20))
        for n, prompt in enumerate(tuple(prompts) * 6)
    ]
    half = len(company) // 2
    results = await asyncio.gather(*(_run(engine, r) for r in (*company[:half], request, *company[half:])))
    if _ids(results[half]) != alone:
        _broken("the same samples in company", "others")
    if _ids(await _run(engine, replace(request, n=5)))[:3] != alone:
        _broken("sample i does not depend on how many are asked for", "others")


async def check_steps(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> None:
    """A prompt and the steps written so far make the next prompt; steps put together are the sample."""
    stop = (engine.format.spec.policy.separator,)
    prompt = prompts[0]
    ids: tuple[int, ...] = ()
    for _ in range(4):
        params = SamplingParams(max_tokens=16, stop=stop)
        (step,) = await _run(engine, GenerationRequest((*prompt, *ids), seed=3 * 1024, params=params))
        ids = (*ids, *step.token_ids)
        if step.stop_reason is None:
            break
    if tuple(token for step in engine.format.split_ids(ids) for token in step.token_ids) not in (ids, ()):
        _broken("steps joined give the tokens again", ids)


async def check_cancellation(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> None:
    """A caller that gives up takes nobody with it."""
    params = SamplingParams(max_tokens=24)
    leaving = asyncio.ensure_future(engine.generate(GenerationRequest(prompts[0], n=4, params=params)))
    staying = asyncio.ensure_future(_run(engine, GenerationRequest(prompts[-1], n=2, params=params)))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    await asyncio.gather(leaving, return_exceptions=True)
    await _run(engine, GenerationRequest(prompts[0], params=params))


ENGINE_CHECKS: tuple[EngineCheck, ...] = (
    check_completions,
    check_limit,
    check_repeatable,
    check_steps,
    check_cancellation,
)
