"""Requests to servers that may be busy, slow, broken or gone: retries, time limits, several endpoints.

A request goes to the endpoint with the fewest in flight. What an endpoint fails on is sent again, elsewhere where there
is an elsewhere; an endpoint that fails again and again is taken out and asked from time to time whether it is back.
What is sent and what replies mean is the business of `probe` and of the callers.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from prmkit.engines.config import HttpConfig
from prmkit.engines.remote.background import run_in_background, wait_in_background
from prmkit.engines.remote.endpoints import Endpoint, EndpointPool
from prmkit.errors import ConfigError, DataError, EngineLostError, ServerError
from prmkit.json_objects import parse_json

__all__ = ["ClientStats", "HttpClient", "OverHTTP", "Probe", "Reply", "Unanswered"]

logger = logging.getLogger(__name__)

Probe = Callable[["HttpClient", str], Awaitable[None]]

_LONGEST_WAIT = 30.0  # seconds between two attempts at most
_STARTUP_WAIT = 0.5
_MESSAGE = 500  # characters of a server's own message that are shown


class Unanswered(Exception):  # noqa: N818 - not an error by itself: the request is sent again
    """An endpoint did not answer a request as a server in good health does."""


class _Busy(Unanswered):
    """The endpoint asks to be left alone for some seconds."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of status 200.

    Attributes:
        url: base address of the endpoint that gave it.
        body: parsed JSON, an object.
    """

    url: str
    body: dict[str, Any]


@dataclass(slots=True)
class ClientStats:
    """What the client has done so far.

    Attributes:
        requests: requests answered.
        retries: attempts beyond the first of each.
        busy: answers that asked to come back later.
        deaths: times that an endpoint was taken out.
    """

    requests: int = 0
    retries: int = 0
    busy: int = 0
    deaths: int = 0


class HttpClient:
    """Talks to the endpoints of a config. Contacts nobody before `open`.

    Args:
        config: how servers are reached; at least one endpoint.
        probe: called with (client, url) for every endpoint at the beginning, and again before a dead one is taken back.
            It raises `Unanswered` or ServerError when the endpoint cannot work now, ConfigError when it never will.

    Attributes:
        stats: counters.
    """

    def __init__(self, config: HttpConfig, probe: Probe) -> None:
        if not config.endpoints:
            raise ConfigError("http.endpoints", [], "at least one server's address")
        self.config = config
        self.stats = ClientStats()
        self._probe = probe
        self._pool = EndpointPool(
            config.urls, config.concurrency, config.dead_after, config.patience, on_death=self._attend
        )
        self._headers = {"Content-Type": "application/json", **_authorization(config.api_key_env)}
        self._timeout = aiohttp.ClientTimeout(total=config.timeout, connect=None, sock_connect=config.connect_timeout)
        self._session: aiohttp.ClientSession | None = None
        self._doctors: set[asyncio.Task[None]] = set()
        self._jitter = random.Random()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints, and how they do; to look at only."""
        return self._pool.endpoints

    # -- called from any thread -------------------------------------------------------------------------------------

    def open(self, announce: bool = True) -> None:
        """Ask every endpoint; those that do not answer are taken out.

        Args:
            announce: warn of those.

        Raises:
            EngineLostError: none answers.
            ConfigError: one answers, and is not what the config says.
        """
        wait_in_background(self._open(announce))
        atexit.register(self.close)  # for programs that forget to

    def close(self) -> None:
        """Close all connections."""
        atexit.unregister(self.close)
        wait_in_background(self._close())

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """The reply to a request, from whichever endpoint gives it first.

        Args:
            path: e.g. "/v1/completions".
            body: JSON object.

        Raises:
            ServerError: the server refuses this request, or every attempt at it failed.
            EngineLostError: all endpoints are gone.
        """
        return await run_in_background(self._post(path, body))

    # -- in the background loop -------------------------------------------------------------------------------------

    async def ask(self, url: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One attempt at one endpoint, for probes: GET, or POST when there is a body.

        Raises:
            Unanswered, ServerError: see `Probe`.
        """
        return await self._send(url, path, None if body is None else _encode(body))

    async def _open(self, announce: bool) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=self._timeout, headers=self._headers
        )
        deadline = time.monotonic() + self.config.startup
        try:
            while not await self._ask_all(announce, final=time.monotonic() >= deadline):
                await asyncio.sleep(_STARTUP_WAIT)
        except BaseException:
            await self._close()
            raise

    async def _ask_all(self, announce: bool, final: bool) -> bool:
        """Probe all endpoints. True when work can begin. EngineLostError when none answers the last time."""
        errors = await asyncio.gather(*(self._probe_once(endpoint) for endpoint in self._pool.endpoints))
        if all(errors):
            if not final:
                return False
            for endpoint, error in zip(self._pool.endpoints, errors, strict=True):
                endpoint.alive, endpoint.reason = False, error
            raise EngineLostError(
                f"no endpoint answers: {self._pool.describe_failures()}. Start a server, e.g. with `prm serve` or "
                f"`vllm serve`, or give the address of one that runs."
            )
        for endpoint, error in zip(self._pool.endpoints, errors, strict=True):
            if error:
                self._pool.take_out(endpoint, error, announce)
        return True

    async def _probe_once(self, endpoint: Endpoint) -> str:
        """Why an endpoint cannot work now; "" when it can."""
        try:
            await self._probe(self, endpoint.url)
        except (Unanswered, ServerError) as error:
            return str(error)
        return ""

    async def _close(self) -> None:
        for task in self._doctors:
            task.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, path: str, body: Mapping[str, Any]) -> Reply:
        data = _encode(body)
        attempts, busy_since, avoid = 0, None, None
        while True:
            endpoint = await self._pool.acquire(avoid)
            try:
                reply = await self._send(endpoint.url, path, data)
                self._pool.worked(endpoint)
                self.stats.requests += 1
                return Reply(endpoint.url, reply)
            except _Busy as error:
                self.stats.busy += 1
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since > self.config.patience:
                    raise ServerError(f"{endpoint.url}: busy for {self.config.patience:g} s: {error}") from error
                wait = error.seconds if error.seconds is not None else self._pause(1)
            except Unanswered as error:
                attempts += 1
                self._pool.failed(endpoint, str(error))
                if attempts > self.config.retries:
                    raise ServerError(f"{endpoint.url}: {attempts} attempts failed, the last with: {error}") from error
                wait = self._pause(attempts)
            finally:
                self._pool.release(endpoint)
            self.stats.retries += 1
            avoid = endpoint
            await asyncio.sleep(wait)

    def _pause(self, attempt: int) -> float:
        """Seconds before another attempt: doubled each time, between half and the whole of it at random."""
        longest: float = min(self.config.backoff * 2.0 ** (attempt - 1), _LONGEST_WAIT)
        return longest * (0.5 + 0.5 * self._jitter.random())

    async def _send(self, url: str, path: str, data: bytes | None) -> dict[str, Any]:
        assert self._session is not None, "open() comes first"
        method = "GET" if data is None else "POST"
        try:
            async with self._session.request(method, url + path, data=data) as response:
                raw = await response.read()
        except TimeoutError as error:
            raise Unanswered(f"no answer within {self.config.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(str(error) or type(error).__name__) from error
        if response.status == 200:
            return _parse(raw)
        message = f"status {response.status}: {_message(raw)}"
        if response.status == 429 or (response.status == 503 and "Retry-After" in response.headers):
            raise _Busy(message, _seconds(response.headers.get("Retry-After")))
        if response.status >= 500 or response.status == 408:
            raise Unanswered(message)
        raise ServerError(f"{url}{path}: {message}")

    def _attend(self, endpoint: Endpoint) -> None:
        """Look after an endpoint that was just taken out, until it is back."""
        self.stats.deaths += 1
        task = asyncio.get_running_loop().create_task(self._nurse(endpoint))
        self._doctors.add(task)
        task.add_done_callback(self._doctors.discard)

    async def _nurse(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(self.config.probe_every * (0.75 + 0.5 * self._jitter.random()))
            try:
                endpoint.reason = await self._probe_once(endpoint) or ""
            except (ConfigError, EngineLostError) as error:  # another model or another kind of server is there now
                if endpoint.reason != str(error):
                    logger.warning("%s stays out: %s", endpoint.url, error)
                endpoint.reason = str(error)
            if not endpoint.reason:
                self._pool.bring_back(endpoint)
                return


class OverHTTP:
    """What an engine and a scorer on the other side of HTTP have in common: they are context managers, which close the
    connections.

    Args:
        config, probe: see `HttpClient`. Every endpoint is probed at once.

    Raises:
        ConfigError, EngineLostError: see `HttpClient.open`.
    """

    def __init__(self, config: HttpConfig, probe: Probe) -> None:
        self._client = HttpClient(config, probe)
        self._client.open()

    @property
    def client_stats(self) -> ClientStats:
        """Counters of requests."""
        return self._client.stats

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints, and how they do."""
        return self._client.endpoints

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = parse_json(raw, "reply")
    except DataError as error:
        raise Unanswered(f"a reply that is not JSON: {raw[:80]!r}") from error
    if not isinstance(value, dict):
        raise Unanswered(f"a reply that is no JSON object: {raw[:80]!r}")
    return value


def _message(raw: bytes) -> str:
    """What a server says about an error: OpenAI's form, FastAPI's, or whatever it sent."""
    text = raw.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return text[:_MESSAGE]
    if isinstance(value, dict):
        error = value.get("error", value)
        value = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    return str(value)[:_MESSAGE]


def _seconds(header: str | None) -> float | None:
    """Seconds of a Retry-After header; None when there is none, or a date."""
    try:
        return None if header is None else min(max(float(header), 0.0), _LONGEST_WAIT)
    except ValueError:
        return None


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise ConfigError("http.api_key_env", variable, "a variable of the environment that holds the token")
    return {"Authorization": f"Bearer {key}"}
