"""A server does not outlive whoever wanted it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prmkit.engines.vllm import guard as guard_module

# Starts a guard over a "server" that has a child of its own and ignores SIGTERM, tells their ids, and waits.
PARENT = """
import subprocess, sys, time
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); "
child = stubborn + "time.sleep(600)"
server = "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); " \
    "print(child.pid, flush=True); " + child
guard = subprocess.Popen([sys.executable, sys.argv[1], sys.executable, "-c", server, child],
                         stdin=subprocess.PIPE, start_new_session=True)
print(guard.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_parent_leaves_nothing(tmp_path):
    source = Path(guard_module.__file__).read_text()
    guard = tmp_path / "guard.py"
    guard.write_text(source.replace("GRACE_SECONDS = 15.0", "GRACE_SECONDS = 0.5"))
    assert guard.read_text() != source
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(guard)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert not any(map(gone, pids))
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not all(map(gone, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert all(map(gone, pids))
    finally:
        parent.kill()
        parent.wait()
