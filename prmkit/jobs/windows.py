"""Chunks of work in a window that moves on: the next ones begin while the last of one is being finished.

So an engine's batch stays full across chunks, and chunks are written in order nevertheless.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["work_through"]

T = TypeVar("T")

_POLL_SECONDS = 0.5


async def work_through(
    take: Callable[[], int | None],
    begin: Callable[[int], list[asyncio.Task[T]]],
    end: Callable[[int, list[asyncio.Task[T]]], Awaitable[None]],
    *,
    ahead: int,
    complete: Callable[[], bool] = lambda: True,
) -> None:
    """Work on chunks until there are none left.

    Args:
        take: the number of a chunk to begin; None when there is none at the moment.
        begin: starts the tasks of a chunk.
        end: waits for them and writes what came of them; called in the order of beginning, one at a time.
        ahead: chunks in work at once at most.
        complete: is there nothing left to wait for? Asked when nothing is in work; others may hold the rest.

    Raises:
        Exception: whatever `end` raised; the tasks of all chunks are cancelled then.
    """
    begun: deque[tuple[int, list[asyncio.Task[T]]]] = deque()
    try:
        while True:
            number = take() if len(begun) < ahead else None
            if number is not None:
                begun.append((number, begin(number)))
            elif begun:
                await end(*begun[0])
                begun.popleft()
            elif complete():
                return
            else:
                await asyncio.sleep(_POLL_SECONDS)  # others hold the rest; one of them may die
    finally:
        tasks = [task for _, several in begun for task in several]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
