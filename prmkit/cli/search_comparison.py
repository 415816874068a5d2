"""What `prm search` says of methods at equal budgets: what each answered right, and what it spent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from prmkit.cli.search import SearchJob
from prmkit.cli.search_plain import PICTURE, show_search, warn_of_failures
from prmkit.evaluation.comparison import comparison_figures, levels_of, search_truth
from prmkit.evaluation.comparison_plots import comparison_figure, level_figure, save_figure
from prmkit.evaluation.plots import companion
from prmkit.evaluation.summary import tokens_spent
from prmkit.evaluation.tables import comparison_rows, level_rows, rich_table
from prmkit.io import write_json
from prmkit.search.rows import read_rows
from prmkit.types import VerifiableTask

__all__ = ["LEVEL_PICTURE", "report"]

LEVEL_PICTURE = "accuracy_by_level.png"
SUMMARY_SCHEMA = 2


def report(job: SearchJob, seconds: float) -> dict[str, Any]:
    """Write summary and pictures beside the rows, print the tables, and return the summary."""
    config, folder = job.config, Path(job.config.output)
    rows = list(read_rows(job.rows_path))
    result = comparison_figures(rows, config.headline, levels_of(rows, job.problems))
    if config.prm is not None and isinstance(job.task, VerifiableTask):
        result["prm"] = search_truth(rows, job.problems, job.task)
    settings = job.settings()
    summary = {
        "schema": SUMMARY_SCHEMA,
        "methods": settings["methods"],
        "budgets": settings["budgets"],
        "budget_unit": config.budget_unit,
        "tokens_per_sample": config.tokens_per_sample,
        "policy": config.policy,
        "prm": config.prm,
        "discriminator": config.discriminator,
        "problems": asdict(job.source),
        "sampling": asdict(job.values["sampling"]),
        "seed": job.values["seed"],
        "headline": config.headline,
        "figures": result,
        "tokens": tokens_spent(rows),
        "seconds": seconds,
    }
    title = config.title or f"{job.source.task}, {job.source.split}: {result['problems']} problems"
    save_figure(comparison_figure(result, config.budget_unit, title), folder / PICTURE)
    by_level = level_figure(result, title)
    if by_level is not None:
        save_figure(by_level, folder / LEVEL_PICTURE)
    write_json(folder / "summary.json", summary)
    console = Console(width=160) if not Console().is_terminal else Console()
    selections = ("majority", config.headline, companion(config.headline), "oracle")
    console.print(rich_table(*comparison_rows(result, selections, config.budget_unit)))
    header, lines = level_rows(result)
    if len(header) > 2:
        console.print(rich_table(header, lines, title="by difficulty (number of problems)"))
    pictures = [PICTURE, *([LEVEL_PICTURE] if by_level is not None else [])]
    show_search(job, summary, [folder / name for name in ("summary.json", *pictures, "rows.jsonl")])
    warn_of_failures(rows)
    return summary
