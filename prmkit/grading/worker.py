"""The process that compares expressions. Run as `python -m prmkit.grading.worker MEMORY_MB CPU WALL`.

It reads one JSON list of one or two texts a line and answers each with one JSON line. Two texts: whether they are
equivalent. One text: `[real, imaginary]`, its value, when it is an expression; false when it cannot be parsed; true
when it is anything else, a relation or a text for math-verify, that can be evaluated within the limits. null: it is too
large to be computed with. What takes too long never gets an answer: the process ends. It does so by timers of its own,
of processor and of wall-clock time, so that a machine under load changes no verdict and a pool that died leaves nothing
running. Everything here may be fed hostile text.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from functools import cache
from typing import Any

from prmkit.grading.algebra import compare, probe
from prmkit.grading.numeric import BeyondLimitsError

__all__ = ["main"]

MEBIBYTE = 1 << 20


def main(memory_mb: int, cpu_seconds: float, wall_seconds: float) -> None:
    """Serve until the input ends.

    Args:
        memory_mb: address space this process may use, MiB.
        cpu_seconds, wall_seconds: processor and wall-clock time after which a request ends the process.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not reach the channel
    compare("(x+1)^2", "x^2+2x+1", None)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * MEBIBYTE, memory_mb * MEBIBYTE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    timers = {signal.ITIMER_PROF: cpu_seconds, signal.ITIMER_REAL: wall_seconds}
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # sent to all processes of a job; this one ends with its input
        signal.signal(number, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _reply(channel, "ready")
    for line in sys.stdin:
        texts = json.loads(line)
        engine = _engine() if any("\\" in text for text in texts) and _for_engine(texts) else None
        for timer, seconds in timers.items():
            signal.setitimer(timer, seconds)
        try:
            reply: Any = probe(texts[0], engine) if len(texts) == 1 else compare(texts[0], texts[1], engine)
        except BeyondLimitsError:
            reply = None
        for timer in timers:
            signal.setitimer(timer, 0.0)
        _reply(channel, reply)


def _for_engine(texts: list[str]) -> bool:
    from prmkit.grading.equality import ENGINE

    return any(ENGINE.search(text) for text in texts)


@cache
def _engine() -> Any:
    """math-verify, imported and warmed up on the first text that needs it and charged to no request."""
    from prmkit.grading.engine import Engine

    return Engine()


def _reply(channel: Any, value: object) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
