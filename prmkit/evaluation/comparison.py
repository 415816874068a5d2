"""Methods against each other: from the rows of many searches to figures by method and budget.

The traces of a search are one set of candidates; every selection (majority, RM-max, RM-vote with each aggregation)
chooses among all of them. Traces that did not finish never vote. A problem that failed is wrong, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prmkit.aggregate import AGGREGATIONS
from prmkit.evaluation.accuracy import Samples, mean_and_se, method_names, problem_accuracy, samples_from_rows
from prmkit.evaluation.summary import check_headline, truth_figures
from prmkit.protocols import VerifiableTask
from prmkit.records import Problem
from prmkit.search.rows import SearchRow

__all__ = ["BASELINE", "comparison_figures", "curves", "independent_rows", "levels_of", "search_truth"]

BASELINE = "best_of_n"
"""The method that others are compared with, at equal budgets and paired by problem."""

FloatArray = npt.NDArray[np.float64]


def comparison_figures(
    rows: Sequence[SearchRow], headline: str, levels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Figures of a comparison, as JSON.

    Keys: `problems`; `searches`, one for every method and budget, in the order of the rows:

    - `method`, `budget` (None for a search without one), `selection`: the headline, majority where nothing is scored;
    - `accuracy`: {selection: {mean, se}} over problems; `oracle` among them; `pass_at_1`: {mean, se} of one trace;
    - `tokens`: {generated, scored}, `calls`: {engine, scorer}, `traces`: means a problem;
    - `failed` problems; shares of traces that are `unfinished`, or finished with `no_answer`;
    - `levels`: {level: {problems, mean, se}} of the selection, where levels are known;
    - `gain`: {mean, se} of that accuracy over the baseline's at the same budget, paired; only where there is one.

    Args:
        rows: of one run; every search holds the same problems in the same order.
        headline: the PRM's selection to bring out, e.g. "product_vote".
        levels: difficulty by problem id; None takes the rows' own.

    Raises:
        ConfigError: unknown headline.
    """
    check_headline(headline)
    searches = _by_search(rows)
    scored = any(trace.scores is not None for row in rows for trace in row.traces)
    samples = {key: _samples(found, scored) for key, found in searches.items()}
    chosen = {key: headline if found.log_scores is not None else "majority" for key, found in samples.items()}
    hits = {key: problem_accuracy(found, chosen[key], found.n) for key, found in samples.items()}
    figures = []
    for (method, budget), found in searches.items():
        key, base = (method, budget), (BASELINE, budget)
        entry = {
            "method": method,
            "budget": budget,
            "selection": chosen[key],
            **_search_figures(found, samples[key]),
            "levels": _by_level(found, hits[key], levels or levels_of(found)),
        }
        if budget is not None and method != BASELINE and base in searches:
            entry["gain"] = mean_and_se(hits[key] - hits[base]).to_json()
        figures.append(entry)
    return {"problems": len(next(iter(searches.values()), ())), "searches": figures}


def curves(figures: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The searches of `comparison_figures` by method, budgets ascending."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for search in figures["searches"]:
        found.setdefault(search["method"], []).append(search)
    return {method: sorted(entries, key=lambda entry: entry["budget"] or 0) for method, entries in found.items()}


def levels_of(rows: Iterable[SearchRow], problems: Iterable[Problem] = ()) -> dict[str, str]:
    """Difficulty by problem id: the problem's own level, or how many lines its known solution has."""
    levels = {row.problem_id: row.level for row in rows if row.level is not None}
    for problem in problems:
        if problem.level is None and problem.solution:
            lines = sum(bool(line.strip()) for line in problem.solution.splitlines())
            levels.setdefault(problem.id, f"{lines} lines")
    return levels


def search_truth(rows: Sequence[SearchRow], problems: Sequence[Problem], task: VerifiableTask) -> dict[str, Any]:
    """The PRM against exact truth (see `truth_figures`), on independent samples where the run has any."""
    return truth_figures(independent_rows(rows), problems, task)


def independent_rows(rows: Sequence[SearchRow]) -> list[SearchRow]:
    """One row a problem with scored traces: those of best-of-N at its greatest budget, or else of all searches.

    A guided search keeps what the PRM likes, so that its traces flatter nobody evenly.
    """
    sampled = [row for row in rows if row.method in ("", BASELINE)]
    merged: dict[str, SearchRow] = {}
    for row in sampled or rows:
        known = merged.get(row.problem_id)
        if known is None or (sampled and (row.budget or 0) > (known.budget or 0)):
            merged[row.problem_id] = row
        elif not sampled:
            merged[row.problem_id] = replace(known, traces=known.traces + row.traces)
    return list(merged.values())


def _by_search(rows: Iterable[SearchRow]) -> dict[tuple[str, int | None], list[SearchRow]]:
    searches: dict[tuple[str, int | None], list[SearchRow]] = {}
    for row in rows:
        searches.setdefault((row.method, row.budget), []).append(row)
    return searches


def _samples(rows: Sequence[SearchRow], scored: bool) -> Samples:
    """As `samples_from_rows`; where nothing may vote, nothing is chosen, with scores as without."""
    samples = samples_from_rows(rows) if any(row.traces for row in rows) else _nothing(len(rows))
    if scored and not (samples.classes >= 0).any():
        never = np.full(samples.classes.shape, -np.inf)
        return replace(samples, log_scores=dict.fromkeys(AGGREGATIONS, never))
    return samples


def _nothing(problems: int) -> Samples:
    return Samples(np.full((problems, 1), -1, dtype=np.int64), np.zeros((problems, 1), dtype=np.bool_), None)


def _search_figures(rows: Sequence[SearchRow], samples: Samples) -> dict[str, Any]:
    """Accuracies and costs of one search."""
    names = method_names(samples.log_scores is not None)
    hits = {name: problem_accuracy(samples, name, samples.n) for name in names}
    traces = [trace for row in rows for trace in row.traces]
    finished = [trace for trace in traces if trace.finish == "stop"]
    single = np.array([np.mean([t.correct for t in row.traces]) if row.traces else 0.0 for row in rows])
    p = len(rows)
    return {
        "accuracy": {name: mean_and_se(values).to_json() for name, values in hits.items()},
        "pass_at_1": mean_and_se(single).to_json(),
        "tokens": {
            "generated": sum(row.usage.generated_tokens for row in rows) / p,
            "scored": sum(row.usage.scored_tokens for row in rows) / p,
        },
        "calls": {
            "engine": sum(row.usage.engine_calls for row in rows) / p,
            "scorer": sum(row.usage.scorer_calls for row in rows) / p,
        },
        "traces": len(traces) / p,
        "failed": sum(row.error is not None for row in rows),
        "unfinished": 1.0 - len(finished) / max(1, len(traces)),
        "no_answer": sum(trace.answer is None for trace in finished) / max(1, len(traces)),
    }


def _by_level(rows: Sequence[SearchRow], hits: FloatArray, levels: Mapping[str, str]) -> dict[str, Any]:
    """Accuracy of the problems of each level, levels in alphabetical order; problems without one are left out."""
    names = [levels.get(row.problem_id) for row in rows]
    found = {}
    for level in sorted({name for name in names if name is not None}, key=_level_order):
        chosen = hits[[name == level for name in names]]
        found[level] = {"problems": len(chosen), **mean_and_se(chosen).to_json()}
    return found


def _level_order(level: str) -> tuple[int, str]:
    """Levels that name a number are ordered by it: "9 lines" before "10 lines"."""
    digits = "".join(character for character in level if character.isdigit())
    return int(digits) if digits else 0, level
