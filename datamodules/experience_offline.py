"""Offline data for a policy: what annotation has written, as preference pairs or as solutions with advantages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.nn.utils.rnn import pad_sequence

from datamodules.batching import BatchConfig, Shards, make_plan
from datamodules.encoding import Example
from datamodules.loader import EvalLoader, TrainLoader, WorkerConfig
from datamodules.readers import open_mixture, record_parser
from datamodules.sources import SourceConfig
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.rl.batches import OfflineBatch

__all__ = ["OfflineDataModule", "Pair", "Weighted", "preference_pairs", "weighted_solutions"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two continuations of one prefix.

    Attributes:
        question: the problem's text.
        prefix: steps that both share; () for whole solutions.
        chosen, rejected: what follows: the whole rest, or one step.
        whole: an end of sequence follows both.
    """

    question: str
    prefix: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Weighted:
    """A solution and its advantage: right (1) or wrong (0), less the mean over the problem's solutions."""

    question: str
    steps: tuple[str, ...]
    advantage: float


def preference_pairs(
    records: Iterable[StepLabels], level: Literal["solution", "step"], per_problem: int = 4
) -> list[Pair]:
    """Pairs of each problem's solutions, in the order of the records.

    "solution": a right solution against a wrong one (DPO). "step": behind the longest prefix that both share, the step
    of a right solution against the first wrong step of a wrong one (step-DPO, arXiv 2406.18629); a wrong solution whose
    first error is not known makes no pair.

    Args:
        records: solutions with `correct`; others are left out.
        level: see above.
        per_problem: pairs of a problem at most, at least 1; every wrong solution is used once before any twice.
    """
    pairs: list[Pair] = []
    for group in _by_problem(records).values():
        right = [record for record in group if record.correct]
        wrong = [record for record in group if not record.correct]
        found: list[Pair] = []
        for turn in range(len(right)):
            for number, loser in enumerate(wrong):
                pair = _pair(right[(turn + number) % len(right)], loser, level)
                if pair is not None and pair not in found:
                    found.append(pair)
        pairs += found[:per_problem]
    return pairs


def _pair(winner: StepLabels, loser: StepLabels, level: str) -> Pair | None:
    if level == "solution":
        return Pair(winner.question, (), winner.steps, loser.steps, True)
    shared = next(
        (n for n, (a, b) in enumerate(zip(winner.steps, loser.steps, strict=False)) if a != b),
        min(len(winner.steps), len(loser.steps)),
    )
    first_wrong = next((n for n, value in enumerate(loser.values) if value == 0.0), None)
    if first_wrong != shared or shared >= len(winner.steps):
        return None
    steps = (winner.steps[shared],), (loser.steps[shared],)
    return Pair(winner.question, winner.steps[:shared], *steps, whole=False)


def weighted_solutions(records: Iterable[StepLabels], select: Literal["all", "right"]) -> list[Weighted]:
    """Solutions with advantages; "right" keeps the right ones with advantage 0: rejection-sampling fine-tuning."""
    rows: list[Weighted] = []
    for group in _by_problem(records).values():
        mean = sum(bool(record.correct) for record in group) / len(group)
        for record in group:
            if select == "all":
                rows.append(Weighted(record.question, record.steps, float(bool(record.correct)) - mean))
            elif record.correct:
                rows.append(Weighted(record.question, record.steps, 0.0))
    return rows


def _by_problem(records: Iterable[StepLabels]) -> Mapping[str, list[StepLabels]]:
    groups: dict[str, list[StepLabels]] = {}
    for record in records:
        if record.correct is not None and record.steps:
            groups.setdefault(record.problem_id, []).append(record)
    return groups


@dataclass(frozen=True, slots=True)
class _Row(Example):
    """Rows of a pair (chosen, rejected), or one solution: ids, and where what counts begins."""

    rows: tuple[tuple[tuple[int, ...], int], ...]
    advantage: float


class _Codec:
    """Pairs or solutions to batches; what is longer than max_length is refused."""

    def __init__(self, format: BoundStepFormat, max_length: int) -> None:
        self._format, self._max_length = format, max_length

    def encode(self, id: str, row: Pair | Weighted) -> _Row | None:
        fmt, separator = self._format, self._format.spec.policy.separator
        parts: tuple[tuple[str, ...], ...]
        prefix: tuple[str, ...]
        if isinstance(row, Weighted):
            parts, advantage, prefix, whole = (row.steps,), row.advantage, (), True
        else:
            parts, advantage, prefix, whole = (row.chosen, row.rejected), 0.0, row.prefix, row.whole
        opening = fmt.prompt_ids(row.question)
        if prefix:
            opening = (*opening, *fmt.encode_piece(separator.join(prefix) + separator))
        rows: list[tuple[tuple[int, ...], int]] = []
        for steps in parts:
            text = separator.join(steps)
            ids = fmt.solution_ids(text) if whole else fmt.encode_piece(text + separator)
            rows.append(((*opening, *ids), len(opening)))
        if max(len(ids) for ids, _ in rows) > self._max_length:
            return None
        return _Row(id, rows[0][0], False, tuple(rows), advantage)

    def collate(self, examples: Sequence[_Row]) -> OfflineBatch:
        width = max((len(example.rows) for example in examples), default=1)
        rows = [example.rows[place] for place in range(width) for example in examples]
        rows = rows or [((self._format.eos_id, self._format.eos_id), 2)]
        ids = [torch.tensor(row) for row, _ in rows]
        counted = [torch.arange(len(row)) >= start for row, start in rows]
        advantages = [example.advantage for _ in range(width) for example in examples] or [0.0]
        return OfflineBatch(
            ids=tuple(example.id for example in examples) or ("",),
            input_ids=pad_sequence(ids, batch_first=True, padding_value=self._format.eos_id),
            attention_mask=pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], batch_first=True),
            action_mask=pad_sequence(counted, batch_first=True),
            advantages=torch.tensor(advantages),
            pairs=len(examples) if width == 2 else 0,
        )


class OfflineDataModule(LightningDataModule):
    """Streams of OfflineBatch from step-label records, for the modules DPO and AWR.

    Args:
        train, val: sources of records that say whether a solution is right (those of `prm annotate` do).
        rows: "pairs" of whole solutions (DPO), "step_pairs" (step-DPO), "solutions" with advantages (AWR), or "right"
            solutions (rejection-sampling fine-tuning).
        per_problem: pairs of a problem at most, at least 1.
        batch: size of micro-batches; pairs count as one row.
        max_length: tokens a row at most; longer rows are left out and counted in the log.
        workers: how batches are prepared.
        seed: of the order of rows.
    """

    def __init__(
        self,
        train: list[SourceConfig],
        val: list[SourceConfig] = [],  # noqa: B006 - never changed
        rows: Literal["pairs", "step_pairs", "solutions", "right"] = "pairs",
        per_problem: int = 4,
        batch: BatchConfig = BatchConfig(rows=16),  # noqa: B008 - frozen
        max_length: int = 1024,
        workers: WorkerConfig = WorkerConfig(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rows not in ("pairs", "step_pairs", "solutions", "right"):
            raise ConfigError("data.rows", rows, "pairs | step_pairs | solutions | right")
        if per_problem < 1:
            raise ConfigError("data.per_problem", per_problem, "an integer of at least 1")
        if batch.rows is None:
            raise ConfigError("data.batch.max_tokens", batch.max_tokens, "null: batches are of data.batch.rows rows")
        self._sources = {"train": train, "val": val}
        self._kind, self._per_problem, self._batch = rows, per_problem, batch
        self._max_length, self._workers, self._seed = max_length, workers, seed
        self._rows: dict[str, list[Pair] | list[Weighted]] = {}
        self._loader: TrainLoader | None = None
        self._position: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - called by Lightning
        """Read the records. Raises DataError for data that holds nothing to compare, or steps that end otherwise."""
        for name, sources in self._sources.items():
            if sources and name not in self._rows:
                self._rows[name] = self._made(name, sources)

    def train_dataloader(self) -> TrainLoader:
        trainer = self.trainer
        accumulate = int(trainer.accumulate_grad_batches)
        shards = Shards(trainer.global_rank, trainer.world_size, accumulate)
        rows, codec = self._rows["train"], self._codec()
        plan = make_plan(lambda _: np.arange(len(rows)), None, self._batch, shards, self._seed)
        self._loader = TrainLoader(plan, lambda n: (f"row:{n}", rows[n]), codec, self._workers, accumulate)
        if self._position is not None:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> EvalLoader | list[Any]:
        rows = self._rows.get("val")
        if not rows:
            return []
        config = BatchConfig(rows=self._batch.rows, drop_last=False)
        shards = Shards(self.trainer.global_rank, self.trainer.world_size)
        plan = make_plan(lambda _: np.arange(len(rows)), None, config, shards, None, label="val")
        return EvalLoader(plan, lambda n: (f"row:{n}", rows[n]), self._codec(), self._workers)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._loader is None else {"train": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict.get("train")
        if self._loader is not None and self._position is not None:
            self._loader.load_state_dict(self._position)

    def _codec(self) -> _Codec:
        return _Codec(self.trainer.lightning_module.bound_format, self._max_length)

    def _made(self, name: str, sources: Sequence[SourceConfig]) -> list[Pair] | list[Weighted]:
        mixture = open_mixture(sources, record_parser)
        records = [mixture.row(number)[1] for number in range(len(mixture))]
        separator = self.trainer.lightning_module.bound_format.spec.policy.separator
        other = next((r for r in records if r.separator not in (None, separator)), None)
        if other is not None:
            raise DataError(
                f"data.{name}: a record of problem {other.problem_id} ends steps with {other.separator!r}, the step "
                f"format with {separator!r}. Take the records of this policy, or its step format."
            )
        rows: list[Pair] | list[Weighted]
        if self._kind in ("pairs", "step_pairs"):
            rows = preference_pairs(records, "step" if self._kind == "step_pairs" else "solution", self._per_problem)
        else:
            rows = weighted_solutions(records, "right" if self._kind == "right" else "all")
        if not rows:
            raise DataError(
                f"data.{name}: {len(records)} records give no {self._kind}: `correct` must be known of them"
            )
        return rows
