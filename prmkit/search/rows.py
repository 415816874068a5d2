"""Rows: one JSON line a problem and search, with everything later figures are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prmkit.errors import DataError
from prmkit.json_objects import located, read_objects, shown
from prmkit.records import FinishReason, Usage
from prmkit.search.result import TreeNode

__all__ = ["ROW_SCHEMA", "SearchRow", "TraceRecord", "read_rows"]

ROW_SCHEMA = 3
_READABLE = (1, 2, 3)  # schema 1 had no tree, schema 2 no method and no budget
_COUNTS = ("generated_tokens", "scored_tokens", "engine_calls", "scorer_calls", "samples")


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """A graded trace.

    Attributes:
        steps: texts.
        finish: as in Trace.
        answer: extracted final answer; None when there is none.
        group: equivalence class of the answer among the problem's samples; -1 without an answer.
        correct: it finished and its answer is equivalent to the gold answer.
        tokens: token ids in its steps.
        scores: the PRM's scores, one a step; None when not scored.
    """

    steps: tuple[str, ...]
    finish: FinishReason
    answer: str | None
    group: int
    correct: bool
    tokens: int
    scores: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "scores": None if self.scores is None else list(self.scores),
            "answer": self.answer,
            "group": self.group,
            "correct": self.correct,
            "finish": self.finish,
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TraceRecord:
        _check_texts(value, ("finish",), ("answer",))
        steps, scores = value["steps"], value["scores"]
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise DataError(f"traces: steps: got {shown(steps)}; accepted: a list of strings")
        if scores is not None and (len(scores) != len(steps) or not all(type(x) in (int, float) for x in scores)):
            raise DataError(f"traces: scores: got {shown(scores)}; accepted: a number a step, or null")
        return cls(
            steps=tuple(steps),
            finish=value["finish"],
            answer=value["answer"],
            group=int(value["group"]),
            correct=bool(value["correct"]),
            tokens=int(value["tokens"]),
            scores=None if scores is None else tuple(scores),
        )


@dataclass(frozen=True, slots=True)
class SearchRow:
    """What a search made of one problem.

    Attributes:
        problem_id, question, answer, level, source: of the problem.
        traces: in sample order; empty when the problem failed.
        greedy: the trace at temperature 0; None when not asked for, or failed. Not part of `usage`.
        usage: what the traces cost; `seconds` is left at 0, so that rows are reproducible.
        error: why the problem failed; None when it did not.
        tree: all that a step-wise search tried; empty for methods whose traces already show it.
        method: name of the search; "" in rows of older schemas.
        budget: what it was given, in the unit of its run; None for a search of a size of its own.
    """

    problem_id: str
    question: str
    answer: str
    traces: tuple[TraceRecord, ...]
    greedy: TraceRecord | None = None
    usage: Usage = field(default_factory=Usage)
    level: str | None = None
    source: str = ""
    error: str | None = None
    tree: tuple[TreeNode, ...] = ()
    method: str = ""
    budget: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": ROW_SCHEMA,
            "problem_id": self.problem_id,
            "method": self.method,
            "budget": self.budget,
            "source": self.source,
            "level": self.level,
            "question": self.question,
            "answer": self.answer,
            "error": self.error,
            "usage": {name: getattr(self.usage, name) for name in _COUNTS},
            "greedy": None if self.greedy is None else self.greedy.to_json(),
            "traces": [trace.to_json() for trace in self.traces],
            "tree": [node.to_json() for node in self.tree],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> SearchRow:
        """Inverse of `to_json`; `where` (file:line) starts the message of a DataError."""
        schema = value.get("schema")
        if type(schema) is not int or schema not in _READABLE:
            raise DataError(f"{where}: schema {shown(schema)}; this version reads rows of schemas {_READABLE}")
        with located(where, "search row"):
            _check_texts(value, ("problem_id", "question", "answer", "source"), ("level", "error"))
            return cls(
                problem_id=value["problem_id"],
                question=value["question"],
                answer=value["answer"],
                traces=tuple(map(TraceRecord.from_json, value["traces"])),
                greedy=None if value["greedy"] is None else TraceRecord.from_json(value["greedy"]),
                usage=Usage(**value["usage"]),
                level=value["level"],
                source=value["source"],
                error=value["error"],
                tree=tuple(map(TreeNode.from_json, value["tree"] if value["schema"] > 1 else ())),
                method=value["method"] if value["schema"] > 2 else "",
                budget=value["budget"] if value["schema"] > 2 else None,
            )


def _check_texts(value: Mapping[str, Any], needed: Sequence[str], optional: Sequence[str]) -> None:
    for name in (*needed, *optional):
        found = value[name]
        if not isinstance(found, str) and not (found is None and name in optional):
            raise DataError(f"{name}: got {shown(found)}; accepted: a string{' or null' if name in optional else ''}")


def read_rows(path: str | Path) -> Iterator[SearchRow]:
    """Rows of a `rows.jsonl`, in order. DataError names file and line."""
    for where, value in read_objects(path):
        yield SearchRow.from_json(value, where)
