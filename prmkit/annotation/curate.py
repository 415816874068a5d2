"""Which records to train on: duplicates merged, first errors and values balanced, labels confirmed by a judge.

Every function looks at records by number and returns a `Curated`: the numbers kept, the records that were merged, and
how many were dropped for what reason. Nothing is copied, so that data modules curate while they read and no file is
written again. Which solutions are kept depends on their content and the seed, never on their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import TypeVar, overload

from prmkit.annotation.judge import Verdict, load_verdicts, solution_key
from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR, UNKNOWN_ERROR, first_error
from prmkit.errors import ConfigError
from prmkit.seeding import derive_seed

__all__ = [
    "Curated",
    "CurationParams",
    "balance_positions",
    "balance_values",
    "curate",
    "deduplicate",
    "keep_agreed",
    "merge",
]

T = TypeVar("T")


@dataclass(frozen=True)
class CurationParams:
    """What to do with records before they are trained on; all off as it stands. Done in the order of the attributes.

    Attributes:
        deduplicate: merge records with the same question and steps: their values are averaged, weighted by rollouts.
        verdicts: file of a judge's verdicts (`prmkit.annotation.judge`): keep the solutions whose labels put the
            first error where the judge does (consensus filter, arXiv 2501.07301). None: no filter.
        position_ratio: no class of first-error position keeps more than this many times the records of the median
            class; at least 1, and 1 is the most even. Classes: no error, not known, and the place of the first error
            in its solution, in `position_bins` equal parts. None: as they are.
        position_bins: at least 1.
        value_ratio: the same for classes of value, which is the mean over a solution's labels up to its first error,
            in `value_bins` equal parts of [0, 1]. None: as they are.
        value_bins: at least 1.
        threshold: a step is right when its value is above; in [0, 1).
        seed: of the choice among records of a class.
    """

    deduplicate: bool = False
    verdicts: str | None = None
    position_ratio: float | None = None
    position_bins: int = 4
    value_ratio: float | None = None
    value_bins: int = 4
    threshold: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("position", "value"):
            ratio, bins = getattr(self, f"{name}_ratio"), getattr(self, f"{name}_bins")
            if ratio is not None and not 1.0 <= ratio < float("inf"):
                raise ConfigError(f"curation.{name}_ratio", ratio, "a number of at least 1, or null")
            if bins < 1:
                raise ConfigError(f"curation.{name}_bins", bins, "an integer of at least 1")
        if not 0.0 <= self.threshold < 1.0:
            raise ConfigError("curation.threshold", self.threshold, "a number in [0, 1)")

    @property
    def active(self) -> bool:
        """Is anything on?"""
        chosen = (self.verdicts, self.position_ratio, self.value_ratio)
        return self.deduplicate or any(value is not None for value in chosen)


@dataclass(frozen=True, slots=True)
class Curated:
    """What is left of `given` records.

    Attributes:
        given: how many there were.
        kept: numbers of those that are left, ascending.
        merged: by number, the records that stand for several.
        dropped: why the others are not there, with counts.
    """

    given: int
    kept: tuple[int, ...]
    merged: Mapping[int, StepLabels] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def over(self, records: Sequence[StepLabels]) -> Sequence[StepLabels]:
        """The records that are left, looked up when asked for."""
        return _Left(self, records)

    def then(self, later: Curated) -> Curated:
        """What is left when `later`, a curation of what this one left, is done too."""
        kept = tuple(self.kept[number] for number in later.kept)
        merged = {**self.merged, **{self.kept[number]: record for number, record in later.merged.items()}}
        left = set(kept)
        return Curated(
            self.given,
            kept,
            {number: record for number, record in merged.items() if number in left},
            dict(Counter(self.dropped) + Counter(later.dropped)),
        )

    def describe(self) -> str:
        """One line: how many are left, and why the others are not."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none dropped"
        return f"{len(self.kept)} of {self.given} records kept ({reasons})"


class _Left(Sequence[StepLabels]):
    def __init__(self, curated: Curated, records: Sequence[StepLabels]) -> None:
        self._curated, self._records = curated, records

    def __len__(self) -> int:
        return len(self._curated.kept)

    @overload
    def __getitem__(self, index: int) -> StepLabels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StepLabels]: ...
    def __getitem__(self, index: int | slice) -> StepLabels | Sequence[StepLabels]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number = self._curated.kept[index]
        merged = self._curated.merged.get(number)
        return self._records[number] if merged is None else merged


def curate(
    records: Sequence[StepLabels], params: CurationParams, verdicts: Mapping[str, Verdict] | None = None
) -> Curated:
    """Everything that `params` asks for, one after another.

    Args:
        records: looked up one by one, several times.
        params: what to do.
        verdicts: those of `params.verdicts`, where they are loaded already; None reads the file.
    """
    stages: list[Callable[[Sequence[StepLabels]], Curated]] = []
    if params.deduplicate:
        stages.append(deduplicate)
    if params.verdicts is not None:
        known = load_verdicts(params.verdicts) if verdicts is None else verdicts
        stages.append(lambda rows: keep_agreed(rows, known, params.threshold))
    if params.position_ratio is not None:
        ratio, bins = params.position_ratio, params.position_bins
        stages.append(lambda rows: balance_positions(rows, ratio, bins, params.threshold, params.seed))
    if params.value_ratio is not None:
        cap, parts = params.value_ratio, params.value_bins
        stages.append(lambda rows: balance_values(rows, cap, parts, params.threshold, params.seed))
    done = Curated(len(records), tuple(range(len(records))))
    for stage in stages:
        done = done.then(stage(done.over(records)))
    return done


def deduplicate(records: Sequence[StepLabels]) -> Curated:
    """Records with the same question and steps become one, in the place of the first; see `merge`."""
    groups: dict[str, list[int]] = {}
    for number in range(len(records)):
        groups.setdefault(solution_key(records[number]), []).append(number)
    merged = {
        numbers[0]: merge([records[number] for number in numbers]) for numbers in groups.values() if len(numbers) > 1
    }
    kept = tuple(numbers[0] for numbers in groups.values())
    return _curated(len(records), kept, {"duplicates": len(records) - len(kept)}, merged)


def merge(records: Sequence[StepLabels]) -> StepLabels:
    """One record for several of the same question and steps.

    The value of a step is the mean of its values weighted by rollouts, which is the share of right rollouts among
    all of them: they must have been sampled apart. Values without rollouts (human labels) count only where no value
    has any, and then alike. Rollouts add up. `answer`, `separator` and `correct` are the first that are known;
    everything else is the first record's.
    """
    first = records[0]
    values: list[float | None] = []
    for place in range(len(first.steps)):
        rated = [(r.values[place], r.rollouts[place]) for r in records]
        known = [(value, count) for value, count in rated if value is not None]
        if not any(count for _, count in known):
            known = [(value, 1) for value, _ in known]
        total = sum(count for _, count in known)
        mean = sum(value * count for value, count in known) / total if total else None
        values.append(mean if mean is None else min(max(mean, 0.0), 1.0))
    counts = tuple(sum(r.rollouts[place] for r in records) for place in range(len(first.steps)))
    return replace(
        first,
        values=tuple(values),
        rollouts=counts,
        answer=_first_known(record.answer for record in records),
        separator=_first_known(record.separator for record in records),
        correct=_first_known(record.correct for record in records),
    )


def _first_known(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def keep_agreed(records: Sequence[StepLabels], verdicts: Mapping[str, Verdict], threshold: float = 0.0) -> Curated:
    """Solutions whose labels put the first error where the judge does, or none where the judge finds none.

    Args:
        records: the records.
        verdicts: by `solution_key`.
        threshold: a step is right when its value is above.
    """
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    for number in range(len(records)):
        record = records[number]
        verdict = verdicts.get(solution_key(record))
        ours = first_error(record.values, threshold, record.correct)
        if verdict is None:
            dropped["without verdict"] += 1
        elif verdict.first_error is None:
            dropped["verdict not readable"] += 1
        elif ours == UNKNOWN_ERROR:
            dropped["first error not known"] += 1
        elif ours != verdict.first_error:
            dropped["judge disagrees"] += 1
        else:
            kept.append(number)
    return _curated(len(records), kept, dropped)


def balance_positions(
    records: Sequence[StepLabels], ratio: float = 1.0, bins: int = 4, threshold: float = 0.0, seed: int = 0
) -> Curated:
    """Even out where first errors are; see `CurationParams.position_ratio`. Records are left out by chance."""

    def position(record: StepLabels) -> Hashable:
        error = first_error(record.values, threshold, record.correct)
        return error if error in (NO_ERROR, UNKNOWN_ERROR) else bins * error // len(record.steps)

    return _balanced(records, position, ratio, "over-represented by position", derive_seed(seed, "position"))


def balance_values(
    records: Sequence[StepLabels], ratio: float = 1.0, bins: int = 4, threshold: float = 0.0, seed: int = 0
) -> Curated:
    """Even out how hard solutions are; see `CurationParams.value_ratio`. Records are left out by chance."""

    def value(record: StepLabels) -> Hashable:
        used: list[float] = []
        for label in record.values:
            if label is not None:
                used.append(label)
                if label <= threshold:
                    break
        return min(int(sum(used) / len(used) * bins), bins - 1) if used else None

    return _balanced(records, value, ratio, "over-represented by value", derive_seed(seed, "value"))


def _balanced(
    records: Sequence[StepLabels], classify: Callable[[StepLabels], Hashable], ratio: float, reason: str, seed: int
) -> Curated:
    """Cut every class to ratio times the median class (the smaller one of two in the middle), but not below one."""
    if not 1.0 <= ratio < float("inf"):
        raise ConfigError("curation.ratio", ratio, "a number of at least 1")
    classes: dict[Hashable, list[tuple[int, int]]] = {}
    for number in range(len(records)):
        record = records[number]
        lot = derive_seed(seed, solution_key(record))
        classes.setdefault(classify(record), []).append((lot, number))
    if not classes:
        return Curated(0, ())
    cap = int(ratio * median_low(map(len, classes.values())))
    kept = sorted(number for lots in classes.values() for _, number in sorted(lots)[:cap])
    return _curated(len(records), kept, {reason: len(records) - len(kept)})


def _curated(
    given: int, kept: Sequence[int], dropped: Mapping[str, int], merged: Mapping[int, StepLabels] | None = None
) -> Curated:
    return Curated(given, tuple(kept), merged or {}, {reason: count for reason, count in dropped.items() if count})
