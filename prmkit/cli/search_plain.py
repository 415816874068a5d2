"""What `prm search` says of plain best-of-N: accuracy at every N from one set of samples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from prmkit.cli.ending import following_search, show_ending
from prmkit.cli.prm_option import prm_list
from prmkit.cli.search import PLAIN, SearchJob
from prmkit.evaluation.plots import companion, plot_accuracy
from prmkit.evaluation.summary import figures, tokens_spent, truth_figures
from prmkit.evaluation.tables import accuracy_rows, rich_table
from prmkit.io import write_json
from prmkit.legibility import Signs, warn_of
from prmkit.progress import format_seconds
from prmkit.search.rows import SearchRow, read_rows
from prmkit.types import VerifiableTask

__all__ = ["PICTURE", "report", "show_search", "warn_of_failures"]

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
    _print(summary)
    show_search(job, summary, [folder / name for name in ("summary.json", PICTURE, "rows.jsonl")])
    warn_of_failures(rows)
    return summary


def _print(summary: dict[str, Any]) -> None:
    result, headline = summary["figures"], summary["headline"]
    methods = ("oracle", headline, companion(headline), "majority")
    Console().print(rich_table(*accuracy_rows(result, methods)))


def show_search(job: SearchJob, summary: dict[str, Any], made: Sequence[Path]) -> None:
    """Print the ending of a search: the gain on majority and the PRM against exact truth where they are known, what
    was spent, and the command to type next."""
    result, tokens, config = summary["figures"], summary["tokens"], job.config
    results = []
    if "gain_at_16" in result:
        gain = result["gain_at_16"]
        error = "" if gain["se"] is None else f" ± {100 * gain['se']:.1f}"
        points = f"{100 * gain['mean']:+.1f}{error} points"
        results.append(f"{summary['headline']} less majority at N = 16, paired by problem: {points}")
    if "prm" in result:
        shown = ("auroc", "step_accuracy", "first_error_f1", "ece")
        known = [f"{name} {result['prm'][name]:.3f}" for name in shown if result["prm"][name] is not None]
        results.append(f"PRM against exact truth: {', '.join(known)}")
    spent = f"{tokens['generated']:,} tokens generated, {tokens['scored']:,} scored"
    results.append(f"{spent}, {format_seconds(summary['seconds'])}")
    prms = prm_list(config.prm)
    following = following_search(config.policy, prms, config.output, job.source, comparison=not job.plain)
    show_ending(made, results, [following])


def warn_of_failures(rows: Sequence[SearchRow]) -> None:
    """Warnings on stderr: when problems failed, with the first of them, and when no sample can be used."""
    traces = [trace for row in rows for trace in row.traces]
    cut_off = sum(trace.finish != "stop" for trace in traces)
    answered = sum(trace.answer is not None for trace in traces)
    warn_of("policy", Signs(samples=len(traces), cut_off=cut_off, answered=answered))
    failed = [row for row in rows if row.error is not None]
    if failed:
        first = failed[0]
        where = first.problem_id if first.method in ("", PLAIN) else f"{first.problem_id}, {first.method}"
        print(
            f"warning: {len(failed)} problems failed and count as wrong; {where}: {first.error}",
            file=sys.stderr,
        )
