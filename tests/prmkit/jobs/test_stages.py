"""Stages run as real processes here: completed, failed, interrupted, killed with their runner, started again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from prmkit.errors import ConfigError, DataError, PrmkitError
from prmkit.jobs.stages import Stage, StageRunner

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); print('wrote', sys.argv[2])"


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-u", "-c", textwrap.dedent(code), *map(str, arguments))


def write_stage(run: Path, text: str = "one", **fields) -> Stage:
    out = run / "a" / "out.txt"
    return Stage("a", python(WRITE, out, text), run / "a", outputs=(out,), **fields)


def run_once(run: Path, stage: Stage) -> tuple:
    said: list[str] = []
    with StageRunner(run, say=said.append) as runner:
        return runner.run(stage), said


def wait_for(condition, seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_runs_once_and_is_skipped_afterwards(tmp_path):
    first, said = run_once(tmp_path, write_stage(tmp_path))
    assert (first.status, first.attempts) == ("ran", 1)
    assert said == ["a: started"]
    marker = json.loads((tmp_path / "a" / ".complete.json").read_text())
    assert marker["outputs"] == [str(tmp_path / "a" / "out.txt")]

    (tmp_path / "a" / "out.txt").write_text("kept")
    second, said = run_once(tmp_path, write_stage(tmp_path))
    assert (second.status, second.attempts) == ("skipped", 1)
    assert second.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert (tmp_path / "a" / "out.txt").read_text() == "kept"


def test_output_goes_to_log_and_terminal(tmp_path):
    pieces: list[bytes] = []
    code = "import sys; sys.stdout.write('10%\\r20%\\r'); sys.stderr.write('warned\\n'); print('\\N{SNOWMAN}')"
    with StageRunner(tmp_path, write=pieces.append) as runner:
        runner.run(Stage("a", python(code), tmp_path / "a"))
    shown = b"".join(pieces)
    log = (tmp_path / "logs" / "a.log").read_bytes()
    assert log.startswith(b"--- a, attempt 1, ")
    assert log.endswith(shown)
    assert shown == "10%\r20%\rwarned\n\N{SNOWMAN}\n".encode()


@pytest.mark.parametrize("change", ["arguments", "settings", "input"])
def test_changed_key_runs_again_in_an_empty_folder(tmp_path, change):
    config = tmp_path / "config.yaml"
    config.write_text("lr: 1")
    run_once(tmp_path / "run", write_stage(tmp_path / "run", inputs=(config,), settings={"n": 1}))
    (tmp_path / "run" / "a" / "leftover.ckpt").touch()

    text, settings = "one", {"n": 1}
    if change == "arguments":
        text = "two"
    elif change == "settings":
        settings = {"n": 2}
    else:
        config.write_text("lr: 2")
    result, said = run_once(tmp_path / "run", write_stage(tmp_path / "run", text, inputs=(config,), settings=settings))
    assert result.status == "ran"
    assert "moved to" in said[0]
    assert not (tmp_path / "run" / "a" / "leftover.ckpt").exists()
    assert (tmp_path / "run" / ".stale" / "a-1" / "leftover.ckpt").exists()


def test_interpreter_path_and_environment_do_not_change_the_key(tmp_path):
    stage = write_stage(tmp_path)
    moved = Stage("a", ("/elsewhere/python", *stage.argv[1:]), stage.directory, stage.outputs, environment={"X": "1"})
    assert moved.key() == stage.key()


def test_folder_input_counts_names_and_contents(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w").write_text("1")
    stage = Stage("a", ("x",), tmp_path / "a", inputs=(folder,))
    keys = [stage.key()]
    (folder / ".hidden").write_text("1")
    assert stage.key() == keys[0]
    (folder / "w").write_text("2")
    keys.append(stage.key())
    (folder / "w").rename(folder / "v")
    keys.append(stage.key())
    assert len(set(keys)) == 3
    with pytest.raises(DataError, match=r"nowhere: no such file"):
        Stage("a", ("x",), tmp_path / "a", inputs=(tmp_path / "nowhere",)).key()


def test_lost_output_runs_again(tmp_path):
    run_once(tmp_path, write_stage(tmp_path))
    (tmp_path / "a" / "out.txt").unlink()
    result, said = run_once(tmp_path, write_stage(tmp_path))
    assert (result.status, result.attempts) == ("ran", 2)
    assert "is gone" in said[0]


def test_failure_names_stage_status_log_and_last_lines(tmp_path):
    code = "import sys; print('\\n'.join(f'line {i}' for i in range(40))); sys.exit('error: the reason')"
    with pytest.raises(PrmkitError) as caught:
        run_once(tmp_path, Stage("a", python(code), tmp_path / "a"))
    message = str(caught.value)
    assert message.startswith("stage a: exit status 1. ")
    assert str(tmp_path / "logs" / "a.log") in message
    assert message.endswith("  line 39\n  error: the reason")
    assert "line 20" not in message
    assert not (tmp_path / "a" / ".complete.json").exists()


def test_failure_shows_only_the_last_attempt(tmp_path):
    code = "import os, sys; n = len(os.listdir(sys.argv[1])); open(f'{sys.argv[1]}/{n}', 'w'); sys.exit(f'failed {n}')"
    for number in (1, 2):  # .stage.json is the first entry
        with pytest.raises(PrmkitError) as caught:
            run_once(tmp_path, Stage("a", python(code, tmp_path / "a"), tmp_path / "a"))
        assert str(caught.value).splitlines()[1:] == [f"  failed {number}"]


def test_missing_output_killed_process_and_unknown_command(tmp_path):
    with pytest.raises(PrmkitError, match=r"did not write .*nothing"):
        run_once(tmp_path, Stage("a", python(""), tmp_path / "a", outputs=(tmp_path / "a" / "nothing",)))
    code = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(PrmkitError, match="killed by SIGKILL"):
        run_once(tmp_path, Stage("b", python(code), tmp_path / "b"))
    with pytest.raises(PrmkitError, match="no-such-command: cannot be started"):
        run_once(tmp_path, Stage("c", ("no-such-command",), tmp_path / "c"))


def test_seconds_add_up_over_attempts(tmp_path):
    code = """
        import pathlib, sys, time
        time.sleep(0.3)
        done = pathlib.Path(sys.argv[1])
        first = not done.exists()
        done.touch()
        sys.exit(first)
    """
    stage = Stage("a", python(code, tmp_path / "a" / "done"), tmp_path / "a")
    with pytest.raises(PrmkitError):
        run_once(tmp_path, stage)
    result, said = run_once(tmp_path, stage)
    assert said == ["a: continued (attempt 2)"]
    assert result.attempts == 2
    assert 0.6 <= result.seconds < 5
    marker = json.loads((tmp_path / "a" / ".complete.json").read_text())
    assert marker["seconds"] == pytest.approx(result.seconds, abs=1e-3)


def test_run_folder_is_locked(tmp_path):
    with (
        StageRunner(tmp_path),
        pytest.raises(PrmkitError, match=rf"in use by another run \(process {os.getpid()}\)"),
        StageRunner(tmp_path),
    ):
        pass
    with StageRunner(tmp_path):
        pass
    with pytest.raises(RuntimeError, match="not locked"):
        StageRunner(tmp_path).run(write_stage(tmp_path))


def test_folders_of_stages_are_their_own(tmp_path):
    run_once(tmp_path, write_stage(tmp_path))
    with pytest.raises(ConfigError, match="a folder other than a's"):
        run_once(tmp_path, Stage("b", python(""), tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"stage b\.directory"):
        run_once(tmp_path / "run", Stage("b", python(""), tmp_path))


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_stage(tmp_path):
    code = "import subprocess; print(subprocess.Popen(['sleep', '30']).pid, flush=True)"
    pieces: list[bytes] = []
    started = time.monotonic()
    with StageRunner(tmp_path, write=pieces.append) as runner:
        runner.run(Stage("a", python(code), tmp_path / "a"))
    assert time.monotonic() - started < 10
    os.kill(int(b"".join(pieces)), signal.SIGKILL)


RUNNER = """
    import sys
    from pathlib import Path
    from prmkit.cli import main
    from prmkit.jobs.stages import Stage, StageRunner
    assert "torch" not in sys.modules
    run, *argv = sys.argv[1:]
    with StageRunner(run) as runner:
        runner.run(Stage("count", tuple(argv), Path(run) / "count", outputs=(Path(run) / "count" / "total",)))
"""

COUNTER = """
    import os, pathlib, sys, time
    folder = pathlib.Path(sys.argv[1])
    (folder / "pid").write_text(str(os.getpid()))
    numbers = folder / "numbers"
    done = len(numbers.read_text().split()) if numbers.exists() else 0
    with numbers.open("a") as file:
        for i in range(done, 40):
            file.write(f"{i}\\n")
            file.flush()
            time.sleep(0.02)
    (folder / "total").write_text(str(sum(map(int, numbers.read_text().split()))))
"""


def start_runner(run: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(RUNNER), str(run), *python(COUNTER, run / "count")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def counted(run: Path) -> int:
    numbers = run / "count" / "numbers"
    return len(numbers.read_text().splitlines()) if numbers.exists() else 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's kill on a parent's death is Linux's")
def test_killed_runner_leaves_no_orphan_and_goes_on(tmp_path):
    runner = start_runner(tmp_path)
    wait_for(lambda: counted(tmp_path) >= 3)
    child = int((tmp_path / "count" / "pid").read_text())
    runner.send_signal(signal.SIGKILL)
    runner.communicate()
    wait_for(lambda: not alive(child), 5)
    stopped_at = counted(tmp_path)
    assert stopped_at < 40
    time.sleep(0.1)
    assert counted(tmp_path) == stopped_at

    again = start_runner(tmp_path)
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    assert (tmp_path / "count" / "total").read_text() == str(sum(range(40)))
    assert json.loads((tmp_path / "count" / ".stage.json").read_text())["attempts"] == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_signals_reach_the_stage_and_end_the_run(tmp_path, number, status):
    runner = start_runner(tmp_path)
    wait_for(lambda: counted(tmp_path) >= 1)
    child = int((tmp_path / "count" / "pid").read_text())
    runner.send_signal(number)
    runner.communicate(timeout=10)
    assert runner.returncode == status
    assert not alive(child)
    assert not (tmp_path / "count" / ".complete.json").exists()


def test_a_stage_that_ends_well_after_a_signal_is_not_taken_for_complete(tmp_path):
    polite = """
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        folder = pathlib.Path(sys.argv[1])
        (folder / "total").touch()
        (folder / "numbers").write_text("1\\n")
        time.sleep(30)
    """
    command = [sys.executable, "-c", textwrap.dedent(RUNNER), str(tmp_path), *python(polite, tmp_path / "count")]
    runner = subprocess.Popen(command)
    wait_for(lambda: counted(tmp_path) >= 1)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(10) == 143
    assert not (tmp_path / "count" / ".complete.json").exists()


def stage_named(run: Path, name: str, code: str) -> Stage:
    out = run / name / "out"
    return Stage(name, python(code, out), run / name, outputs=(out,))


MEET = """
    import pathlib, sys, time
    own = pathlib.Path(sys.argv[1])
    (own.parent / "here").touch()
    other = own.parent.parent / {other!r} / "here"
    while not other.exists():
        time.sleep(0.01)
    print("met", {other!r})
    own.touch()
"""


def test_stages_run_at_the_same_time(tmp_path):
    seen: list[bytes] = []
    a, b = (stage_named(tmp_path, name, MEET.format(other=other)) for name, other in (("a", "b"), ("b", "a")))
    with StageRunner(tmp_path, write=seen.append) as runner:
        assert [r.status for r in runner.run_together([a, b])] == ["ran", "ran"]
        (tmp_path / "a" / "out").unlink()
        assert [r.status for r in runner.run_together([a, b])] == ["ran", "skipped"]
    assert b"".join(seen) == b"met b\nmet b\n"
    assert "met a" in (tmp_path / "logs" / "b.log").read_text()


def test_what_fails_does_not_stop_its_neighbour(tmp_path):
    late = "import pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).touch()"
    bad, good = stage_named(tmp_path, "a", "raise SystemExit(3)"), stage_named(tmp_path, "b", late)
    with StageRunner(tmp_path) as runner:
        with pytest.raises(PrmkitError, match=r"stage a: exit status 3"):
            runner.run_together([bad, good])
        assert runner.run(good).status == "skipped"
