"""Child processes: their output passed on as it comes, signals forwarded, and no orphan when the parent is killed.

Standard library only, POSIX.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prmkit.errors import PrmkitError

__all__ = ["END_WITH_PARENT", "Exit", "Job", "bind_to_parent", "end_with_parent", "run_processes"]

END_WITH_PARENT = "PRMKIT_END_WITH_PARENT"
"""Variable that asks `prm fit` to call `end_with_parent`: workers that torchrun starts outlive it otherwise."""
POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 5.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Attributes:
        status: its exit status; -N when signal N killed it.
        seconds: wall-clock seconds from its start to its end.
        interrupted_by: signal that was forwarded to it while it ran; None when there was none.
    """

    status: int
    seconds: float
    interrupted_by: signal.Signals | None = None

    def describe(self) -> str:
        if self.status >= 0:
            return f"exit status {self.status}"
        name = signal.Signals(-self.status).name
        hint = " (by hand, or by the system when memory ran out)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"

    def raise_if_interrupted(self) -> None:
        """After SIGINT raise KeyboardInterrupt, after another forwarded signal SystemExit with 128 + its number."""
        if self.interrupted_by is signal.SIGINT:
            raise KeyboardInterrupt
        if self.interrupted_by is not None:
            raise SystemExit(128 + self.interrupted_by)


@dataclass(frozen=True, slots=True)
class Job:
    """A process to run.

    Attributes:
        argv: command and arguments.
        sinks: called with every piece of its output (standard output and error together) as it comes.
        environment: variables added to this process's own.
        heartbeat: called with the seconds so far, every `HEARTBEAT_SECONDS`; None for no call.
    """

    argv: Sequence[str]
    sinks: Sequence[Callable[[bytes], Any]]
    environment: Mapping[str, str] = field(default_factory=dict)
    heartbeat: Callable[[float], None] | None = None


def run_processes(jobs: Sequence[Job], *, keep_open: Sequence[int] = ()) -> list[Exit]:
    """Run commands at the same time, each to its end, whatever becomes of the others.

    Each process gets a session of its own, so that a Ctrl-C in the terminal reaches it once, through this one; on Linux
    the kernel kills it when this process dies, however it dies (it watches the thread that calls: call from the
    main thread, which is also the one that may receive signals). A second forwarded signal kills its process group.

    Args:
        jobs: what to run.
        keep_open: file descriptors they inherit. A lock held through one is held until the last child is dead too.

    Returns:
        How each ended, in the order of the jobs.

    Raises:
        PrmkitError: a command cannot be started; those that were are killed.
    """
    with _Forwarding() as forwarding:
        children = []
        for job in jobs:
            children.append(_Child(job, forwarding.attach(_start(job, keep_open))))
        _follow(children, forwarding)
    return [Exit(child.process.returncode, child.seconds, child.interrupted_by) for child in children]


class _Child:
    """A process that runs."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        self.job = job
        self.process = process
        self._started = self._last = time.monotonic()
        self.seconds = 0.0
        self.interrupted_by: signal.Signals | None = None
        assert process.stdout is not None
        self.stream = process.stdout
        os.set_blocking(self.stream.fileno(), False)

    def read(self) -> bool:
        """Pass on what there is to read; False at the end of the output."""
        piece = os.read(self.stream.fileno(), 65536)
        for sink in self.job.sinks if piece else ():
            sink(piece)
        return bool(piece)

    def beat(self) -> None:
        now = time.monotonic()
        self.seconds = now - self._started
        if self.job.heartbeat is not None and now - self._last >= HEARTBEAT_SECONDS:
            self.job.heartbeat(self.seconds)
            self._last = now

    def end(self, interrupted_by: signal.Signals | None) -> None:
        self.process.wait()
        self.interrupted_by = interrupted_by
        self.seconds = time.monotonic() - self._started
        self.stream.close()


def _follow(children: Sequence[_Child], forwarding: _Forwarding) -> None:
    """Pass on output until all have ended; one's end is its own, though a grandchild may still hold the pipe open."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.stream, selectors.EVENT_READ, child)
        while selector.get_map():
            ended = [key.data for key in selector.get_map().values() if key.data.process.poll() is not None]
            ready = {key.data for key, _ in selector.select(timeout=0 if ended else POLL_SECONDS)}
            for child in [key.data for key in selector.get_map().values()]:
                child.beat()
                if (child in ready and not child.read()) or (child in ended and child not in ready):
                    selector.unregister(child.stream)
                    child.end(forwarding.received)


def _start(job: Job, keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(job.argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **job.environment},
            start_new_session=True,
            pass_fds=tuple(keep_open),
            preexec_fn=bind_to_parent(os.getpid()),
        )
    except OSError as error:
        raise PrmkitError(f"{job.argv[0]}: cannot be started: {error.strerror}") from error


class _Forwarding:
    """Forwards SIGINT and SIGTERM to the groups of processes while they run; the second one kills the groups."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Forwarding:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, lambda number, _: self._forward(signal.Signals(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._signal_groups(signal.SIGKILL)  # those left when a sink or a start failed
        for process in self._processes:
            process.wait()

    def attach(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Name a process; a signal that came while it was being started is passed on now."""
        self._processes.append(process)
        if self.received is not None:
            self._signal_groups(self.received)
        return process

    def _forward(self, number: signal.Signals) -> None:
        again = self.received is not None
        self.received = self.received or number
        self._signal_groups(signal.SIGKILL if again else number)

    def _signal_groups(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):  # it ended this very moment
                    os.killpg(process.pid, number)


def bind_to_parent(parent: int) -> Callable[[], None] | None:
    """A `preexec_fn` of `subprocess.Popen`: asks the kernel to kill the child when its parent dies. None off Linux.

    Args:
        parent: this process's id.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded here: the child may only make calls that cannot block

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies. On Linux; elsewhere nothing happens."""
    bind = bind_to_parent(os.getppid())
    if bind is not None:
        bind()
