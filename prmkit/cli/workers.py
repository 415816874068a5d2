"""Further processes of a command on this machine, which share its work."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from prmkit.jobs.processes import bind_to_parent

__all__ = ["LocalWorkers"]

log = logging.getLogger(__name__)


class LocalWorkers:
    """Starts `prm` commands, and waits for their end. A context manager.

    They are killed with this process, however it dies, and stopped when it fails. One that fails by itself leaves its
    work to the others and is named in the log.

    Args:
        arguments: of `prm`, the same for all.
        count: processes, at least 0.
        folder: where their output goes, `worker-1.log` and so on.
    """

    def __init__(self, arguments: Sequence[str], count: int, folder: str | Path) -> None:
        self._arguments = list(arguments)
        self._logs = [Path(folder) / f"worker-{number}.log" for number in range(1, count + 1)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalWorkers:
        for path in self._logs:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "prmkit.cli", *self._arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        preexec_fn=bind_to_parent(os.getpid()),
                    )
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes if kind is not None else ():
            process.terminate()
        for process, path in zip(self._processes, self._logs, strict=True):
            if process.wait() and kind is None:
                log.warning("a worker ended with status %s; the others did its work: see %s", process.returncode, path)
