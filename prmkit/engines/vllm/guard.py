"""Runs a server and ends it, with all it started, when the process that wanted it is gone, however that ended.

Run as a script, with the server's command line as arguments and a pipe as standard input, which nobody writes to: its
end says that the other side was closed or killed. Standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 15.0
POLL_SECONDS = 0.2


def main(argv: list[str]) -> int:
    """Returns the server's exit status, 0 when it was ended because nobody wants it any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the whole group; the guard goes last
        signal.signal(number, lambda *_: None)
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    wanted = True
    while server.poll() is None and wanted:
        ready, _, _ = select.select([0], [], [], POLL_SECONDS)
        wanted = not ready or bool(os.read(0, 4096))
    status = server.poll()
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    sys.stdout.write("the server ended" if status is None else f"the server ended with status {status}")
    sys.stdout.write("\n")
    sys.stdout.flush()
    # What a server leaves behind (engine cores of a server that was killed) is in the guard's group, as the guard is.
    os.killpg(0, signal.SIGKILL)
    return status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
