"""One child process: its output passed on as it comes, signals forwarded, and no orphan when the parent is killed.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prmkit.errors import PrmkitError

__all__ = ["END_WITH_PARENT", "Exit", "end_with_parent", "run_process"]

END_WITH_PARENT = "PRMKIT_END_WITH_PARENT"
"""Variable that asks `prm fit` to call `end_with_parent`: workers that torchrun starts outlive it otherwise."""
POLL_SECONDS = 0.2
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


def run_process(
    argv: Sequence[str],
    *,
    sinks: Sequence[Callable[[bytes], Any]],
    environment: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
    heartbeat: Callable[[float], None] | None = None,
    heartbeat_seconds: float = 5.0,
) -> Exit:
    """Run a command to its end.

    The process gets a session of its own, so that a Ctrl-C in the terminal reaches it once, through this one; on Linux
    the kernel kills it when this process dies, however it dies (it watches the thread that calls: call from the
    main thread, which is also the one that may receive signals). A second forwarded signal kills its process group.

    Args:
        argv: command and arguments.
        sinks: called with every piece of its output (standard output and error together) as it comes.
        environment: variables added to this process's own.
        keep_open: file descriptors it inherits. A lock held through one is held until the child is dead too.
        heartbeat: called with the seconds so far, every `heartbeat_seconds`.
        heartbeat_seconds: at least this long between two calls.

    Raises:
        PrmkitError: the command cannot be started.
    """
    started = last = time.monotonic()
    with _Forwarding() as forwarding:
        process = _start(argv, environment or {}, keep_open)
        forwarding.attach(process)
        for piece in _pieces(process):
            for sink in sinks if piece else ():
                sink(piece)
            now = time.monotonic()
            if heartbeat is not None and now - last >= heartbeat_seconds:
                heartbeat(now - started)
                last = now
        status = process.wait()
    return Exit(status, time.monotonic() - started, forwarding.received)


def _start(argv: Sequence[str], environment: Mapping[str, str], keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
            pass_fds=tuple(keep_open),
            preexec_fn=_bind_to_parent(os.getpid()),
        )
    except OSError as error:
        raise PrmkitError(f"{argv[0]}: cannot be started: {error.strerror}") from error


def _pieces(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Output as it comes, b"" where none came for a moment; ends with the process, though a grandchild may still hold
    the pipe open."""
    assert process.stdout is not None
    with process.stdout as stream, selectors.DefaultSelector() as selector:
        os.set_blocking(stream.fileno(), False)
        selector.register(stream, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            ready = selector.select(timeout=0 if ended else POLL_SECONDS)
            piece = os.read(stream.fileno(), 65536) if ready else b""
            if piece:
                yield piece
            elif ready or ended:  # end of file, or nothing left of a process that has ended
                return
            else:
                yield b""


class _Forwarding:
    """Forwards SIGINT and SIGTERM to a process's group while it runs; the second one kills the group."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Forwarding:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, lambda number, _: self._forward(signal.Signals(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._process is not None and self._process.poll() is None:  # a sink failed: leave nothing behind
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """Name the process; a signal that came while it was being started is passed on now."""
        self._process = process
        if self.received is not None:
            self._signal_group(self.received)

    def _forward(self, number: signal.Signals) -> None:
        again = self.received is not None
        self.received = self.received or number
        self._signal_group(signal.SIGKILL if again else number)

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended this very moment
                os.killpg(self._process.pid, number)


def _bind_to_parent(parent: int) -> Callable[[], None] | None:
    """What the child does before it executes its command: ask the kernel for SIGKILL on its parent's death."""
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
    bind = _bind_to_parent(os.getppid())
    if bind is not None:
        bind()
