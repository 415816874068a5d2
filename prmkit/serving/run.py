"""Runs a web application until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable

from aiohttp import web

from prmkit.errors import ConfigError
from prmkit.progress import format_seconds

__all__ = ["Answers", "serve"]

_GRACE_SECONDS = 30.0


class Answers:
    """Counts what an application answers, from now on; before it is started.

    Args:
        app: the application.
    """

    def __init__(self, app: web.Application) -> None:
        self._start = time.monotonic()
        self._good: Counter[str] = Counter()
        self._refused = 0
        app.on_response_prepare.append(self._count)

    async def _count(self, request: web.Request, response: web.StreamResponse) -> None:
        if response.status < 400:
            self._good[request.path] += 1
        else:
            self._refused += 1

    def describe(self) -> str:
        """Requests answered by path, those refused, and the time, in words."""
        paths = ", ".join(f"{path} {count:,}" for path, count in sorted(self._good.items()))
        refused = f", {self._refused:,} refused" if self._refused else ""
        total = f"{self._good.total():,} requests answered" + (f" ({paths})" if paths else "")
        return f"{total}{refused} in {format_seconds(time.monotonic() - self._start)}"


def serve(app: web.Application, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests in work are then answered first, for 30 s at most.

    Args:
        app: what to serve.
        host: address to listen at.
        port: 0 takes a free one.
        on_ready: called with the address once connections are accepted.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    asyncio.run(_serve(app, host, port, on_ready))


async def _serve(app: web.Application, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_GRACE_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=4096).start()
        except OSError as error:
            raise ConfigError("port", port, f"a free port of {host} ({error.strerror or error})") from None
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        on_ready(f"http://{host}:{runner.addresses[0][1]}")
        await stop.wait()
    finally:
        await runner.cleanup()
