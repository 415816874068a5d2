"""`prm grade`: verdicts on a file of answers, what was extracted and why; `--attack` looks for holes in the grader."""

from __future__ import annotations

import argparse
import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prmkit.cli.ending import show_ending
from prmkit.cli.json_output import JSON_HELP, json_output
from prmkit.cli.plain_parser import PlainParser
from prmkit.errors import ConfigError, DataError
from prmkit.io import read_objects

__all__ = ["parser", "run"]

EXAMPLES = """examples:
  prm grade answers.jsonl                              records with answer and gold
  prm grade solutions.jsonl --wrong                    records with solution and gold; only what is not accepted
  prm grade solutions.jsonl --task gsm8k               with that task's extractors and tolerance
  prm grade --attack problems.jsonl                    records with gold, and question when there is one
  prm grade answers.jsonl --grader my_package.MyGrader

A record has the gold answer in `gold` (or `gold_answer`, or `answer` beside a solution) and what is graded in `answer`
or `response`, or a whole text in `solution`, `completion` or `output`. Status 1 when --attack finds a hole."""

HOLES = 1
_GOLD = ("gold", "gold_answer", "reference", "final_answer", "target")
_SOLUTION = ("solution", "completion", "output", "text", "generated_text")
_ANSWER = ("answer", "response", "prediction")
_QUESTION = ("question", "problem", "prompt", "input")


def parser() -> PlainParser:
    """The command's parser."""
    from prmkit.grading.extract import EXTRACTORS

    made = PlainParser(
        prog="prm grade",
        description="Verdicts on answers: which are equal to the gold answer, what was extracted, and why.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("file", metavar="FILE", type=Path, help="JSON lines, or one JSON array")
    made.add_argument(
        "--attack", action="store_true", help="try cheap strings on every gold answer; report those accepted"
    )
    made.add_argument("--wrong", action="store_true", help="show only what is not accepted")
    made.add_argument("--limit", type=int, default=None, help="records at most (default: all)")
    made.add_argument("--task", default=None, help="take the grader of this task, e.g. gsm8k")
    made.add_argument("--grader", default=None, metavar="CLASS", help="import path of a grader's class of your own")
    made.add_argument("--extractors", default=None, metavar="NAMES", help=f"in order, of {','.join(EXTRACTORS)}")
    made.add_argument("--tolerance", type=float, default=None, help="relative, for decimals (default: 0, exact)")
    made.add_argument("--json", action="store_true", help=JSON_HELP)
    return made


def run(argv: Sequence[str]) -> int:
    """Run the command; returns 0, or 1 when `--attack` finds a hole."""
    arguments = parser().parse_args(list(argv) or ["--help"])
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError("--limit", arguments.limit, "an integer of at least 1")
    if not arguments.file.is_file():
        raise DataError(f"{arguments.file}: no such file")
    grader = _grader(arguments)
    records = _records(arguments.file, arguments.limit)
    with json_output(arguments.json) as answer:
        result = _attack(grader, records) if arguments.attack else _grade(grader, records, arguments.wrong)
        answer(result)
    return HOLES if arguments.attack and result["accepted"] else 0


def _records(path: Path, limit: int | None) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = list(read_objects(path))
    if not found:
        raise DataError(f"{path}: holds no record")
    return found[:limit]


def _grader(arguments: argparse.Namespace) -> Any:
    from prmkit.grading import MathGrader

    chosen = [name for name in ("task", "grader") if getattr(arguments, name) is not None]
    settings = [name for name in ("extractors", "tolerance") if getattr(arguments, name) is not None]
    if len(chosen) > 1:
        raise ConfigError("--grader", arguments.grader, "one of --task and --grader")
    if chosen and settings:
        raise ConfigError(f"--{settings[0]}", getattr(arguments, settings[0]), f"no value beside --{chosen[0]}")
    if arguments.task is not None:
        return _of_task(arguments.task)
    if arguments.grader is not None:
        return _own(arguments.grader)
    options: dict[str, Any] = {}
    if arguments.extractors is not None:
        options["extractors"] = tuple(name.strip() for name in arguments.extractors.split(","))
    if arguments.tolerance is not None:
        options["tolerance"] = arguments.tolerance
    return MathGrader(**options)


def _of_task(name: str) -> Any:
    from prmkit.tasks import TASKS, get_task

    if name in ("jsonl", "hub") or name not in TASKS:
        named = ", ".join(task for task in TASKS if task not in ("jsonl", "hub"))
        raise ConfigError("--task", name, named, "For files of your own the default is the grader of task jsonl.")
    return get_task(name).grader


def _own(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)() if module else None
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError("--grader", path, "an import path of a class that takes no arguments", str(error)) from error
    if not all(callable(getattr(made, method, None)) for method in ("extract", "grade", "group")):
        raise ConfigError("--grader", path, "a class with extract, grade and group (prmkit.protocols.Grader)")
    return made


def _field(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if record.get(name) is not None:
            value = record[name]
            return json.dumps(value) if isinstance(value, list | dict) else str(value)
    return None


def _parts(where: str, record: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """Gold answer, whole text and answer of a record; one of the last two is None."""
    gold, text, answer = (_field(record, names) for names in (_GOLD, _SOLUTION, _ANSWER))
    if gold is None and text is not None:
        gold, answer = answer, None
    if gold is None:
        raise DataError(f"{where}: no gold answer; accepted: a field {', '.join(_GOLD)}")
    return gold, (text if answer is None else None), answer


def _grade(grader: Any, records: Sequence[tuple[str, Mapping[str, Any]]], only_wrong: bool) -> dict[str, Any]:
    rows = []
    for where, record in records:
        gold, text, answer = _parts(where, record)
        if text is None and answer is None:
            raise DataError(f"{where}: nothing to grade; accepted: a field {', '.join((*_ANSWER, *_SOLUTION))}")
        rows.append((where, gold, grader.extract(text) if text is not None else answer))
    verdicts = grader.grade([(answer, gold) for _, gold, answer in rows])
    shown = []
    for (where, gold, answer), verdict in zip(rows, verdicts, strict=True):
        why = _reason(answer, gold, verdict.correct, verdict.timed_out)
        if not (only_wrong and verdict.correct):
            print(f"{'right' if verdict.correct else 'wrong'}  {answer!r}  gold {gold!r}  {why}")
            shown.append({"record": where, "correct": verdict.correct, "answer": answer, "gold": gold, "why": why})
    correct = sum(verdict.correct for verdict in verdicts)
    show_ending(results=[f"{correct} of {len(rows)} right ({correct / len(rows):.1%})"])
    return {"records": len(rows), "correct": correct, "verdicts": shown}


def _reason(answer: str | None, gold: str, correct: bool, timed_out: bool) -> str:
    """One line that says how the two were read."""
    from prmkit.grading.reading import describe

    if answer is None:
        return "no answer was found in the text"
    if timed_out:
        return "stopped at a limit of time, length or size"
    kinds = [describe(text) if len(text) < 2000 else "long text" for text in (answer, gold)]
    if correct:
        return kinds[0] if kinds[0] == kinds[1] else f"{kinds[0]} for {kinds[1]}"
    return f"{kinds[0]}: another value" if kinds[0] == kinds[1] else f"{kinds[0]} is not {kinds[1]}"


def _attack(grader: Any, records: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    from prmkit.grading.attack import Target, attack

    targets = []
    for where, record in records:
        gold = _field(record, _GOLD) or _field(record, _ANSWER)
        if gold is None:
            raise DataError(f"{where}: no gold answer; accepted: a field {', '.join((*_GOLD, *_ANSWER))}")
        targets.append(Target(gold, _field(record, _QUESTION) or ""))
    tried, holes = attack(grader, targets)
    for hole in holes:
        print(f"accepted  {hole.text!r}  gold {hole.gold!r}  {hole.family}")
    families = Counter(hole.family for hole in holes)
    counts = ", ".join(f"{family} {count}" for family, count in families.most_common())
    found = f"{len(holes)} of {tried} strings accepted on {len(targets)} gold answers"
    show_ending(results=[f"{found}: {counts}" if counts else found])
    return {
        "targets": len(targets),
        "tried": tried,
        "accepted": len(holes),
        "holes": [{"gold": hole.gold, "text": hole.text, "family": hole.family} for hole in holes],
    }
