"""Runs a web application until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from aiohttp import web

from prmkit.errors import ConfigError

__all__ = ["serve"]

_GRACE_SECONDS = 30.0


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
