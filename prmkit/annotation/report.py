"""What a file of step labels holds, and how much of it is true where a task can check steps exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR, UNKNOWN_ERROR, first_error, step_verdicts
from prmkit.errors import DataError
from prmkit.protocols import VerifiableTask
from prmkit.records import Problem

__all__ = ["LabelTruth", "compare_with_truth", "describe_labels"]

VALUE_BINS = 10


@dataclass(frozen=True, slots=True)
class LabelTruth:
    """Labels against exact truth; adds up with `+`. Steps before one labelled right count as labelled right.

    Attributes:
        steps: labelled steps up to and including the first that is truly wrong; `steps_agree` of them agree.
        solutions: solutions; `first_error_agree` of them have the first error where it truly is (or truly none).
        wrong_solutions, wrong_first_error_agree: the same, for solutions that end wrong.
        right_solutions: solutions that end right; `right_with_wrong_step` of them hold a wrong step all the same.
    """

    steps: int = 0
    steps_agree: int = 0
    solutions: int = 0
    first_error_agree: int = 0
    wrong_solutions: int = 0
    wrong_first_error_agree: int = 0
    right_solutions: int = 0
    right_with_wrong_step: int = 0

    def __add__(self, other: LabelTruth) -> LabelTruth:
        return LabelTruth(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def figures(self) -> dict[str, float | None]:
        """Shares in [0, 1]; None where nothing was counted."""
        pairs = {
            "step_accuracy": (self.steps_agree, self.steps),
            "first_error_accuracy": (self.first_error_agree, self.solutions),
            "first_error_accuracy_wrong_solutions": (self.wrong_first_error_agree, self.wrong_solutions),
            "false_positive_rate": (self.right_with_wrong_step, self.right_solutions),
        }
        return {name: part / whole if whole else None for name, (part, whole) in pairs.items()}


def compare_with_truth(record: StepLabels, truth: Sequence[bool], threshold: float = 0.0) -> LabelTruth:
    """Counts of one record.

    Args:
        record: the labels.
        truth: [S] is each step right, from `VerifiableTask.check`.
        threshold: a step is labelled wrong when its value is at most this.
    """
    true_error = next((index for index, right in enumerate(truth) if not right), NO_ERROR)
    relevant = len(truth) if true_error == NO_ERROR else true_error + 1
    labels = step_verdicts(record.values, threshold)
    labelled = [(label, right) for label, right in zip(labels[:relevant], truth, strict=False) if label is not None]
    agree = int(first_error(record.values, threshold, record.correct) == true_error)
    wrong = int(not record.correct)
    return LabelTruth(
        steps=len(labelled),
        steps_agree=sum(label == right for label, right in labelled),
        solutions=1,
        first_error_agree=agree,
        wrong_solutions=wrong,
        wrong_first_error_agree=agree * wrong,
        right_solutions=1 - wrong,
        right_with_wrong_step=(1 - wrong) * int(true_error != NO_ERROR),
    )


def describe_labels(
    records: Iterable[StepLabels],
    threshold: float = 0.0,
    truth: tuple[VerifiableTask, Mapping[str, Problem]] | None = None,
) -> dict[str, Any]:
    """Histograms of a file of labels, and shares that are true.

    Args:
        records: of the file.
        threshold: a step is labelled wrong when its value is at most this.
        truth: a task that checks steps, and its problems by id; None leaves the comparison out.

    Returns:
        `solutions`, `values` (VALUE_BINS counts over [0, 1], the last bin closed), `first_error` {position from 1,
        "none", "unknown": count}; with truth also `truth` (shares of LabelTruth), `truth_counts`,
        `step_accuracy_by_position` {position from 1: share} and `step_accuracy_by_rollouts` {rollouts: share}.

    Raises:
        DataError: a record of a problem that is not given.
    """
    values = [0] * VALUE_BINS
    errors: Counter[int] = Counter()
    total = LabelTruth()
    by_position: dict[int, list[bool]] = {}
    by_rollouts: dict[int, list[bool]] = {}
    solutions = 0
    for record in records:
        solutions += 1
        for value in record.values:
            if value is not None:
                values[min(int(value * VALUE_BINS), VALUE_BINS - 1)] += 1
        errors[first_error(record.values, threshold, record.correct)] += 1
        if truth is None:
            continue
        task, problems = truth
        if record.problem_id not in problems:
            raise DataError(f"record of problem {record.problem_id!r}: no such problem in this run")
        checked = task.check(problems[record.problem_id], record.steps)
        total += compare_with_truth(record, checked, threshold)
        for index, label in enumerate(step_verdicts(record.values, threshold)):
            if label is not None and all(checked[:index]):
                by_position.setdefault(index + 1, []).append(label == checked[index])
                by_rollouts.setdefault(record.rollouts[index], []).append(label == checked[index])
    names = {NO_ERROR: "none", UNKNOWN_ERROR: "unknown"}
    found: dict[str, Any] = {
        "solutions": solutions,
        "values": values,
        "first_error": {names.get(at, str(at + 1)): errors[at] for at in sorted(errors)},
    }
    if truth is not None:
        found |= {
            "truth": total.figures(),
            "truth_counts": asdict(total),
            "step_accuracy_by_position": _shares(by_position),
            "step_accuracy_by_rollouts": _shares(by_rollouts),
        }
    return found


def _shares(groups: Mapping[int, Sequence[bool]]) -> dict[str, float]:
    return {str(name): sum(groups[name]) / len(groups[name]) for name in sorted(groups)}
