"""One task that does the work of many waiting coroutines, in one thread, deterministically.

Callers submit jobs and wait. The driver task gathers what waits, hands it to a worker and lets the worker advance piece
by piece; between pieces it yields to the event loop, so that others can submit. The order of everything follows from
the order of submission: no threads, no clock. The task ends when there is nothing left to do, so that an idle driver
costs nothing and an event loop can close.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["Driver", "Job", "Worker"]

P = TypeVar("P")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class Job(Generic[P, R]):
    """Something submitted.

    Attributes:
        payload: what to work on.
        future: where the worker puts the result. It is done early when the caller gave up; such a job is dropped.
    """

    payload: P
    future: asyncio.Future[R]


class Worker(Protocol[P, R]):
    """Does the work. Nothing here is called concurrently."""

    def advance(self, jobs: list[Job[P, R]]) -> bool:
        """Take these new jobs in (possibly none) and do one piece of work; True while there is more to do."""
        ...

    def is_full(self, jobs: list[Job[P, R]]) -> bool:
        """Is it pointless to wait for more jobs than these?"""
        ...

    def reset(self) -> None:
        """Forget all jobs and every state that a failure may have left half done."""
        ...


class Driver(Generic[P, R]):
    """Runs a worker on behalf of its callers.

    Args:
        worker: does the work.
        patience: passes of the event loop without a new job that the driver waits for before each piece of work.
            More passes make larger batches when jobs come from coroutines that are woken one after the other.
    """

    def __init__(self, worker: Worker[P, R], patience: int = 1) -> None:
        self._worker = worker
        self._patience = patience
        self._inbox: list[Job[P, R]] = []
        self._outstanding: list[Job[P, R]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Is anybody waiting for a result?"""
        return any(not job.future.done() for job in self._outstanding)

    async def submit(self, payload: P) -> R:
        """Wait for the result of a job.

        Raises:
            Exception: whatever the worker raised; every caller that waits then gets it.
        """
        loop = asyncio.get_running_loop()
        if self._task is not None and (self._task.done() or self._task.get_loop() is not loop):
            self._forget()
        job: Job[P, R] = Job(payload, loop.create_future())
        self._inbox.append(job)
        self._outstanding.append(job)
        if self._task is None:
            self._task = loop.create_task(self._run())
            self._task.add_done_callback(_retrieve)
        return await job.future

    async def _run(self) -> None:
        try:
            more = False
            while more or self._inbox:
                await self._gather()
                jobs, self._inbox = self._inbox, []
                more = self._worker.advance(jobs)
                self._outstanding = [job for job in self._outstanding if not job.future.done()]
        except BaseException as error:
            self._fail(error)
            raise
        self._task = None

    async def _gather(self) -> None:
        """Yield until no new job came for `patience` passes of the event loop."""
        quiet = 0
        while quiet < self._patience:
            before = len(self._inbox)
            await asyncio.sleep(0)
            if self._worker.is_full(self._inbox):
                return
            quiet = quiet + 1 if len(self._inbox) == before else 0

    def _fail(self, error: BaseException) -> None:
        for job in self._outstanding:
            if job.future.done():
                continue
            if isinstance(error, Exception):
                job.future.set_exception(error)
            else:
                job.future.cancel()
        self._forget()

    def _forget(self) -> None:
        """Drop all state: after a failure, or when the event loop that it belonged to is gone."""
        self._inbox, self._outstanding, self._task = [], [], None
        self._worker.reset()


def _retrieve(task: asyncio.Task[None]) -> None:
    """The callers have the exception; asyncio need not report it as lost."""
    if not task.cancelled():
        task.exception()
