"""The report at the end of `prm annotate`, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from prmkit.annotation.counts import AnnotationCounts
from prmkit.records import Usage

__all__ = ["label_tables"]

_WIDTH = 40  # characters of the longest bar


def label_tables(report: Mapping[str, Any], counts: AnnotationCounts, usage: Usage) -> list[Table]:
    """Labels by value, first errors by position, cost, and agreement with the truth where it is known."""
    bins = report["values"]
    by_value = {f"{low / len(bins):.1f} to {(low + 1) / len(bins):.1f}": n for low, n in enumerate(bins)}
    tables = [
        _bars("value of a step", by_value),
        _bars("first wrong step", report["first_error"]),
        _pairs("cost", _cost(counts, usage)),
    ]
    if "truth" in report:
        shares = {name.replace("_", " "): share for name, share in report["truth"].items() if share is not None}
        shares |= {
            f"step accuracy at position {at}": share for at, share in report["step_accuracy_by_position"].items()
        }
        tables.append(_pairs("against exact truth", {name: f"{share:.3f}" for name, share in shares.items()}))
    return tables


def _cost(counts: AnnotationCounts, usage: Usage) -> dict[str, str]:
    per = max(counts.labels, 1)
    sampled = max(counts.rollouts + counts.inherited, 1)
    rows = {
        "samples a labelled prefix": f"{usage.samples / per:.1f}",
        "tokens a labelled prefix": f"{usage.generated_tokens / per:.0f}",
        "rollouts taken over": f"{counts.inherited / sampled:.1%}",
    }
    if counts.searches:
        rows["searches"] = f"{counts.searches:,}"
        rows["left out, their outcome known"] = f"{counts.repeats:,}"
    return rows


def _bars(name: str, counts: Mapping[str, int]) -> Table:
    table = Table(name, "count", "", title_justify="left")
    most = max(counts.values(), default=0) or 1
    for label, count in counts.items():
        table.add_row(label, f"{count:,}", "█" * round(_WIDTH * count / most))
    return table


def _pairs(name: str, rows: Mapping[str, str]) -> Table:
    table = Table(name, "")
    table.columns[1].justify = "right"
    for label, value in rows.items():
        table.add_row(label, value)
    return table
