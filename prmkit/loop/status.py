"""What a run folder says of its loop: stages done, at work, interrupted, waiting. Reads only."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prmkit.errors import DataError
from prmkit.io import read_json
from prmkit.jobs.stages import COMPLETE_FILE, RECORD_FILE
from prmkit.loop.config import ORDERS
from prmkit.loop.plan import LAST_STAGES, PULL, iteration_folder

__all__ = ["LoopStatus", "StageStatus", "read_status"]

StageState = Literal["complete", "running", "interrupted", "waiting"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage.

    Attributes:
        iteration: its number from 1; 0 for the stages before the first.
        name: e.g. "annotate".
        state: "interrupted" is begun, not complete and not at work.
        seconds: wall-clock seconds of its processes so far.
        attempts: processes started for it.
        said: the last line of its log, of a stage that is running or was interrupted.
    """

    iteration: int
    name: str
    state: StageState
    seconds: float = 0.0
    attempts: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """A run.

    Attributes:
        config: the loop's config, as plain values.
        process: of the run that is at work; None when there is none.
        stages: in order.
        versions: manifests of the iterations that have published, by number, as plain values.
        promoted: whether they have got the alias, by number.
    """

    config: Mapping[str, Any]
    process: int | None
    stages: tuple[StageStatus, ...]
    versions: Mapping[int, Mapping[str, Any]]
    promoted: Mapping[int, bool]

    @property
    def complete(self) -> bool:
        return all(stage.state == "complete" for stage in self.stages)

    @property
    def current(self) -> StageStatus | None:
        """The stage that is at work, or was when the run ended; None between stages."""
        return next((stage for stage in self.stages if stage.state in ("running", "interrupted")), None)


def read_status(run: Path, config_file: str) -> LoopStatus:
    """The status of a run folder. DataError when no loop was started there."""
    if not (run / config_file).is_file():
        raise DataError(f"{run}: no {config_file}; no loop was started there")
    config = read_json(run / config_file)
    process = _holder(run / ".lock")
    stages: list[StageStatus] = []
    versions: dict[int, Mapping[str, Any]] = {}
    promoted: dict[int, bool] = {}
    if config["start"] is None:
        stages.append(_stage(run, run / "sft", 0, "sft", process))
    elif (run / "start").is_dir():
        stages.append(_stage(run, run / "start", 0, "start", process))
    for iteration in range(1, config["iterations"] + 1):
        folder = iteration_folder(run, iteration)
        pulled = (folder / PULL).is_dir()
        names: tuple[str, ...] = (*ORDERS[config["order"]], *LAST_STAGES)
        if pulled:  # the gate belongs to whoever published the version, unless that never came to it
            names = (PULL, "gate") if (folder / "gate").is_dir() else (PULL,)
        stages += [_stage(run, folder / name, iteration, name, process) for name in names]
        manifest = folder / (f"{PULL}/pair/pair.json" if pulled else "publish/published.json")
        if manifest.is_file():
            versions[iteration] = read_json(manifest)
        if (folder / "gate" / "gate.json").is_file():
            promoted[iteration] = bool(read_json(folder / "gate" / "gate.json")["promoted"])
    unneeded = stages and stages[0].name == "sft" and stages[0].state == "waiting" and 1 in versions
    return LoopStatus(config, process, tuple(stages[1:] if unneeded else stages), versions, promoted)


def _stage(run: Path, folder: Path, iteration: int, name: str, process: int | None) -> StageStatus:
    if not (folder / RECORD_FILE).is_file():
        return StageStatus(iteration, name, "waiting")
    record = read_json(folder / RECORD_FILE)
    seconds, attempts = float(record["seconds"]), int(record["attempts"])
    if (folder / COMPLETE_FILE).is_file():
        return StageStatus(iteration, name, "complete", seconds, attempts)
    state: StageState = "interrupted" if process is None else "running"
    log = run / "logs" / f"{record['name']}.log"
    if state == "running":  # the record is written every few seconds
        seconds += max(0.0, time.time() - (folder / RECORD_FILE).stat().st_mtime)
    return StageStatus(iteration, name, state, seconds, attempts, _last_line(log))


def _last_line(log: Path) -> str:
    """What a log says last; of a progress bar, its latest state."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return next((line for line in reversed(lines) if line and not line.startswith("--- ")), "")


def _holder(lock: Path) -> int | None:
    """Process that holds the run folder's lock; None when nobody does."""
    if not lock.is_file():
        return None
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(64).decode(errors="replace").strip()
            return int(text) if text.isdigit() else 0
    return None
