"""Runs for benchmarks/policy.py: a fit in a process of its own, forked so that libraries are imported once, and an
examination of what it leaves. CPU seconds beside wall-clock seconds: the former mean something on a busy machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers.models.llama.modeling_llama  # noqa: F401 - imported once, for all children
from lightning.pytorch import Callback, LightningModule, Trainer

import lightning_modules.grpo
import lightning_modules.ppo  # noqa: F401 - likewise
from datamodules.prompts import PromptConfig, open_prompts
from lightning_modules.formats import bind_format
from prmkit.cli.fit_settings import read_fit
from prmkit.cli.trainer_cli import PrmCLI, run_trainer
from prmkit.engines import HFEngine
from prmkit.errors import PrmkitError
from prmkit.io import read_json, write_json
from prmkit.models import ModelSource, build_policy
from prmkit.records import SamplingParams
from prmkit.rl.rewards import RewardsConfig
from prmkit.rl.rollouts import Judge, roll_out

__all__ = ["FRESH", "IterationClock", "examine", "fit", "forked"]

SAMPLES = 2
PROBLEMS = {"validation": ("validation", 0, 300), "hard": ("hard", 0, 300)}
FRESH = {"fresh": ("test", 0, 600), "fresh_hard": ("hard", 300, 600)}


class IterationClock(Callback):
    """Writes a JSON line an iteration: what the rollouts were like, and CPU and wall-clock seconds of its two halves.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._marks: list[tuple[float, float]] = []
        self._report: dict[str, float] = {}

    def on_train_epoch_start(self, *_: Any) -> None:
        self._marks = [_now()]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:  # noqa: ARG002
        if batch.report is not None:
            self._marks.append(_now())
            self._report = {name.removeprefix("rollout/"): value for name, value in batch.report.items()}

    def on_train_epoch_end(self, *_: Any) -> None:
        marks = [*self._marks, _now()]
        halves = {}
        for kind, name in enumerate(("cpu", "wall")):
            halves[f"{name}_generation"] = marks[1][kind] - marks[0][kind]
            halves[f"{name}_training"] = marks[2][kind] - marks[1][kind]
        with self._path.open("a") as file:
            file.write(json.dumps({**self._report, **halves}) + "\n")


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def fit(config: str, settings: Sequence[str], root: Path) -> dict[str, Any]:
    """`prm fit` here and now; what its clock wrote, and what guards said."""
    clock = {"class_path": "_policy_runs.IterationClock", "init_args": {"path": str(root / "clock.jsonl")}}
    arguments = ["--config", config, "--trainer.default_root_dir", str(root), "--trainer.logger", "false"]
    arguments += ["--trainer.enable_progress_bar", "false", "--trainer.callbacks.4", json.dumps(clock)]
    arguments += ["--trainer.check_val_every_n_epoch", "1000000"]
    cli = PrmCLI("fit", read_fit([*arguments, *settings], "fit"))
    status = run_trainer(cli)
    if status:
        raise PrmkitError(f"the fit in {root} ended with status {status}")
    found: dict[str, Any] = {}
    for callback in cli.trainer.callbacks:
        if type(callback).__name__ == "RewardGuards":
            found["guards"] = {"warnings": callback.warnings, "good_step": callback.good_step}
    lines = [json.loads(line) for line in (root / "clock.jsonl").read_text().splitlines()]
    found["iterations"] = [{name: round(value, 4) for name, value in line.items()} for line in lines]
    return found


def examine(policy: Path, seed: int = 0, where: Mapping[str, tuple[str, int, int]] = PROBLEMS) -> dict[str, float]:
    """pass@1 of problems which nothing was trained on, (split, offset, count) by name: SAMPLES solutions of each at
    temperature 1."""
    source = ModelSource(path=str(policy))
    bound = bind_format(source, None)
    engine = HFEngine(build_policy(source, bound.tokenizer).eval(), bound, max_rows=256)
    found = {}
    for name, (split, offset, count) in where.items():
        task, problems = open_prompts(PromptConfig(task="accumulator", split=split, offset=offset, count=count))
        judge = Judge(RewardsConfig(), task.grader, separator=bound.spec.policy.separator)
        sampling = SamplingParams(max_tokens=96, temperature=1.0)
        groups = asyncio.run(roll_out(list(enumerate(problems)), engine, judge, SAMPLES, sampling, seed))
        rewards = [rollout.parts["outcome"] or 0.0 for group in groups for rollout in group]
        found[name] = sum(rewards) / len(rewards)
    return found


def forked(work: Callable[[], dict[str, Any]], root: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Do some work in a child process; its result, with `cpu_seconds`, `wall_seconds` and `peak_mib` of the child.

    What it prints goes to `log` in the folder. The result stays there as `result.json` and is taken from there when it
    is asked for again under the same key.
    """
    path = root / "result.json"
    if path.exists():
        known = read_json(path)
        if known["key"] == json.loads(json.dumps(key)):
            return dict(known["result"])
    root.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(work, root)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise PrmkitError(f"a run failed; its output is in {root / 'log'}")
    result = read_json(root / "made.json")
    result |= {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - start, 1),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }
    write_json(path, {"key": key, "result": result})
    return result


def _child(work: Callable[[], dict[str, Any]], root: Path) -> None:
    """Runs in the forked process, and ends it."""
    status = 1
    try:
        with (root / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            write_json(root / "made.json", work())
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees the status
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
