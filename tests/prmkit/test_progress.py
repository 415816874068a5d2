"""The time left, with many items in work at once; and what a log gets to see."""

import io
import random
import re

import pytest

from prmkit import progress as module
from prmkit.progress import ProgressLine, Remaining, TransferProgress, format_seconds


def completions(total: int, at_once: int, spread: float, seed: int) -> list[float]:
    """Times at which items are complete of which `at_once` share an engine, each with log-normal work of median 1 s."""
    rng = random.Random(seed)
    waiting = [rng.lognormvariate(0.0, spread) for _ in range(total)]
    running: list[float] = []
    now, ends = 0.0, []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop())
        least = min(running)
        now += least * len(running)
        ends.append(now)
        running.remove(least)
        running = [work - least for work in running]
    return ends


@pytest.mark.parametrize("at_once", [20, 100, 200])
@pytest.mark.parametrize("spread", [0.1, 0.2, 0.3])
def test_time_left_is_honest_while_the_pipeline_fills(at_once, spread):
    """Off by less than 0.4 of the whole; the time by completions is off by several times the whole."""
    total = 500
    ends = completions(total, at_once, spread, seed=1)
    remaining = Remaining(total, at_once, 0.0)
    errors, naive = [], []
    for done, now in enumerate(ends, start=1):
        remaining.advance(done, now)
        left, told = ends[-1] - now, remaining.seconds(now)
        naive.append((now / done * (total - done) - left) / ends[-1])
        if told is not None:
            errors.append(abs(told - left) / ends[-1])
    assert max(errors) < 0.4
    assert max(naive) > 3.0
    assert len(errors) == total - at_once // 2 + 1


def test_one_item_after_another():
    remaining = Remaining(4, 1, start=0.0)
    assert remaining.seconds(5.0) is None
    remaining.advance(1, 10.0)
    assert [remaining.seconds(now) for now in (10.0, 14.0)] == [30.0, 26.0]


def test_items_of_earlier_attempts_took_no_time():
    remaining = Remaining(10, 1, start=100.0, done=6)
    assert remaining.seconds(101.0) is None
    remaining.advance(7, 103.0)
    assert remaining.seconds(103.0) == pytest.approx(9.0)
    remaining.advance(10, 110.0)
    assert remaining.seconds(110.0) == 0.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_a_log_gets_few_whole_lines(clock, capsys):
    with ProgressLine("work", 40_000) as line:
        for _ in range(40_000):
            clock.now += 1.0
            line.advance("fine")
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert "\r" not in text
    assert "\x1b" not in text
    assert lines[0] == "work: 5/40000, 11 h 06 min left, fine"
    assert lines[-1] == "work: 40000/40000, fine"
    assert len(lines) < 500
    assert len(set(lines)) == len(lines)


def test_the_last_state_is_printed_once(clock, capsys):
    for done in (0, 1, 2):
        with ProgressLine("work", 2) as line:
            for _ in range(done):
                line.advance("fine", always=True)
    assert capsys.readouterr().err.splitlines() == ["work: 1/2, 0 s left, fine"] * 2 + ["work: 2/2, fine"]


def test_transfers_look_alike(clock, capsys):
    with TransferProgress("pull") as transfer:
        transfer.begin(2, 3_000_000)
        clock.now = 6.0
        transfer.advance(1_000_000)
        transfer.advance(2_000_000)
    assert capsys.readouterr().err == "pull: 1.0 MB/3.0 MB, 12 s left, 166.7 kB/s\n"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_gets_a_bar_with_the_text_below(clock, monkeypatch, width):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module.sys, "stderr", Terminal())
    text = ", ".join(["loss 0.432"] * 9)
    with ProgressLine("fit", 4) as line:
        clock.now = 3.0
        line.advance(text)
    written = module.sys.stderr
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    assert max(map(len, re.split(r"[\r\n]", plain))) <= width
    assert "fit" in plain
    assert "1/4" in plain
    assert plain.count("0.432") >= 9


def test_durations():
    assert [format_seconds(s) for s in (0.4, 59, 60, 200, 3600, 18_420)] == [
        "0 s", "59 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "5 h 07 min",
    ]  # fmt: skip
