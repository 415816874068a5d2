"""`--json`: one JSON object on standard output at the end, and nothing else there."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["JSON_HELP", "json_output"]

JSON_HELP = "print one JSON object at the end, and nothing else, on standard output; all else goes to standard error"


@contextmanager
def json_output(wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that takes the result. With `wanted` it prints it; all other output goes to standard error."""
    if not wanted:
        yield lambda _: None
        return
    results: list[Mapping[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr):
        yield results.append
    for result in results:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
