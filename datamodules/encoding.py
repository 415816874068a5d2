"""From rows to token ids to batches: one codec for each kind of training. Runs in the workers; no randomness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from datamodules.readers import Demonstration
from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR, UNKNOWN_ERROR, TargetKind, first_error, step_pairs, step_targets
from prmkit.batches import Batch, PairBatch, PRMBatch, SFTBatch
from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat

__all__ = ["Codec", "Example", "PRMCodec", "PRMExample", "SFTCodec", "SFTExample", "TargetConfig"]

RowT = TypeVar("RowT", contravariant=True)
ExampleT = TypeVar("ExampleT", bound="Example")


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded row.

    Attributes:
        id: row id.
        input_ids: token ids.
        truncated: something was cut off to fit `max_length`.
    """

    id: str
    input_ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class SFTExample(Example):
    """A question with a solution.

    Attributes:
        n_prompt: leading ids that are the prompt; the others are predicted.
    """

    n_prompt: int


@dataclass(frozen=True, slots=True)
class PRMExample(Example):
    """A solution with labelled steps.

    Attributes:
        positions: [S] index into input_ids at which each step's score is read.
        targets: [S] in [0, 1], None where not labelled.
        read: [S] is the step's score wanted?
        pairs: (better, worse) indices among the steps that are read.
        first_error: index of the first wrong step, -1 none, -2 unknown.
    """

    positions: tuple[int, ...]
    targets: tuple[float | None, ...]
    read: tuple[bool, ...]
    pairs: tuple[tuple[int, int], ...]
    first_error: int


class Codec(Protocol[RowT, ExampleT]):
    """Encodes rows and collates them."""

    def encode(self, id: str, row: RowT) -> ExampleT | None:
        """The encoded row; None when nothing in it can be trained on. DataError when it may not be used at all."""
        ...

    def collate(self, examples: Sequence[ExampleT]) -> Batch:
        """A batch, right-padded. No examples give one filler row, which counts nowhere."""
        ...


class SFTCodec:
    """Questions with solutions, to token ids by the policy's side of the step format.

    Args:
        format: bound step format.
        max_length: tokens a row at most, prompt and end of sequence included.
        overlong: what happens to longer rows. "refuse": left out. "truncate": the solution's end is cut off, so that
            the end of sequence is not learnt there; a prompt without room for any of its solution is still refused.
        packed: lay the rows of a batch end to end in one sequence.
    """

    def __init__(
        self,
        format: BoundStepFormat,
        max_length: int,
        overlong: Literal["refuse", "truncate"] = "refuse",
        packed: bool = False,
    ) -> None:
        self.format, self.max_length, self.overlong, self.packed = format, max_length, overlong, packed

    def encode(self, id: str, row: Demonstration) -> SFTExample | None:
        prompt = tuple(self.format.prompt_ids(row.question))
        ids = prompt + tuple(self.format.solution_ids(row.solution))
        truncated = len(ids) > self.max_length
        if truncated and (self.overlong == "refuse" or len(prompt) >= self.max_length):
            return None
        return SFTExample(id, ids[: self.max_length], truncated, len(prompt))

    def collate(self, examples: Sequence[SFTExample]) -> SFTBatch:
        ids = tuple(example.id for example in examples) or ("",)
        rows = [example.input_ids for example in examples] or [(self.format.eos_id,)]
        counted = [[i >= example.n_prompt for i in range(len(example.input_ids))] for example in examples] or [[False]]
        if self.packed:
            return SFTBatch(
                ids=ids,
                input_ids=torch.tensor([[token for row in rows for token in row]]),
                attention_mask=None,
                loss_mask=torch.tensor([[flag for row in counted for flag in row]]),
                position_ids=torch.tensor([[place for row in rows for place in range(len(row))]]),
            )
        return SFTBatch(
            ids=ids,
            input_ids=_padded(rows, self.format.eos_id),
            attention_mask=_lengths_mask([len(row) for row in rows]),
            loss_mask=_padded(counted, False),
        )


@dataclass(frozen=True)
class TargetConfig:
    """What a PRM is trained on.

    Attributes:
        kind: "hard": 1 when a step's value is above `threshold`, else 0. "soft": the value itself.
        mask_after_first_error: leave out the steps behind the first wrong one.
        threshold: in [0, 1); 0 counts a step right when any rollout from it ended right.
        pairs: give pairs of steps of the same row with different targets, for the pairwise loss. A row without such a
            pair is refused.
    """

    kind: TargetKind = "hard"
    mask_after_first_error: bool = True
    threshold: float = 0.0
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("hard", "soft"):
            raise ConfigError("targets.kind", self.kind, "hard | soft")
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError("targets.threshold", self.threshold, "a number in [0, 1)")


class PRMCodec:
    """Step-label records, to token ids by the PRM's side of the step format.

    Ids behind the last score that is read are left out: nothing looks at them.

    Args:
        format: bound step format.
        targets: what to train on.
        max_length: tokens a row at most; the steps that do not fit are cut off.
        purpose: "train"; "eval" keeps rows without a pair, whose labels still count in metrics; "predict" reads every
            step's score, labelled or not.
    """

    def __init__(
        self,
        format: BoundStepFormat,
        targets: TargetConfig,
        max_length: int,
        purpose: Literal["train", "eval", "predict"] = "train",
    ) -> None:
        self.format, self.targets, self.max_length, self.purpose = format, targets, max_length, purpose
        self._pairs = targets.pairs and purpose != "predict"

    def encode(self, id: str, row: StepLabels) -> PRMExample | None:
        self._check_separator(id, row)
        encoded = self.format.encode_steps(row.question, row.steps).truncate(self.max_length)
        n_fit = len(encoded.positions)
        targets = step_targets(row, self.targets.kind, self.targets.mask_after_first_error, self.targets.threshold)
        read = [self.purpose == "predict" or target is not None for target in targets[:n_fit]]
        if not any(read):
            return None
        n_kept = max(index for index, wanted in enumerate(read) if wanted) + 1
        kept = targets[:n_kept]
        # Pairs are numbered among the labelled steps.
        pairs = step_pairs([target for target in kept if target is not None]) if self._pairs else ()
        if self._pairs and self.purpose == "train" and not pairs:
            return None
        error = first_error(row.values, self.targets.threshold, row.correct)
        if n_fit < len(row.steps) and (error == NO_ERROR or error >= n_fit):
            error = UNKNOWN_ERROR
        return PRMExample(
            id=id,
            input_ids=tuple(encoded.input_ids[: encoded.positions[n_kept - 1] + 1]),
            truncated=n_fit < len(row.steps),
            positions=tuple(encoded.positions[:n_kept]),
            targets=kept,
            read=tuple(read[:n_kept]),
            pairs=pairs,
            first_error=error,
        )

    def collate(self, examples: Sequence[PRMExample]) -> PRMBatch:
        rows = [example.input_ids for example in examples] or [(self.format.eos_id,)]
        targets = [[value or 0.0 for value in example.targets] for example in examples] or [[0.0]]
        batch = PRMBatch(
            ids=tuple(example.id for example in examples) or ("",),
            input_ids=_padded(rows, self.format.eos_id),
            attention_mask=_lengths_mask([len(row) for row in rows]),
            positions=_padded([example.positions for example in examples] or [(0,)], 0),
            position_mask=_padded([example.read for example in examples] or [(False,)], False),
            targets=_padded(targets, 0.0),
            first_error=torch.tensor([example.first_error for example in examples] or [UNKNOWN_ERROR]),
        )
        if not self._pairs:
            return batch
        pairs, before = [], 0
        for example in examples:
            pairs += [(before + better, before + worse) for better, worse in example.pairs]
            before += sum(example.read)
        return PairBatch(**vars(batch), pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2))

    def _check_separator(self, id: str, row: StepLabels) -> None:
        ours = self.format.spec.policy.separator
        if row.separator is not None and row.separator != ours:
            raise DataError(
                f"{id}: separator: got {row.separator!r}; the step format {self.format.spec.name!r} has "
                f"step_format.policy.separator = {ours!r}. These steps were cut by a policy that writes otherwise: "
                f"train with that policy's step format, or annotate with this one's."
            )


def _padded(rows: Sequence[Sequence[int] | Sequence[float]], value: float) -> Tensor:
    """[B, longest] tensor of rows, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _lengths_mask(lengths: Sequence[int]) -> Tensor:
    """[B, longest] bool, True within each length."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
