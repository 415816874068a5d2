"""Stages of a run as processes, each done once: kill it anywhere, start it again, and it goes on.

A stage owns a folder. `.stage.json` in it records the stage's key, attempts and seconds from the first attempt on;
`.complete.json`, written last and atomically, says that the outputs are there. The key is a digest of the command,
of the caller's settings and of the content of the input files. What a stage does when it is run again in a
folder that holds half its work is its own matter (`--ckpt_path last`, an appended JSON-lines file).

Process handling is in `prmkit.processes`; nothing here imports torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from prmkit.errors import ConfigError, DataError, PrmkitError
from prmkit.io import read_json, write_json
from prmkit.ownership import check_outputs, move, remove_file
from prmkit.processes import Exit, Job, run_processes

__all__ = ["STAGE", "Stage", "StageResult", "StageRunner"]

STAGE = "PRMKIT_STAGE"  # environment variable: the name of the stage that a process is
COMPLETE_FILE = ".complete.json"
RECORD_FILE = ".stage.json"
LOCK_FILE = ".lock"
TAIL_LINES = 15
LOCK_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """One process of a run.

    Attributes:
        name: unique in the run; names the log file.
        argv: command and arguments. The command itself (argv[0], an interpreter's path) is not part of the key.
        directory: the stage's own folder, below the run's folder; no other stage writes into it.
        outputs: files or folders that must be there when the process has ended well.
        inputs: files and folders read; their content is part of the key, so that a changed config or the new output of
            an earlier stage runs this one again.
        settings: further values that belong to the key; JSON values.
        environment: variables set for the process besides the runner's own; not part of the key.
    """

    name: str
    argv: tuple[str, ...]
    directory: Path
    outputs: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def key(self, root: Path | None = None) -> str:
        """Digest of arguments, settings and contents of inputs.

        Paths below `root`, the run's folder, count relative to it, so that a run can be moved or copied and goes on.
        Raises DataError for an input that is not there.
        """
        place = "" if root is None else f"{root}{os.sep}"
        shown = (lambda text: text.replace(place, "")) if place else str
        contents = {shown(str(path)): _digest(path) for path in self.inputs}
        text = json.dumps([self.name, [*map(shown, self.argv[1:])], self.settings, contents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StageResult:
    """What became of a stage.

    Attributes:
        name: the stage.
        status: "ran", or "skipped" when it was complete already.
        seconds: wall-clock seconds its processes have run, all attempts together. Counted from the start of each
            process to its end; of an attempt that was killed together with the runner up to five seconds are missing.
            Hashing of inputs and skipping are not counted.
        attempts: processes started for it, this run's and earlier ones.
    """

    name: str
    status: Literal["ran", "skipped"]
    seconds: float
    attempts: int


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    key: str
    attempts: int = 0
    seconds: float = 0.0

    def save(self, directory: Path) -> None:
        write_json(directory / RECORD_FILE, {**asdict(self), "seconds": round(self.seconds, 3)})


class StageRunner:
    """Runs stages below one run folder, which it locks against a second runner.

    A folder without an earlier run's lock file, in which one of `outputs` lies already, is refused (ConfigError).
    Use as a context manager, from the main thread:

        with StageRunner("runs/demo") as runner:
            runner.run(Stage("sft", ("prm", "fit", ...), Path("runs/demo/sft"), outputs=(...,)))

    Args:
        run_directory: folder of the run; logs go to `logs/<stage>.log` in it.
        outputs: files in it that the caller writes besides the stages.
        write: receives the output of the processes as it comes; None keeps it in the log only.
        say: receives one line when a stage is skipped, started or started anew; None drops it.
    """

    def __init__(
        self,
        run_directory: str | Path,
        *,
        outputs: Sequence[Path] = (),
        write: Callable[[bytes], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = Path(run_directory)
        self._outputs = outputs
        self._write = write
        self._say = say or _drop
        self._lock: int | None = None

    def __enter__(self) -> StageRunner:
        path = self.directory / LOCK_FILE
        check_outputs("run folder", self.directory, self._outputs, path)
        self.directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
        except BlockingIOError:
            holder = os.read(handle, 64).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise PrmkitError(
                f"{self.directory}: in use by another run (process {holder}). "
                f"Wait for it to end, or use another folder."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._lock = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def run(self, stage: Stage) -> StageResult:
        """Run a stage, or skip it when it is complete under the same key.

        A stage whose key has changed is run anew, whether it was complete or not: what it had left is moved to
        `.stale/` in the run folder. Raises PrmkitError naming the stage, its exit status, its last lines and its log
        when the process fails or an output is missing; KeyboardInterrupt or SystemExit(143) after SIGINT or SIGTERM,
        when the process has ended.
        """
        return self.run_together([stage])[0]

    def run_together(self, stages: Sequence[Stage]) -> list[StageResult]:
        """Run stages that do not read each other's outputs at the same time; see `run`.

        `write` receives the output of the first that is not complete, the others' goes to their logs only. When one
        fails the others end first; they are complete then.
        """
        if self._lock is None:
            raise RuntimeError("StageRunner.run outside its `with` block: the run folder is not locked")
        for stage in stages:
            if self.directory.resolve() not in stage.directory.resolve().parents:
                raise ConfigError(
                    f"stage {stage.name}.directory", str(stage.directory), f"a folder in {self.directory}"
                )
        results: dict[str, StageResult] = {}
        attempts: list[_Attempt] = []
        for stage in stages:
            record = self._record(stage, stage.key(self.directory))
            if self._is_complete(stage):
                self._say(f"{stage.name}: complete, skipped")
                results[stage.name] = StageResult(stage.name, "skipped", record.seconds, record.attempts)
            else:
                attempts.append(_Attempt(stage, record, self.directory / "logs" / f"{stage.name}.log"))
        results.update((result.name, result) for result in self._run_attempts(attempts))
        return [results[stage.name] for stage in stages]

    def _record(self, stage: Stage, key: str) -> _Record:
        """What is known of earlier attempts under this key; leftovers of another key are moved away first, and what no
        stage has written is refused (ConfigError)."""
        path = stage.directory / RECORD_FILE
        if path.exists():
            record = _Record(**read_json(path))
            if record.name != stage.name:
                raise ConfigError(
                    f"stage {stage.name}.directory", str(stage.directory), f"a folder other than {record.name}'s"
                )
            if record.key == key:
                return record
        if stage.directory.exists() and any(stage.directory.iterdir()):
            if not path.exists():
                raise ConfigError(
                    f"stage {stage.name}.directory",
                    str(stage.directory),
                    f"a folder that does not exist, is empty, or has {RECORD_FILE}, which a stage writes",
                    "It holds files of something else: move them away, or run in another folder.",
                )
            stale = _free_name(self.directory / ".stale", stage.name)
            stale.parent.mkdir(exist_ok=True)
            move(stage.directory, stale)
            self._say(f"{stage.name}: its command, settings or inputs have changed; earlier results moved to {stale}")
        return _Record(stage.name, key)

    def _is_complete(self, stage: Stage) -> bool:
        """Whether its marker and outputs are there; `_record` has moved away what belongs to another key."""
        marker = stage.directory / COMPLETE_FILE
        if not marker.exists():
            return False
        missing = [str(path) for path in stage.outputs if not path.exists()]
        if missing:
            remove_file(marker)
            self._say(f"{stage.name}: was complete, but {', '.join(missing)} is gone; running again")
        return not missing

    def _run_attempts(self, attempts: Sequence[_Attempt]) -> list[StageResult]:
        with ExitStack() as stack:
            jobs = []
            for number, attempt in enumerate(attempts):
                beside = f"; its output goes to {attempt.log}" if number and self._write is not None else ""
                self._say(f"{attempt.stage.name}: {attempt.begin(stack)}{beside}")
                jobs.append(attempt.job(None if number else self._write))
            exits = run_processes(jobs, keep_open=() if self._lock is None else (self._lock,))
        for attempt, exit_ in zip(attempts, exits, strict=True):
            attempt.keep_time(exit_.seconds)
        results, failures = [], []
        for attempt, exit_ in zip(attempts, exits, strict=True):
            if exit_.interrupted_by is not None:  # it may have ended well with its work half done
                continue
            try:
                results.append(attempt.end(exit_))
            except PrmkitError as error:
                failures.append(error)
        for exit_ in exits:
            exit_.raise_if_interrupted()
        if failures:
            raise PrmkitError("\n".join(map(str, failures)))
        return results


class _Attempt:
    """One process of a stage."""

    def __init__(self, stage: Stage, before: _Record, log: Path) -> None:
        self.stage, self.log = stage, log
        self._before = before
        self._attempts = before.attempts + 1
        self._start = 0

    def begin(self, stack: ExitStack) -> str:
        """Open its log; returns what to say."""
        self.stage.directory.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.keep_time(0.0)
        self._file = stack.enter_context(self.log.open("ab", buffering=0))
        now = time.strftime("%F %T")
        self._file.write(f"--- {self.stage.name}, attempt {self._attempts}, {now}: {self.stage.argv}\n".encode())
        self._start = self._file.tell()
        return "started" if self._attempts == 1 else f"continued (attempt {self._attempts})"

    def job(self, write: Callable[[bytes], None] | None) -> Job:
        sinks = [self._file.write] if write is None else [self._file.write, write]
        return Job(self.stage.argv, sinks, {**self.stage.environment, STAGE: self.stage.name}, self.keep_time)

    def keep_time(self, elapsed: float) -> None:
        seconds = self._before.seconds + elapsed
        replace(self._before, attempts=self._attempts, seconds=seconds).save(self.stage.directory)

    def end(self, exit_: Exit) -> StageResult:
        """Mark the stage as complete. Raises PrmkitError unless the process ended well and left its outputs."""
        missing = [str(path) for path in self.stage.outputs if not path.exists()]
        if exit_.status or missing:
            reason = exit_.describe() if exit_.status else f"ended well, but did not write {', '.join(missing)}"
            tail = _tail(self.log, self._start)
            raise PrmkitError(f"stage {self.stage.name}: {reason}. Its last lines ({self.log}):\n{tail}")
        seconds = self._before.seconds + exit_.seconds
        outputs = [str(path) for path in self.stage.outputs]
        write_json(
            self.stage.directory / COMPLETE_FILE,
            {
                "key": self._before.key,
                "argv": list(self.stage.argv),
                "outputs": outputs,
                "seconds": round(seconds, 3),
            },
        )
        return StageResult(self.stage.name, "ran", seconds, self._attempts)


def _lock(handle: int) -> None:
    """Lock a file, or raise BlockingIOError. Somebody who only looks whether it is locked holds it for an instant."""
    for _ in range(LOCK_ATTEMPTS - 1):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _drop(line: str) -> None:
    """What a runner without `say` says."""


def _tail(log: Path, start: int) -> str:
    """Last lines of an attempt; a progress bar counts as the line it shows last."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65536))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join(f"  {line}" for line in [line for line in lines if line][-TAIL_LINES:])


def _digest(path: Path) -> str:
    """Digest of a file's content, or of the names and contents of a folder's files (hidden ones left out)."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        parts = [f"{file.relative_to(path)}\0{_digest(file)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder, and a stage reads it")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free_name(folder: Path, name: str) -> Path:
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"
