"""Progress of a long command: a live bar on a terminal, a line now and then elsewhere (a log, a pipe)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["ProgressLine"]

_SECONDS_BETWEEN_LINES = 5.0


class ProgressLine:
    """Shows how far something is. A context manager.

    Args:
        name: what is being done, e.g. "annotate".
        total: items in all; None when nobody knows.
        done: items done in earlier attempts.
    """

    def __init__(self, name: str, total: int | None, done: int = 0) -> None:
        self._name = name
        self._total = total
        self._done = self._first = done
        self._start = self._printed = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=total, completed=done, text="")

    def advance(self, text: str, done: int | None = None) -> None:
        """One item more is done, or `done` in all; `text` says what came of all so far."""
        self._done = self._done + 1 if done is None else done
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text=text)
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._printed = time.monotonic()
            of_all = "" if self._total is None else f"/{self._total}"
            print(f"{self._name}: {self._done}{of_all}, {self._left()}{text}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        if self._total is None or self._done == self._total:
            return ""
        pace = (time.monotonic() - self._start) / (self._done - self._first)
        return f"{pace * (self._total - self._done):.0f} s left, "

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
