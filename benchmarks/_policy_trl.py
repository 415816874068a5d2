"""Updates of GRPO by prmkit and by TRL in turn, for benchmarks/policy.py: seconds by half, and peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prmkit.errors import PrmkitError

__all__ = ["compare"]

HERE = Path(__file__).parent
ROUNDS = 2


def compare(python: str, config: str, policy: Path, out: Path, updates: int) -> dict[str, Any]:
    """Run both systems ROUNDS times in turn, from the same policy on the same stream of prompts.

    Returns:
        By system: medians over all updates but each run's first of CPU and wall-clock seconds (`generation`,
        `training`), `peak_mib` of the process (largest of its runs); and `speedup` (CPU seconds of an update, TRL's
        over ours), `speedup_wall`, `memory` (ours over TRL's).
    """
    out.mkdir(parents=True, exist_ok=True)
    prompts = out / "prompts.jsonl"
    _write_prompts(prompts, 32 * updates)
    lines: dict[str, list[dict[str, float]]] = {"prmkit": [], "trl": []}
    peaks: dict[str, list[float]] = {"prmkit": [], "trl": []}
    for number in range(ROUNDS):
        for name in lines:
            root = out / f"{name}-{number}"
            root.mkdir(exist_ok=True)
            file = root / "clock.jsonl"
            command = _ours(config, policy, root, file, updates)
            if name == "trl":
                command = [python, str(HERE / "trl_grpo.py"), "--model", str(policy), "--prompts", str(prompts)]
                command += ["--output", str(file), "--updates", str(updates)]
            peaks[name].append(_run(command, root, ours=name == "prmkit"))
            lines[name] += [json.loads(line) for line in file.read_text().splitlines()][1:]
    found: dict[str, Any] = {}
    for name, updates_made in lines.items():
        seconds = {
            key: round(statistics.median(line[key] for line in updates_made), 3)
            for key in ("cpu_generation", "cpu_training", "wall_generation", "wall_training")
        }
        found[name] = {**seconds, "peak_mib": round(max(peaks[name]), 1), "updates": len(updates_made)}
    for key, kind in (("speedup", "cpu"), ("speedup_wall", "wall")):
        totals = [found[name][f"{kind}_generation"] + found[name][f"{kind}_training"] for name in ("trl", "prmkit")]
        found[key] = round(totals[0] / totals[1], 2)
    found["memory"] = round(found["prmkit"]["peak_mib"] / found["trl"]["peak_mib"], 3)
    return found


def _ours(config: str, policy: Path, root: Path, file: Path, updates: int) -> list[str]:
    clock = {"class_path": "_policy_runs.IterationClock", "init_args": {"path": str(file)}}
    return [
        *(sys.executable, "-m", "prmkit.cli", "fit", "--config", config, "--model.source.path", str(policy)),
        *("--trainer.default_root_dir", str(root), "--trainer.max_epochs", str(updates), "--trainer.logger", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.check_val_every_n_epoch", str(updates + 1)),
        *("--trainer.callbacks", json.dumps([clock])),
    ]


def _write_prompts(path: Path, count: int) -> None:
    from datamodules.prompts import PromptConfig, open_prompts

    _, problems = open_prompts(PromptConfig(task="accumulator", split="train", offset=20000, count=count))
    rows = [{"prompt": problem.question + "\n", "answer": problem.answer} for problem in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(command: Sequence[str], root: Path, ours: bool) -> float:
    """Peak resident memory of a process, in MiB."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if ours:
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise PrmkitError(f"{command[0]} failed; its output is in {root / 'log'}")
    return usage.ru_maxrss / 1024
