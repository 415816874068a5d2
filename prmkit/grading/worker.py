"""The process that compares expressions with math-verify. Run as `python -m prmkit.grading.worker MEMORY_MB CPU WALL`.

It reads one JSON list of one or two texts a line and answers each with one JSON line. Two texts: whether they are
equivalent. One text: `[real, imaginary]`, its value, when it is an expression; false when it cannot be parsed; true
when it is anything else, an equation or a set, that can be evaluated within the limits. What cannot, never answers: the
process ends. It does so by timers of its own, of processor and of wall-clock time, so that a machine under load changes
no verdict and a pool that died leaves nothing running. Everything here may be fed hostile text.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["main"]

MEBIBYTE = 1 << 20
PROBES = ("12345", "z+1", "\\{1,2\\}")


def main(memory_mb: int, cpu_seconds: float, wall_seconds: float) -> None:
    """Serve until the input ends.

    Args:
        memory_mb: address space this process may use, MiB.
        cpu_seconds, wall_seconds: processor and wall-clock time after which a request ends the process.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not reach the channel
    probe, compare = _operations()
    probe("x+1")
    compare("(x+1)^2", "x^2+2x+1")  # the first algebra loads much; no request should be charged for that
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
        for timer, seconds in timers.items():
            signal.setitimer(timer, seconds)
        reply = probe(texts[0]) if len(texts) == 1 else compare(texts[0], texts[1])
        for timer in timers:
            signal.setitimer(timer, 0.0)
        _reply(channel, reply)


def _reply(channel: Any, value: object) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


def _operations() -> tuple[Callable[[str], list[float] | bool], Callable[[str, str], bool]]:
    """What is done with one text and with two, the imports done. math-verify's own limits use signals and are switched
    off: the pool's hold."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)

    @lru_cache(maxsize=4096)
    def parsed(text: str) -> Any:
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    def probe(text: str) -> list[float] | bool:
        for partner in PROBES:
            compare(text, partner)
        expressions = [value for value in parsed(text) if not isinstance(value, str)]
        if not expressions:
            return False
        return _value(expressions[0]) if len(expressions) == 1 else True

    def compare(left: str, right: str) -> bool:
        first, second = parsed(left), parsed(right)
        # verify is not symmetric: it follows its first argument's form (equation or value, relation or set)
        return any(
            verify(a, b, strict=True, timeout_seconds=None) for a, b in ((first, second), (second, first)) if a and b
        )

    return probe, compare


def _value(expression: Any) -> list[float] | bool:
    """The value of an expression, its variables set to numbers that depend on their names only. Expressions that are
    equal have equal values, so that most unequal ones can be told apart without algebra; true for anything else."""
    from sympy import Expr  # type: ignore[import-untyped]

    if not isinstance(expression, Expr):
        return True
    places = {symbol: 0.5 + zlib.crc32(symbol.name.encode()) / 2**32 for symbol in expression.free_symbols}
    try:
        value = complex(expression.subs(places).evalf(15))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return True
    return [value.real, value.imag] if math.isfinite(abs(value)) else True


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
