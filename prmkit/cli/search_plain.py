"""What `prm search` says of plain best-of-N: accuracy at every N from one set of samples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from prmkit.cli.search import PLAIN, SearchJob
from prmkit.evaluation.plots import companion, plot_accuracy
from prmkit.evaluation.summary import figures, tokens_spent, truth_figures
from prmkit.evaluation.tables import accuracy_rows, rich_table
from prmkit.io import write_json
from prmkit.search.rows import SearchRow, read_rows
from prmkit.types import VerifiableTask

__all__ = ["PICTURE", "describe_prm", "report", "warn_of_failures"]

PICTURE = "accuracy_vs_budget.png"
SUMMARY_SCHEMA = 1


def report(job: SearchJob, seconds: float) -> dict[str, Any]:
    """Write summary and picture beside the rows, print the table, and return the summary."""
    config, params = job.config, job.methods[PLAIN]
    folder = Path(config.output)
    rows = list(read_rows(job.rows_path))
    result = figures(rows, config.headline)
    if config.prm is not None and isinstance(job.task, VerifiableTask):
        result["prm"] = truth_figures(rows, job.problems, job.task)
    summary = {
        "schema": SUMMARY_SCHEMA,
        "method": PLAIN,
        "policy": config.policy,
        "prm": config.prm,
        "problems": asdict(job.source),
        "n": params.n,
        "sampling": asdict(params.sampling),
        "seed": params.seed,
        "headline": config.headline,
        "figures": result,
        "tokens": tokens_spent(rows),
        "seconds": seconds,
    }
    title = config.title or f"{job.source.task}, {job.source.split}: {len(rows)} problems"
    plot_accuracy(result, config.headline, folder / PICTURE, title)
    write_json(folder / "summary.json", summary)
    _print(rows, summary, folder)
    return summary


def _print(rows: Sequence[SearchRow], summary: dict[str, Any], folder: Path) -> None:
    result, headline = summary["figures"], summary["headline"]
    methods = ("oracle", headline, companion(headline), "majority")
    Console().print(rich_table(*accuracy_rows(result, methods)))
    if "gain_at_16" in result:
        gain = result["gain_at_16"]
        error = "" if gain["se"] is None else f" ± {100 * gain['se']:.1f}"
        print(f"{headline} less majority at N = 16, paired by problem: {100 * gain['mean']:+.1f}{error} points")
    describe_prm(result)
    tokens = summary["tokens"]
    print(
        f"{tokens['generated']:,} tokens generated, {tokens['scored']:,} scored, {summary['seconds']:.1f} s; {folder}"
    )
    warn_of_failures(rows)


def describe_prm(result: dict[str, Any]) -> None:
    """A line on the PRM against exact truth, where that is known."""
    if "prm" in result:
        shown = ("auroc", "step_accuracy", "first_error_f1", "ece")
        print(
            "PRM against exact truth: "
            + ", ".join(f"{name} {result['prm'][name]:.3f}" for name in shown if result["prm"][name] is not None)
        )


def warn_of_failures(rows: Sequence[SearchRow]) -> None:
    """A warning on stderr when problems failed, with the first of them."""
    failed = [row for row in rows if row.error is not None]
    if failed:
        first = failed[0]
        where = first.problem_id if first.method in ("", PLAIN) else f"{first.problem_id}, {first.method}"
        print(
            f"warning: {len(failed)} problems failed and count as wrong; {where}: {first.error}",
            file=sys.stderr,
        )
