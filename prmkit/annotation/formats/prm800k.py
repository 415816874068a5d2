"""PRM800K (arXiv 2305.20050): several rated completions a step, one of which was continued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prmkit.annotation.formats.fields import get, optional_text
from prmkit.annotation.formats.tally import Rated, Tally
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["lines", "parse"]

Step = tuple[str, float | None]


def parse(record: Mapping[str, Any], where: str, neutral: float = 1.0) -> list[StepLabels]:
    """One record a rated alternative: the steps that were continued before it, then it."""
    question = get(record, "question", dict, where)
    label = get(record, "label", dict, where)
    problem = get(question, "problem", str, f"{where}: question")
    answer = optional_text(question, "ground_truth_answer", f"{where}: question")
    levels = get(label, "steps", list, f"{where}: label")
    path: list[Step] = []
    rows: list[StepLabels] = []
    for number, level in enumerate(levels):
        place = f"{where}: label.steps[{number}]"
        alternatives = [
            _rated(completion, f"{place}.completions[{index}]", neutral)
            for index, completion in enumerate(_completions(level, place))
        ]
        chosen = level.get("chosen_completion")
        if chosen is not None and not (type(chosen) is int and 0 <= chosen < len(alternatives)):
            last = len(alternatives) - 1
            raise DataError(f"{place}.chosen_completion: got {shown(chosen)}; accepted: null or 0..{last}")
        solved = label.get("finish_reason") == "solution" and number == len(levels) - 1
        for index, alternative in enumerate(alternatives):
            steps, values = zip(*path, alternative, strict=True)
            rows.append(
                StepLabels(
                    problem_id=question_id(problem),
                    question=problem,
                    answer=answer,
                    steps=steps,
                    values=values,
                    rollouts=(0,) * len(steps),
                    source="prm800k",
                    policy="",
                    correct=True if solved and index == chosen else None,
                )
            )
        if chosen is not None:
            path.append(alternatives[chosen])
        elif level.get("human_completion"):
            path.append(_rated(level["human_completion"], f"{place}.human_completion", neutral))
        else:
            break  # nothing was continued: no step behind this one has a known prefix
    return rows


def _completions(level: Any, where: str) -> list[Any]:
    """What was rated at a level; null and missing are none."""
    if isinstance(level, Mapping) and level.get("completions") is None:
        return []
    found: list[Any] = get(level, "completions", list, where)
    return found


def _rated(completion: Any, where: str, neutral: float) -> Step:
    """(text, value) of one completion."""
    text = get(completion, "text", str, where)
    rating = completion.get("rating")
    values = {None: None, -1: 0.0, 0: neutral, 1: 1.0}
    if not (rating is None or type(rating) is int) or rating not in values:
        raise DataError(f"{where}.rating: got {shown(rating)}; accepted: -1, 0, 1 or null")
    return text, values[rating]


def lines(records: Iterable[StepLabels], tally: Tally) -> Iterator[dict[str, Any]]:
    """One line a trajectory: neighbouring records of which each is an alternative to the last step of the one before,
    or goes on behind it."""
    trajectory: _Trajectory | None = None
    for record in records:
        if not record.steps:
            tally.dropped_records += 1
            continue
        rated = tally.hard(record)
        if trajectory is not None and trajectory.takes(record, rated):
            continue
        if trajectory is not None:
            yield trajectory.line()
        trajectory = _Trajectory(record, rated)
    if trajectory is not None:
        yield trajectory.line()


class _Trajectory:
    """Levels of alternatives, and which one of each level was continued (None: a human's completion was)."""

    def __init__(self, record: StepLabels, rated: Rated) -> None:
        self._question, self._answer = record.question, record.answer
        self._path: list[Step] = []
        self._levels: list[Rated] = [[]]
        self._chosen: list[int | None] = []
        self._solution: int | None = None
        self._descend(rated, record.correct)

    def takes(self, record: StepLabels, rated: Rated) -> bool:
        """Add a record; False when it belongs to another trajectory."""
        depth = len(self._path)
        if (record.question, record.answer) != (self._question, self._answer) or rated[:depth] != self._path:
            return False
        if len(rated) <= depth or (self._solution is not None and (record.correct or len(rated) > depth + 1)):
            return False
        if len(rated) > depth + 1 and rated[depth][1] is not None and rated[depth] not in self._levels[depth]:
            return False
        self._descend(rated, record.correct)
        return True

    def _descend(self, rated: Rated, correct: bool | None) -> None:
        """Go on along all steps of a record but its last, which joins the alternatives of its level."""
        for step in rated[len(self._path) : -1]:
            level = self._levels[-1]
            if step not in level and step[1] is not None:
                level.append(step)
            self._chosen.append(level.index(step) if step in level else None)
            self._path.append(step)
            self._levels.append([])
        self._levels[-1].append(rated[-1])
        if correct:
            self._solution = len(self._levels[-1]) - 1

    def line(self) -> dict[str, Any]:
        """The native object."""
        chosen = [*self._chosen, self._solution]
        humans = [
            None if index is not None else text for index, (text, _) in zip(self._chosen, self._path, strict=True)
        ]
        steps = [
            {
                "completions": [{"text": text, "rating": _RATINGS[value]} for text, value in level],
                "human_completion": None if human is None else {"text": human, "rating": None, "source": "human"},
                "chosen_completion": index,
            }
            for level, human, index in zip(self._levels, [*humans, None], chosen, strict=True)
        ]
        return {
            "question": {"problem": self._question, "ground_truth_answer": self._answer},
            "label": {"steps": steps, "finish_reason": None if self._solution is None else "solution"},
        }


_RATINGS = {None: None, 0.0: -1, 1.0: 1}
