"""The process that compares expressions with math-verify. Run as `python -m prmkit.grading.worker MEMORY_MB SECONDS`.

It reads one JSON list of one or two texts a line and answers each with one JSON line: for two texts, whether they are
equivalent; for one text, true when it could be parsed and evaluated at all within the limits (what cannot, never
answers: the pool kills this process). It ends itself by an alarm shortly after the pool should have, so that a pool
that died leaves nothing running. Everything here may be fed hostile text.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

__all__ = ["main"]

MEBIBYTE = 1 << 20
PROBES = ("12345", "z+1", "\\{1,2\\}")


def main(memory_mb: int, seconds: float) -> None:
    """Serve until the input ends.

    Args:
        memory_mb: address space this process may use, MiB.
        seconds: time after which a request ends the process.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not reach the channel
    compare = _comparer()
    compare("x", "y")
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * MEBIBYTE, memory_mb * MEBIBYTE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _reply(channel, "ready")
    for line in sys.stdin:
        texts = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        if len(texts) == 1:
            for probe in PROBES:
                compare(texts[0], probe)
            verdict = True
        else:
            verdict = compare(texts[0], texts[1])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(channel, verdict)


def _reply(channel: Any, value: object) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


def _comparer() -> Any:
    """The comparison, its imports done. math-verify's own limits use signals and are switched off: the pool's hold."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)

    @lru_cache(maxsize=4096)
    def parsed(text: str) -> Any:
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    def compare(left: str, right: str) -> bool:
        first, second = parsed(left), parsed(right)
        # verify is not symmetric: it follows its first argument's form (equation or value, relation or set)
        return any(
            verify(a, b, strict=True, timeout_seconds=None) for a, b in ((first, second), (second, first)) if a and b
        )

    return compare


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
