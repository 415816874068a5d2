"""The web application: `/v1/models`, `/v1/completions`, `/pooling` and `/health`, over one engine and one scorer.

Engine and scorer compute in the event loop that answers requests, a short piece of work at a time; what arrives between
two pieces joins the batch. A client that hangs up takes its samples out of it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from prmkit.errors import ConfigError, PrmkitError
from prmkit.records import Completion
from prmkit.serving.requests import CompletionsBody, parse_completions, parse_pooling

if TYPE_CHECKING:
    from prmkit.engines.inprocess.hf import HFEngine
    from prmkit.scoring.prm import PRMScorer

__all__ = ["ServedModel", "make_app"]

_LARGEST_BODY = 64 << 20  # bytes
_BUSY_SECONDS = "1"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as clients know it.

    Attributes:
        name: its name.
        weights: identity of its weights.
        weight_version: their version.
        worker: the engine, or the scorer, that computes it.
    """

    name: str
    weights: str
    weight_version: int
    worker: HFEngine | PRMScorer


def make_app(
    policy: ServedModel | None, prm: ServedModel | None, *, api_key: str | None = None, max_waiting: int = 4096
) -> web.Application:
    """The application.

    Args:
        policy: answers `/v1/completions`; its worker is an engine.
        prm: answers `/pooling`; its worker is a scorer.
        api_key: bearer token that every request but `/health` must carry; None asks for none.
        max_waiting: requests in work at most; more are told to come back (status 429).
    """
    service = _Service(policy, prm, max_waiting)
    middlewares = [_errors] if api_key is None else [_authorized(api_key), _errors]
    app = web.Application(client_max_size=_LARGEST_BODY, middlewares=middlewares)
    app.router.add_get("/health", service.health)
    app.router.add_get("/v1/models", service.models)
    app.router.add_post("/v1/completions", service.completions)
    app.router.add_post("/pooling", service.pooling)
    return app


class _Service:
    """The handlers."""

    def __init__(self, policy: ServedModel | None, prm: ServedModel | None, max_waiting: int) -> None:
        self._policy = policy
        self._prm = prm
        self._max_waiting = max_waiting
        self._in_work = 0
        self._numbers = 0
        self._started = int(time.time())

    async def health(self, _: web.Request) -> web.Response:
        return _json({"status": "ok", "in_work": self._in_work})

    async def models(self, _: web.Request) -> web.Response:
        cards = [
            {
                "id": model.name,
                "object": "model",
                "created": self._started,
                "owned_by": "prmkit",
                "max_model_len": model.worker.context,
                "weights": model.weights,
                "weight_version": model.weight_version,
                "read_positions": model is self._prm,
            }
            for model in (self._policy, self._prm)
            if model is not None
        ]
        return _json({"object": "list", "data": cards})

    async def completions(self, request: web.Request) -> web.Response:
        body = await _body(request)
        policy = self._named(body, self._policy, "/v1/completions")
        engine: Any = policy.worker
        asked = parse_completions(body, engine.format)
        self._admit()
        try:
            found = await asyncio.gather(*(engine.generate(wanted) for wanted in asked.requests))
        finally:
            self._in_work -= 1
        completions = [completion for several in found for completion in several]
        read = sum(len(wanted.prompt_ids) for wanted in asked.requests)
        written = sum(len(completion.token_ids) for completion in completions)
        choices = [_choice(number, completion, asked) for number, completion in enumerate(completions)]
        return _json(
            {
                **self._head("text_completion", "cmpl", policy.name),
                "choices": choices,
                "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
            }
        )

    async def pooling(self, request: web.Request) -> web.Response:
        body = await _body(request)
        prm = self._named(body, self._prm, "/pooling")
        scorer: Any = prm.worker
        inputs = parse_pooling(body, scorer.format)
        self._admit()
        try:
            found = await asyncio.gather(*(scorer.score_encoded(encoded) for encoded in inputs))
        finally:
            self._in_work -= 1
        data = [
            {"index": number, "object": "pooling", "data": [[1.0 - value, value] for value in scores.values]}
            for number, scores in enumerate(found)
        ]
        read, new = sum(len(e.input_ids) for e in inputs), sum(scores.encoded_tokens for scores in found)
        usage = {"prompt_tokens": read, "total_tokens": read, "prompt_tokens_details": {"cached_tokens": read - new}}
        return _json({**self._head("list", "pool", prm.name), "data": data, "usage": usage})

    def _named(self, body: dict[str, Any], model: ServedModel | None, path: str) -> ServedModel:
        names = [m.name for m in (self._policy, self._prm) if m is not None]
        wanted = body.get("model", model.name if model else None)
        if model is None or wanted != model.name:
            served = (
                model.name if model else f"none at {path}, which serves {'no PRM' if self._policy else 'no policy'}"
            )
            message = f"model: got {wanted!r}; accepted: {served} (this server has {', '.join(names)})"
            raise web.HTTPNotFound(text=_error_text(message, 404), content_type="application/json")
        return model

    def _admit(self) -> None:
        if self._in_work >= self._max_waiting:
            raise web.HTTPTooManyRequests(
                text=_error_text(f"{self._in_work} requests are in work; come back later", 429),
                content_type="application/json",
                headers={"Retry-After": _BUSY_SECONDS},
            )
        self._in_work += 1

    def _head(self, kind: str, prefix: str, model: str) -> dict[str, Any]:
        self._numbers += 1
        return {"id": f"{prefix}-{self._numbers}", "object": kind, "created": int(time.time()), "model": model}


def _choice(number: int, completion: Completion, asked: CompletionsBody) -> dict[str, Any]:
    text = completion.text
    if completion.stop_reason is not None and not asked.keep_stop:
        text = text[: text.find(completion.stop_reason)]
    choice: dict[str, Any] = {
        "index": number,
        "text": text,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "logprobs": None,
    }
    if asked.return_token_ids:
        choice["token_ids"] = completion.token_ids
    if asked.logprobs:
        names = [] if asked.return_token_ids else [f"token_id:{token}" for token in completion.token_ids]
        choice["logprobs"] = {"token_logprobs": completion.logprobs, "tokens": names}
    return choice


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.read())
    except ValueError as error:
        raise ConfigError("body", str(error), "a JSON object") from None
    if not isinstance(value, dict):
        raise ConfigError("body", type(value).__name__, "a JSON object")
    return value


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What a client did wrong is status 400 with a message, in OpenAI's form."""
    try:
        return await handler(request)
    except PrmkitError as error:
        return web.Response(status=400, text=_error_text(str(error), 400), content_type="application/json")


def _authorized(api_key: str) -> Any:
    expected = f"Bearer {api_key}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path != "/health" and not hmac.compare_digest(given, expected):
            text = _error_text("no or another bearer token", 401)
            return web.Response(status=401, text=text, content_type="application/json")
        return await handler(request)

    return check


def _error_text(message: str, status: int) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}})


def _json(value: Any) -> web.Response:
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return web.Response(body=data, content_type="application/json")
