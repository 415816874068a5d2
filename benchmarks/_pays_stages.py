"""Stages of benchmarks/pays.py: what is trained, sampled and measured, each once for the same settings.

A stage is a folder below `<out>/seed-<seed>/`. Its key is the commands it runs and the configs they read, of which
GRPO's is left out: all that matters of it is set here. A stage with a result under that key is not run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _policy_runs import forked
from _prm import run_prm

from datamodules.prompts import PromptConfig, open_prompts
from lightning_modules.formats import bind_format
from prmkit.engines import HFEngine
from prmkit.io import read_json, write_json
from prmkit.models import ModelSource, PRMModel, build_policy
from prmkit.records import SamplingParams
from prmkit.rl.rewards import RewardsConfig
from prmkit.rl.rollouts import Judge, roll_out
from prmkit.scoring import PRMScorer

__all__ = ["VALIDATED", "Lab", "options"]

CONFIGS = {kind: f"configs/{kind}/accumulator.yaml" for kind in ("sft", "annotate", "prm", "grpo")}

VALIDATED = 5  # updates from one examination to the next
NO_CHECKPOINTS = ("--trainer.callbacks.0.init_args.every_n_train_steps", "1000000")


def options(low: int, high: int) -> dict[str, Any]:
    """Options of the task: programs of low to high operations in every split."""
    return {"min_ops": low, "max_ops": high, "hard_share": 0.0}


@dataclass(frozen=True)
class Lab:
    """The runs of one seed.

    Attributes:
        out: folder of the runs of all seeds.
        seed: of everything in this one's runs.
    """

    out: Path
    seed: int

    @property
    def root(self) -> Path:
        return self.out / f"seed-{self.seed}"

    def stage(self, name: str, key: Any, work: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """A stage's folder and result; the folder's name is the stage's and a digest of its key."""
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
        folder = self.root / f"{name}-{digest}"
        return folder, forked(lambda: work(folder), folder, {"key": key})

    def policy(self, low: int = 4, high: int = 25, demonstrations: int = 12000) -> Path:
        """The demo's policy, on demonstrations of low to high operations."""
        source = {"kind": "task", "name": "accumulator", "seed": self.seed, "options": options(low, high)}
        arguments = ("--data.init_args.train", json.dumps([{**source, "split": "train", "count": demonstrations}]))
        arguments += ("--data.init_args.val", json.dumps([{**source, "split": "validation", "count": 300}]))
        return self._fit("sft", arguments) / "policy"

    def labels(self, policy: Path, low: int = 4, high: int = 10, problems: int = 1500, *more: str) -> Path:
        """OmegaPRM's labels on problems of low to high operations."""
        arguments = (
            "--policy",
            str(policy),
            "--task_options",
            json.dumps(options(low, high)),
            "--seed",
            str(self.seed),
        )
        arguments += ("--limit", str(problems), "--sampling.max_tokens", str(6 * high + 4), "--workers", "1", *more)

        def work(folder: Path) -> dict[str, Any]:
            run_prm("annotate", "--config", CONFIGS["annotate"], "--output", str(folder / "labels.jsonl"), *arguments)
            return dict(read_json(folder / "labels.jsonl.report.json"))

        return self.stage(f"labels-{low}-{high}", [_text("annotate"), arguments], work)[0] / "labels.jsonl"

    def shuffled(self, labels: Path) -> Path:
        """The same labels, each dealt to another solution of as many steps: a PRM can learn from them only how often
        steps are wrong."""

        def work(folder: Path) -> dict[str, Any]:
            rows = [json.loads(line) for line in labels.read_text().splitlines()]
            by_steps: dict[int, list[int]] = {}
            for number, row in enumerate(rows):
                by_steps.setdefault(len(row["steps"]), []).append(number)
            rng, dealt = random.Random(self.seed), [dict(row) for row in rows]
            for places in by_steps.values():
                for place, other in zip(places, rng.sample(places, len(places)), strict=True):
                    dealt[place] |= {name: rows[other][name] for name in ("values", "rollouts", "correct")}
            (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dealt))
            return {"labels": len(dealt)}

        return self.stage("shuffled", str(labels), work)[0] / "labels.jsonl"

    def prm(self, policy: Path, labels: Sequence[Path], *more: str) -> Path:
        """The demo's PRM on labels."""
        train = [{"path": str(path), "offset": 150} for path in labels]
        held = [{"path": str(labels[0]), "count": 150}]
        arguments = ("--model.init_args.source.path", str(policy))
        for name, sources in (("train", train), ("val", held), ("predict", held)):
            arguments += (f"--data.init_args.{name}", json.dumps(sources))
        return self._fit("prm", (*arguments, *more)) / "model"

    def traces(self, policy: Path, operations: int, split: str = "validation", count: int = 300, n: int = 2) -> Path:
        """Samples of a policy on programs of so many operations, one JSON line each; see `sample`."""

        def work(folder: Path) -> dict[str, Any]:
            return sample(policy, operations, split, count, n, folder / "traces.jsonl")

        key = [str(policy), operations, split, count, n]
        return self.stage(f"traces-{operations}", key, work)[0] / "traces.jsonl"

    def examined(self, policy: Path, operations: int, split: str, count: int, n: int) -> dict[str, Any]:
        """What `sample` says of a policy."""
        traces = self.traces(policy, operations, split, count, n)
        figures = dict(read_json(traces.parent / "result.json")["result"])
        return {name: figures[name] for name in ("pass_at_1", "se", "steps_right", "lucky")}

    def scores(self, prms: Sequence[Path], traces: Path) -> list[Any]:
        """[PRMs][traces][steps] scores of traces."""

        def work(folder: Path) -> dict[str, Any]:
            write_json(folder / "scores.json", judge(prms, traces))
            return {}

        folder, _ = self.stage("scores", [list(map(str, prms)), str(traces)], work)
        return list(read_json(folder / "scores.json"))

    def rl(
        self, name: str, policy: Path, operations: int, arguments: Sequence[str], updates: int = 30
    ) -> dict[str, Any]:
        """GRPO from a policy; its diary by update, and `folder`. Validation is on programs of so many operations."""
        where = {"task": "accumulator", "task_options": options(operations, operations)}
        settings = [
            "--seed_everything",
            str(self.seed),
            "--trainer.logger",
            "false",
            "--trainer.max_epochs",
            str(updates),
        ]
        settings += ["--trainer.enable_progress_bar", "false", "--model.source.path", str(policy), *NO_CHECKPOINTS]
        settings += ["--data.prompts", json.dumps({**where, "split": "train", "offset": 20000, "count": 4000})]
        settings += ["--data.validation", json.dumps({**where, "split": "validation", "offset": 1000, "count": 200})]
        settings += ["--data.evaluation", json.dumps({"temperature": 1.0, "samples": 1})]
        settings += [
            "--trainer.check_val_every_n_epoch",
            str(VALIDATED),
            "--data.max_tokens",
            str(6 * operations + 8),
            *arguments,
        ]

        def work(folder: Path) -> dict[str, Any]:
            (folder / "diary.jsonl").unlink(missing_ok=True)
            diary = {"class_path": "_iterations.Iterations", "init_args": {"path": str(folder / "diary.jsonl")}}
            fixed = ("--trainer.default_root_dir", str(folder), "--trainer.callbacks.4", json.dumps(diary))
            run_prm("fit", "--config", CONFIGS["grpo"], *fixed, *settings)
            return {"diary": [json.loads(line) for line in (folder / "diary.jsonl").read_text().splitlines()]}

        folder, result = self.stage(f"rl-{operations}-{name}", settings, work)
        return {**result, "folder": str(folder)}

    def _fit(self, kind: str, arguments: Sequence[str]) -> Path:
        arguments = ("--seed_everything", str(self.seed), "--trainer.logger", "false", *arguments)
        arguments += ("--trainer.enable_progress_bar", "false")

        def work(folder: Path) -> dict[str, Any]:
            run_prm("fit", "--config", CONFIGS[kind], "--trainer.default_root_dir", str(folder), *arguments)
            return dict(read_json(folder / "training.json"))

        return self.stage(kind, [_text(kind), arguments], work)[0]


def sample(policy: Path, operations: int, split: str, count: int, n: int, path: Path) -> dict[str, Any]:
    """Write n samples a problem at temperature 1, each with its question, steps, whether they are right and whether the
    answer is; returns pass@1 with its standard error over problems, and the share of right answers by luck."""
    source = ModelSource(path=str(policy))
    bound = bind_format(source, None)
    engine = HFEngine(build_policy(source, bound.tokenizer).eval(), bound, max_rows=256)
    where = PromptConfig(task="accumulator", split=split, count=count, task_options=options(operations, operations))
    task, problems = open_prompts(where)
    judge = Judge(RewardsConfig(), task.grader, separator=bound.spec.policy.separator)
    sampling = SamplingParams(max_tokens=6 * operations + 8, temperature=1.0)
    groups = asyncio.run(roll_out(list(enumerate(problems)), engine, judge, n, sampling, 0))
    rows = [_row(rollout, task) for group in groups for rollout in group]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_problem = np.array([row["correct"] for row in rows], dtype=float).reshape(-1, n).mean(1)
    return {
        "pass_at_1": float(by_problem.mean()),
        "se": float(by_problem.std(ddof=1) / math.sqrt(len(by_problem))),
        "steps_right": float(np.mean([right for row in rows for right in row["right"]])),
        "lucky": float(np.mean([row["correct"] and not all(row["right"]) for row in rows])),
        "tokens": sum(len(rollout.token_ids) for group in groups for rollout in group),
    }


def _row(rollout: Any, task: Any) -> dict[str, Any]:
    steps = [step.text for step in rollout.trace.steps]
    return {
        "question": rollout.problem.question,
        "steps": steps,
        "right": list(task.check(rollout.problem, steps)),
        "correct": bool(rollout.parts["outcome"]),
        "finished": rollout.trace.finish == "stop",
    }


def judge(prms: Sequence[Path], traces: Path) -> list[list[list[float]]]:
    """[PRMs][traces][steps] scores."""
    rows = [json.loads(line) for line in traces.read_text().splitlines()]

    async def all_scores(scorer: PRMScorer) -> list[list[float]]:
        replies = await asyncio.gather(*(scorer.score(row["question"], row["steps"]) for row in rows))
        return [[round(score, 5) for score in reply.values] for reply in replies]

    scorers = (PRMScorer(PRMModel.from_pretrained(path).eval(), max_batch_tokens=8192) for path in prms)
    return [asyncio.run(all_scores(scorer)) for scorer in scorers]


def _text(kind: str) -> str:
    return Path(CONFIGS[kind]).read_text()
