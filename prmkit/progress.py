"""Progress of a long command: a live bar on a terminal, a line now and then elsewhere (a log, a pipe).

Every command shows its progress through `ProgressLine`, so that all look the same. Output goes to stderr.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Pace", "ProgressLine", "Remaining", "TransferProgress", "format_seconds", "format_size"]

_SECONDS_BETWEEN_LINES = 5.0
_SHARE_BETWEEN_LINES = 0.02  # of the time elapsed: a log of a day has some 400 lines
_UNITS = ("B", "kB", "MB", "GB", "TB")


def format_size(size: int) -> str:
    """Bytes for people, e.g. `2.0 GB` (of 10^9)."""
    value = float(size)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration for people: `42 s`, `3 min 20 s`, `5 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Remaining:
    """The time left of items of which several are in work at once.

    The first item is complete when the last of its kind are nearly so, too: the pace of completions says nothing until
    the items in work are of all ages. The measure is therefore the time in work. Items in work share the time that
    passes; an item begins when there is room for it. Items in work that have had more than the mean of the complete
    ones count for the mean, since the shortest items are complete first.

    Args:
        total: items in all.
        at_once: items in work at once, at least 1.
        start: the present time, in seconds of any clock.
        done: items done before; they took no time.
    """

    def __init__(self, total: int, at_once: int, start: float, done: int = 0) -> None:
        self._done = done
        self._complete = 0  # since the start
        self._spent = 0.0  # time that the complete items have had
        self._shared, self._moment = 0.0, start  # time that an item has had that is in work from the start until then
        self._begun = deque([0.0] * min(at_once, total - done))
        self._waiting = total - done - len(self._begun)
        self._enough = max(1, len(self._begun) // 2)

    def advance(self, done: int, now: float) -> None:
        """`done` items in all are complete by now."""
        self._shared, self._moment = self._share(now), now
        for _ in range(done - self._done):
            if not self._begun:
                break
            self._spent += self._shared - self._begun.popleft()
            self._complete += 1
            if self._waiting > 0:
                self._waiting -= 1
                self._begun.append(self._shared)
        self._done = done

    def seconds(self, now: float) -> float | None:
        """Seconds left; None until half as many are complete as are in work at once."""
        if self._complete < self._enough:
            return None
        share, mean = self._share(now), self._spent / self._complete
        had = [share - begun for begun in self._begun]
        longer = [time for time in had if time > mean]
        mean = (self._spent + sum(longer)) / (self._complete + len(longer))
        return sum(max(mean - time, 0.0) for time in had) + self._waiting * mean

    def _share(self, now: float) -> float:
        return self._shared + (now - self._moment) / max(len(self._begun), 1)


class Pace:
    """The time left at the mean pace so far, for a total that grows: bytes of files.

    Args:
        start: the present time, in seconds of any clock.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self.total = self._done = 0

    def advance(self, done: int, now: float) -> None:
        """`done` of all are complete by now."""
        del now
        self._done = done

    def seconds(self, now: float) -> float | None:
        """Seconds left; None until something is complete."""
        return (now - self._start) / self._done * max(self.total - self._done, 0) if self._done else None


class ProgressLine:
    """Shows how far a piece of work has come. A context manager; its methods may be called from several threads.

    On a terminal: a bar with elapsed and remaining time, and the text below it. Elsewhere: a line every 5 seconds at
    most, less often as time passes, and one at the end.

    Args:
        name: the work, e.g. "annotate".
        total: items in all; None when it is unknown.
        done: items done in earlier attempts.
        at_once: items in work at the same time, at least 1; see `Remaining`.
    """

    _shown: Callable[[int], str] = staticmethod(str)  # how a number of items is written
    _transient = False  # the bar disappears when it is closed, and no line is printed at the end

    def __init__(self, name: str, total: int | None, done: int = 0, at_once: int = 1) -> None:
        self._name, self._total, self._done = name, total, done
        self._text = ""
        self._unsaid = False  # whether something happened after the last line
        self._start = self._printed = time.monotonic()
        self._lock = threading.RLock()
        self._remaining: Remaining | Pace | None = None
        if total is not None:
            self._remaining = Remaining(total, at_once, self._start, done)
        self._bar = _make_bar(self._transient) if sys.stderr.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=total, completed=done, **self._fields())

    def advance(self, text: str, done: int | None = None, *, always: bool = False) -> None:
        """One more item is done, or `done` in all.

        Args:
            text: the results so far.
            done: items done in all; None adds one.
            always: print a line in any case, where there is no bar.
        """
        with self._lock:
            self._done = self._done + 1 if done is None else done
            self._text = text
            now = time.monotonic()
            if self._remaining is not None:
                self._remaining.advance(self._done, now)
            if self._bar is not None:
                self._bar.update(self._task, total=self._total, completed=self._done, **self._fields())
            elif always or self._due(now):
                self._print(now)
            else:
                self._unsaid = True

    def _print(self, now: float) -> None:
        self._printed, self._unsaid = now, False
        sys.stderr.write(f"{self._line(now)}\n")
        sys.stderr.flush()

    def _due(self, now: float) -> bool:
        pause = max(_SECONDS_BETWEEN_LINES, _SHARE_BETWEEN_LINES * (now - self._start))
        return now - self._printed >= pause

    def _line(self, now: float) -> str:
        parts = [self._count(), self._left(now), self._text]
        return f"{self._name}: {', '.join(part for part in parts if part)}"

    def _count(self) -> str:
        return self._shown(self._done) + ("" if self._total is None else f"/{self._shown(self._total)}")

    def _left(self, now: float) -> str:
        left = None if self._remaining is None or self._done == self._total else self._remaining.seconds(now)
        return "" if left is None else f"{format_seconds(left)} left"

    def _fields(self) -> dict[str, Any]:
        return {"text": self._text, "count": self._count(), "left": self._left}

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the terminal, where the last state of the bar stays; elsewhere print the last state."""
        if self._bar is not None:
            self._bar.stop()
        elif self._unsaid and not self._transient:
            self._print(time.monotonic())


class TransferProgress(ProgressLine):
    """Shows how far a transfer has come, in bytes; nothing is left of it on the terminal.

    A `registry.storage.Watch`. Open from the start; `close` or the end of the `with` block ends it.
    """

    _shown = staticmethod(format_size)
    _transient = True

    def __init__(self, name: str) -> None:
        super().__init__(name, None)
        self._pace = self._remaining = Pace(self._start)
        if self._bar is not None:
            self._bar.start()

    def begin(self, files: int, size: int) -> None:
        """Expect further files of `size` bytes in all."""
        del files
        with self._lock:
            self._total = self._pace.total = self._pace.total + size

    def advance(self, size: int) -> None:  # type: ignore[override]  # the protocol of the registry
        """`size` further bytes are transferred."""
        with self._lock:
            done = self._done + size
            seconds = time.monotonic() - self._start
            super().advance(f"{format_size(int(done / seconds))}/s" if seconds else "", done)


def _make_bar(transient: bool) -> Progress:
    """A bar with its text on the line below, which is wrapped on a narrow terminal."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Facts(ProgressColumn):
        def render(self, task: Task) -> Text:
            elapsed = format_seconds(task.elapsed or 0.0)
            parts = [task.fields["count"], elapsed, task.fields["left"](time.monotonic())]
            return Text("  ".join(part for part in parts if part))

    class Bar(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["text"], style="dim") for task in self.tasks if task.fields["text"])

    name = TextColumn("{task.description}")
    return Bar(name, BarColumn(bar_width=24), Facts(), console=Console(stderr=True), transient=transient)
