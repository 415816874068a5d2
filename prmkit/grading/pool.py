"""Worker processes that compare texts under a time limit each, and are replaced when they overrun it.

A worker counts its own processor time and ends itself; the wall-clock limit, several times as long, is for one that
hangs without working.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import prmkit

__all__ = ["ComparisonPool", "Verdict"]

Verdict = bool | tuple[float, float] | None
"""Equivalent or not; for one text see `ComparisonPool.run`; None for an overrun limit or a value that is too large."""

START_SECONDS = 120.0
WALL_FACTOR = 5.0
"""Wall-clock time a comparison may take, in time limits."""


class _Worker:
    """One process of `prmkit.grading.worker`, with at most one request in flight."""

    def __init__(self, memory_mb: int, timeout: float) -> None:
        root = str(Path(prmkit.__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
        limits = (str(timeout), str(timeout * WALL_FACTOR))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prmkit.grading.worker", str(memory_mb), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # signals to stop a job go to process groups: what is being judged has to end first
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.ready = False
        self.job: int | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.buffer = b""

    def send(self, job: int, texts: Sequence[str], seconds: float) -> None:
        self.job = job
        self.deadline = time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows as the end of its output
            self.input.write(json.dumps(list(texts)).encode() + b"\n")
            self.input.flush()

    def receive(self) -> bytes | None:
        """A whole line, b"" while it is not complete, None when the process ended."""
        chunk = os.read(self.output.fileno(), 65536)
        if not chunk:
            return None
        self.buffer += chunk
        if not self.buffer.endswith(b"\n"):
            return b""
        line, self.buffer = self.buffer, b""
        return line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        self.output.close()


def _verdict(line: bytes) -> Verdict:
    value = json.loads(line)
    if value is None:
        return None
    return (float(value[0]), float(value[1])) if isinstance(value, list) else bool(value)


def _kill_all(workers: list[_Worker], owner: int) -> None:
    """End all workers, unless this is a fork of the process that started them."""
    if os.getpid() == owner:
        for worker in workers:
            worker.kill()
    workers.clear()


class ComparisonPool:
    """Compares texts in worker processes. Starts them on first use; ends them on `close`, at collection and at exit.

    Args:
        workers: processes, at least 1.
        timeout: processor seconds for one comparison.
        memory_mb: address space of one worker, MiB.
    """

    def __init__(self, workers: int, timeout: float, memory_mb: int) -> None:
        self._size, self._timeout, self._memory_mb = workers, timeout, memory_mb
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def close(self) -> None:
        """End the workers. The pool may be used again and then starts new ones."""
        with self._lock:
            _kill_all(self._workers, self._owner)

    def run(self, jobs: Sequence[Sequence[str]]) -> list[Verdict]:
        """Verdicts on lists of one or two texts, in order.

        None where a worker overran its time or memory limit, or a value is too large.

        Two texts: are they equivalent? One text: the value (real, imaginary) of an expression at a fixed place of its
        variables, false for what cannot be parsed, true for anything else.

        Raises RuntimeError when workers cannot be started.
        """
        if not jobs:
            return []
        with self._lock:
            if os.getpid() != self._owner:  # after a fork the parent's workers are not ours to talk to
                self._workers, self._owner = [], os.getpid()
                self._finalizer = weakref.finalize(self, _kill_all, self._workers, self._owner)
            try:
                return self._run(jobs)
            except BaseException:  # an interrupt leaves requests in flight, whose answers must not meet later ones
                _kill_all(self._workers, self._owner)
                raise

    def _run(self, jobs: Sequence[Sequence[str]]) -> list[Verdict]:
        verdicts: list[Verdict] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        open_jobs = len(jobs)
        while open_jobs:
            self._fill(min(self._size, open_jobs))
            for worker in self._workers:
                if waiting and worker.ready and worker.job is None:
                    job = waiting.popleft()
                    worker.send(job, jobs[job], self._timeout * WALL_FACTOR)
            for worker, line in self._events():
                if line is not None and not worker.ready:
                    worker.ready = True
                    continue
                if line is None:
                    self._discard(worker)
                if worker.job is not None:
                    verdicts[worker.job] = None if line is None else _verdict(line)
                    worker.job = None
                    open_jobs -= 1
        return verdicts

    def _fill(self, size: int) -> None:
        while len(self._workers) < size:
            self._workers.append(_Worker(self._memory_mb, self._timeout))

    def _events(self) -> list[tuple[_Worker, bytes | None]]:
        """Waits for workers that have something to say; (worker, None) for those that ended or overran."""
        busy = [worker for worker in self._workers if worker.job is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            pause = min(worker.deadline for worker in busy) - time.monotonic()
            events = [(key.data, key.data.receive()) for key, _ in selector.select(max(0.0, pause))]
        heard = {id(worker) for worker, _ in events}
        now = time.monotonic()
        late = [(worker, None) for worker in busy if id(worker) not in heard and worker.deadline <= now]
        return [(worker, line) for worker, line in events if line != b""] + late

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()
        if not worker.ready:
            raise RuntimeError(
                f"prmkit.grading: a comparison worker ended or hung before it was ready (exit status "
                f"{worker.process.returncode}); its own message is on the standard error stream"
            )
