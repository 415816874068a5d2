"""Endpoints that share the work: which one a request goes to, when one is taken out, and when all are lost.

Knows nothing of HTTP. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prmkit.errors import EngineLostError

__all__ = ["Endpoint", "EndpointPool"]

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Endpoint:
    """A server, and how it does.

    Attributes:
        url: base address.
        alive: takes requests.
        in_flight: requests it is working on.
        requests: requests it has answered.
        failures: failures in a row.
        reason: the last failure, in words; "" before the first.
    """

    url: str
    alive: bool = True
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    reason: str = ""


class EndpointPool:
    """Gives out endpoints: the one with the fewest requests in flight of those that live and have room.

    Args:
        urls: base addresses.
        concurrency: requests in flight at one endpoint at most.
        dead_after: failures in a row after which an endpoint is taken out.
        patience: seconds to wait while all endpoints are out.
        on_death: called with an endpoint that was just taken out.
    """

    def __init__(
        self,
        urls: Sequence[str],
        concurrency: int,
        dead_after: int,
        patience: float,
        on_death: Callable[[Endpoint], None] = lambda _: None,
    ) -> None:
        self.endpoints = tuple(Endpoint(url) for url in urls)
        self._concurrency = concurrency
        self._dead_after = dead_after
        self._patience = patience
        self._on_death = on_death
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._lost_at = time.monotonic()

    async def acquire(self, avoid: Endpoint | None = None) -> Endpoint:
        """An endpoint to send one request to; give it back with `release`.

        Args:
            avoid: taken only when no other one lives and has room: it has just failed on this request.

        Raises:
            EngineLostError: all endpoints are out, and were for as long as `patience`.
        """
        first = True
        while (found := self._choose(avoid)) is None:
            await self._wait(first)
            first = False
        found.in_flight += 1
        return found

    def release(self, endpoint: Endpoint) -> None:
        """The request to it is over, however it went."""
        endpoint.in_flight -= 1
        self._wake(1)

    def worked(self, endpoint: Endpoint) -> None:
        """It answered a request."""
        endpoint.requests += 1
        endpoint.failures = 0

    def failed(self, endpoint: Endpoint, reason: str) -> None:
        """It did not answer a request; enough of these in a row take it out."""
        endpoint.failures += 1
        endpoint.reason = reason
        if endpoint.alive and endpoint.failures >= self._dead_after:
            self.take_out(endpoint, reason)

    def take_out(self, endpoint: Endpoint, reason: str, announce: bool = True) -> None:
        """Send it nothing until `bring_back`; `announce` warns of it."""
        endpoint.alive, endpoint.reason = False, reason
        left = sum(other.alive for other in self.endpoints)
        if announce:
            of_all = f"{left} of {len(self.endpoints)} endpoints left"
            logger.warning("%s is taken out (%s): %s", endpoint.url, of_all, reason)
        if not left:
            self._lost_at = time.monotonic()
        self._on_death(endpoint)
        self._wake(len(self._waiters))

    def bring_back(self, endpoint: Endpoint) -> None:
        """It answers again."""
        endpoint.alive, endpoint.failures = True, 0
        logger.warning("%s is back", endpoint.url)
        self._wake(len(self._waiters))

    def describe_failures(self) -> str:
        """Every endpoint that is out, with its last failure."""
        return "; ".join(f"{endpoint.url}: {endpoint.reason}" for endpoint in self.endpoints if not endpoint.alive)

    def _choose(self, avoid: Endpoint | None) -> Endpoint | None:
        open_ = [e for e in self.endpoints if e.alive and e.in_flight < self._concurrency]
        others = [endpoint for endpoint in open_ if endpoint is not avoid]
        return min(others or open_, key=lambda endpoint: endpoint.in_flight, default=None)

    async def _wait(self, first: bool) -> None:
        """Wait until something changes: in the order of coming, those that were woken in vain ahead."""
        timeout = None
        if not any(endpoint.alive for endpoint in self.endpoints):
            timeout = self._lost_at + self._patience - time.monotonic()
            if timeout <= 0:
                raise EngineLostError(
                    f"no endpoint has answered for {self._patience:g} s: {self.describe_failures()}. Start the servers "
                    f"again, then this command: it goes on where it stopped."
                )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiters.append if first else self._waiters.appendleft)(waiter)
        try:
            await asyncio.wait_for(waiter, timeout)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake(1)  # what this one was woken for is another's now
            raise

    def _wake(self, count: int) -> None:
        while count > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
