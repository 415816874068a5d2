"""A few of the policy's solutions every few iterations, with rewards and step scores: as text and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from prmkit.errors import ConfigError
from prmkit.io import write_atomic
from prmkit.rollouts import Rollout

__all__ = ["RolloutSamples", "describe_rollout", "draw_scores"]


class RolloutSamples(Callback):
    """Writes `iteration-NNNNN.txt`, `.jsonl` and (where a PRM scores) `.png`, and shows text to loggers that take it, a
    table to W&B.

    Args:
        dirpath: the folder.
        every_n_iterations: at least 1; the first iteration is always shown.
        groups: prompts shown, at least 1.
        per_group: solutions shown for each, at least 1.
    """

    leaves_files = True  # left out of a fast_dev_run

    def __init__(self, dirpath: str, every_n_iterations: int = 10, groups: int = 2, per_group: int = 2) -> None:
        values = {"every_n_iterations": every_n_iterations, "groups": groups, "per_group": per_group}
        for name, value in values.items():
            if value < 1:
                raise ConfigError(f"rollout_samples.{name}", value, "an integer of at least 1")
        self.dirpath = Path(dirpath)
        self.every_n_iterations, self.groups, self.per_group = every_n_iterations, groups, per_group

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch.report is None or not trainer.is_global_zero:
            return
        iteration = int(batch.report["rollout/iteration"])
        if iteration % self.every_n_iterations == 0:
            chosen = self._chosen(trainer.datamodule.rollouts)  # type: ignore[attr-defined]
            self._write(trainer, chosen, iteration)

    def _chosen(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        groups: dict[int, list[Rollout]] = {}
        for rollout in rollouts:
            groups.setdefault(rollout.group, []).append(rollout)
        return [rollout for group in list(groups.values())[: self.groups] for rollout in group[: self.per_group]]

    def _write(self, trainer: Trainer, rollouts: Sequence[Rollout], iteration: int) -> None:
        place = self.dirpath / f"iteration-{iteration:05d}"
        text = "\n".join(describe_rollout(rollout) for rollout in rollouts)
        write_atomic(place.with_suffix(".txt"), text)
        lines = [json.dumps(_record(rollout), ensure_ascii=False) + "\n" for rollout in rollouts]
        write_atomic(place.with_suffix(".jsonl"), "".join(lines))
        if any(rollout.trace.scores is not None for rollout in rollouts):
            draw_scores(rollouts, place.with_suffix(".png"))
        for logger in trainer.loggers:
            experiment = getattr(logger, "experiment", None)
            if isinstance(logger, WandbLogger):
                logger.log_table("rollout/samples", *_table(rollouts, iteration))
            elif experiment is not None and hasattr(experiment, "add_text"):
                experiment.add_text("rollout/samples", f"```\n{text}\n```", trainer.global_step)


def _table(rollouts: Sequence[Rollout], iteration: int) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for a table of W&B: a solution a row, steps and their scores a line each."""
    parts = sorted({name for rollout in rollouts for name in rollout.parts})
    shown = ["problem_id", "question", "answer", "steps", "scores", "finish", "reward"]
    rows = []
    for rollout in rollouts:
        record = _record(rollout)
        record["steps"] = "\n".join(record["steps"])
        record["scores"] = "\n".join(f"{score:.3f}" for score in record["scores"] or ())
        rows.append([iteration, *(record[name] for name in shown), *(rollout.parts.get(name) for name in parts)])
    return ["iteration", *shown, *parts], rows


def describe_rollout(rollout: Rollout) -> str:
    """A solution, a step a line with its score, under the question and its rewards."""
    parts = ", ".join(f"{name} {_number(value)}" for name, value in rollout.parts.items())
    reward = None if rollout.reward is None else rollout.reward.total
    scores = rollout.trace.scores
    values = [None] * len(rollout.trace.steps) if scores is None else list(scores.values)
    lines = [
        f"{rollout.problem.id}: {rollout.problem.question} -> {rollout.problem.answer}",
        f"reward {_number(reward)} ({parts}), {len(rollout.token_ids)} tokens, {rollout.trace.finish}",
    ]
    for step, value in zip(rollout.trace.steps, values, strict=True):
        lines.append(f"  {'' if value is None else f'{value:.3f}':>6}  {step.text}")
    return "\n".join(lines) + "\n"


def draw_scores(rollouts: Sequence[Rollout], path: Path) -> None:
    """Step scores in [0, 1] along each solution, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rollout in rollouts:
        if rollout.trace.scores is None:
            continue
        values = rollout.trace.scores.values
        outcome = rollout.parts.get("outcome")
        label = f"{rollout.problem.id}, outcome {_number(outcome)}"
        axes.plot(range(1, len(values) + 1), values, marker="o", label=label)
    axes.set(xlabel="step", ylabel="score", ylim=(-0.02, 1.02))
    axes.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _record(rollout: Rollout) -> dict[str, Any]:
    scores = rollout.trace.scores
    return {
        "problem_id": rollout.problem.id,
        "question": rollout.problem.question,
        "answer": rollout.problem.answer,
        "steps": [step.text for step in rollout.trace.steps],
        "scores": None if scores is None else list(scores.values),
        "finish": rollout.trace.finish,
        "reward": None if rollout.reward is None else rollout.reward.total,
        "parts": dict(rollout.parts),
    }


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
