"""One event loop in a thread of its own, for connections that outlive the event loops of their callers.

Commands run one event loop after another, and a loop that scores in this process is busy for long moments. Connections
kept in the background stay open across the first and are read during the second.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_in_background", "wait_in_background"]

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = -1  # process that started the thread; a forked child has the loop but not the thread


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="prmkit-http", daemon=True).start()
        return _loop


async def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that runs in the background loop. Cancelling the caller cancels it."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, _running_loop()))


def wait_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Block until a coroutine in the background loop is done. An interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _running_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
