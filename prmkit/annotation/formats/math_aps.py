"""MATH-APS (the OmegaPRM data of OpenR, arXiv 2410.09671): one line a question, flat (every prefix of the search with
its value) or as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from prmkit.annotation.formats.fields import fraction, get, optional_text
from prmkit.annotation.formats.tally import Tally
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import DataError
from prmkit.json_objects import shown

__all__ = ["flat_lines", "parse", "tree_lines"]

_BEHIND_STEP = "\n\n"

Path = list[tuple[str, float]]


def parse(record: Mapping[str, Any], where: str) -> list[StepLabels]:
    """One record a path from root to leaf."""
    question = get(record, "question", str, where)
    nodes = record.get("reasoning_steps")
    if isinstance(nodes, list):
        paths = _flat_paths(question, nodes, where)
    elif isinstance(nodes, dict):
        paths = _tree_paths(nodes, f"{where}: reasoning_steps")
    else:
        raise DataError(f"{where}: reasoning_steps: got {shown(nodes)}; accepted: a list of prefixes, or a tree")
    answer = optional_text(record, "final_answer", where)
    return [
        StepLabels(
            problem_id=question_id(question),
            question=question,
            answer=answer,
            steps=tuple(text for text, _ in path),
            values=tuple(value for _, value in path),
            rollouts=(0,) * len(path),
            source="math-aps",
            policy="",
            tree=record.get("question_id"),
        )
        for path in paths
    ]


def _flat_paths(question: str, nodes: list[Any], where: str) -> Iterator[Path]:
    """Paths to the prefixes that no other one continues, in order of first appearance."""
    values: dict[str, list[float]] = {}
    for number, node in enumerate(nodes):
        place = f"{where}: reasoning_steps[{number}]"
        prefix = get(node, "solution_prefix", str, place)
        if not prefix.startswith(question):
            raise DataError(
                f"{place}.solution_prefix: got {prefix[:40]!r}...; accepted: text that begins with question"
            )
        values.setdefault(prefix[len(question) :], []).append(fraction(node.get("mc_value"), f"{place}.mc_value"))
    # In sorted order every prefix stands before its continuations, and those stand together.
    parents: dict[str, str] = {}
    open_prefixes: list[str] = []
    for prefix in sorted(values):
        while open_prefixes and not prefix.startswith(open_prefixes[-1]):
            open_prefixes.pop()
        parents[prefix] = open_prefixes[-1] if open_prefixes else ""
        open_prefixes.append(prefix)
    continued = {parents[prefix] for prefix in values if prefix}
    for prefix in values:
        if not prefix.strip() or prefix in continued:
            continue
        path: Path = []
        while prefix.strip():
            step = prefix[len(parents[prefix]) :].strip()
            if step:
                path.append((step, sum(values[prefix]) / len(values[prefix])))
            prefix = parents[prefix]
        yield path[::-1]


def _tree_paths(root: Mapping[str, Any], where: str) -> Iterator[Path]:
    """Paths from below the root, whose text is the question, to every leaf, depth first."""
    stack: list[tuple[Any, Path, str]] = []
    for number, child in enumerate(_children(root, where)):
        stack.insert(0, (child, [], f"{where}.children[{number}]"))
    while stack:
        node, above, place = stack.pop()
        step = get(node, "text", str, place).strip()
        path = [*above, (step, fraction(node.get("mc_value"), f"{place}.mc_value"))] if step else above
        children = _children(node, place)
        if not children and path:
            yield path
        stack += [(child, path, f"{place}.children[{number}]") for number, child in enumerate(children)][::-1]


def _children(node: Mapping[str, Any], where: str) -> list[Any]:
    """A node's children; null and missing are none."""
    found: list[Any] = [] if node.get("children") is None else get(node, "children", list, where)
    return found


# -- writing --------------------------------------------------------------------------------------------------------


def _groups(records: Iterable[StepLabels], tally: Tally) -> Iterator[tuple[StepLabels, list[Path]]]:
    """Neighbouring records of one question and tree: the first of them, and the labelled paths of all."""
    for _, group in groupby(records, key=lambda record: (record.question, record.answer, record.tree)):
        opening: StepLabels | None = None
        paths: list[Path] = []
        for record in group:
            opening = opening or record
            path, rest = tally.labelled(list(zip(record.steps, record.values, strict=True)), _BEHIND_STEP)
            if path:
                paths.append(path)
                tally.dropped_steps += bool(rest)
            else:
                tally.dropped_records += 1
        if opening is not None and paths:
            yield opening, paths


def _line(opening: StepLabels, reasoning_steps: Any) -> dict[str, Any]:
    line = {"question": opening.question, "final_answer": opening.answer, "reasoning_steps": reasoning_steps}
    return line if opening.tree is None else line | {"question_id": opening.tree}


def flat_lines(records: Iterable[StepLabels], tally: Tally) -> Iterator[dict[str, Any]]:
    """Every labelled prefix once, question included, a blank line behind each step.

    Raises:
        DataError: prefixes that would be read back as others: a step whose text is the beginning of a sibling, up to
            a blank line.
    """
    for opening, paths in _groups(records, tally):
        nodes: dict[tuple[str, float], None] = {}
        for path in paths:
            prefix = opening.question + _BEHIND_STEP
            for text, value in path:
                prefix += text + _BEHIND_STEP
                nodes[prefix, value] = None
        line = _line(opening, [{"solution_prefix": prefix, "mc_value": value} for prefix, value in nodes])
        texts = [tuple(text.strip() for text, _ in path) for path in paths]
        inner = {text[:end] for text in texts for end in range(len(text))}
        leaves = [text for text in dict.fromkeys(texts) if text not in inner]
        tally.repeated_records += len(texts) - len(leaves)
        if {record.steps for record in parse(line, "")} != set(leaves):
            raise DataError(
                f"{opening.problem_id}: flat MATH-APS cannot hold its solutions: a step of one begins, up to a blank "
                f"line, with the whole step of another. Write math-aps-tree."
            )
        yield line


def tree_lines(records: Iterable[StepLabels], tally: Tally) -> Iterator[dict[str, Any]]:
    """A tree whose leaves, depth first, are the records in their order.

    Neighbours share the steps they begin with, as long as those have the same values; a leaf is never shared, so that
    no record is lost.
    """
    for opening, paths in _groups(records, tally):
        root: dict[str, Any] = {"text": opening.question, "mc_value": None, "children": []}
        for path in paths:
            node = root
            for text, value in path[:-1]:
                latest = node["children"][-1] if node["children"] else None
                if latest is None or not latest["children"] or (latest["text"], latest["mc_value"]) != (text, value):
                    latest = {"text": text, "mc_value": value, "children": []}
                    node["children"].append(latest)
                node = latest
            text, value = path[-1]
            node["children"].append({"text": text, "mc_value": value, "children": []})
        yield _line(opening, root)
