"""From the rows of a search to the figures of `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prmkit.errors import ConfigError, DataError
from prmkit.evaluation.accuracy import (
    Samples,
    accuracy_table,
    mean_and_se,
    method_names,
    paired_gain,
    problem_accuracy,
    samples_from_rows,
)
from prmkit.evaluation.prm_metrics import prm_figures
from prmkit.protocols import VerifiableTask
from prmkit.records import Problem
from prmkit.search.rows import SearchRow

__all__ = ["GAIN_AT", "check_headline", "figures", "tokens_spent", "truth_figures"]

GAIN_AT = 16
"""Samples at which the gain of the PRM's vote over majority is reported."""


def check_headline(headline: str) -> str:
    """The name itself; ConfigError unless it is a PRM's method, e.g. `product_vote`."""
    accepted = method_names(scored=True)[2:]
    if headline not in accepted:
        raise ConfigError("headline", headline, " | ".join(accepted))
    return headline


def figures(rows: Sequence[SearchRow], headline: str) -> dict[str, Any]:
    """Accuracies of a run, as JSON.

    Failed problems count as wrong. Keys: `problems`, `failed`, `cut_off` (share of samples that did not finish),
    `pass_at_1`, `greedy` and `greedy_se` (only when it was asked for), `accuracy` {method: {n: {mean, se}}}, and for
    scored traces with at least 16 samples `gain_at_16`: {mean, se} of the headline method less majority, paired by
    problem.

    Raises:
        DataError: see `samples_from_rows`.
        ConfigError: unknown headline.
    """
    check_headline(headline)
    samples = samples_from_rows(rows)
    traces = [trace for row in rows for trace in row.traces]
    result: dict[str, Any] = {
        "problems": len(rows),
        "failed": sum(row.error is not None for row in rows),
        "cut_off": sum(trace.finish != "stop" for trace in traces) / len(traces),
        "pass_at_1": mean_and_se(problem_accuracy(samples, "majority", 1)).mean,
    }
    if any(row.greedy is not None for row in rows):
        hits = np.array([row.greedy is not None and row.greedy.correct for row in rows], dtype=np.float64)
        greedy = mean_and_se(hits)
        result |= {"greedy": greedy.mean, "greedy_se": greedy.se}
    table = accuracy_table(samples)
    result["accuracy"] = {m: {str(n): e.to_json() for n, e in by_n.items()} for m, by_n in table.items()}
    return result | _gain(samples, headline)


def _gain(samples: Samples, headline: str) -> dict[str, Any]:
    if samples.log_scores is None or samples.n < GAIN_AT:
        return {}
    return {f"gain_at_{GAIN_AT}": paired_gain(samples, headline, "majority", GAIN_AT).to_json()}


def truth_figures(rows: Sequence[SearchRow], problems: Sequence[Problem], task: VerifiableTask) -> dict[str, Any]:
    """The PRM against exact truth, on the distinct scored traces of every problem. See `prm_figures`.

    Args:
        rows: of a search with a PRM.
        problems: the problems they came from; DataError when one is missing.
        task: checks steps.
    """
    by_id = {problem.id: problem for problem in problems}
    scores: list[tuple[float, ...]] = []
    truth: list[tuple[bool, ...]] = []
    for row in rows:
        problem = by_id.get(row.problem_id)
        if problem is None:
            raise DataError(f"row of problem {row.problem_id!r}: no such problem in this run")
        distinct = {trace.steps: trace.scores for trace in row.traces if trace.scores is not None}
        scores += distinct.values()
        truth += (task.check(problem, steps) for steps in distinct)
    return prm_figures(scores, truth)


def tokens_spent(rows: Sequence[SearchRow]) -> dict[str, int]:
    """Tokens of a run: `generated` and `scored` by the search, `greedy` for the greedy traces."""
    return {
        "generated": sum(row.usage.generated_tokens for row in rows),
        "scored": sum(row.usage.scored_tokens for row in rows),
        "greedy": sum(row.greedy.tokens for row in rows if row.greedy is not None),
    }
