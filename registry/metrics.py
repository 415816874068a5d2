"""How good a pair is: figures on a named held-out set, with confidence intervals and the results they rest on.

`read_metrics` takes a file of this form, or the output folder of `prm search`. Nothing here trains or searches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.errors import DataError
from prmkit.io import read_json
from registry.errors import NewerSchemaError
from registry.records import decode

if TYPE_CHECKING:
    from prmkit.search.rows import SearchRow

__all__ = ["METRICS_SCHEMA", "Figure", "Metrics", "read_metrics"]

METRICS_SCHEMA = 1
ACCURACY, AUROC, CALIBRATION = "accuracy", "prm_auroc", "prm_ece"
_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value.

    Attributes:
        value: the figure.
        low, high: its 95 % confidence interval; None when unknown.
        n: what it was measured on, e.g. problems; None when unknown.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """All figures of a pair.

    Attributes:
        dataset: name of the held-out set, e.g. "accumulator/test[0:300]".
        figures: by name. The gate reads `accuracy` (in [0, 1], higher is better), `prm_auroc` (higher) and `prm_ece`
            (expected calibration error, lower), the latter two on traces of this pair's own policy.
        protocol: how it was measured; the gate compares only what was measured alike (`seed` may differ).
        results: a number a problem, by problem id, of which `accuracy` is the mean; empty when unknown.
    """

    dataset: str
    figures: Mapping[str, Figure]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.dataset:
            raise DataError("metrics.dataset: empty; name the held-out set")
        for name, figure in self.figures.items():
            for value in (figure.value, figure.low, figure.high):
                if value is not None and not math.isfinite(value):
                    raise DataError(f"metrics.figures.{name}: got {value}; accepted: finite numbers")
        for problem, value in self.results.items():
            if not math.isfinite(value):
                raise DataError(f"metrics.results.{problem}: got {value}; accepted: finite numbers")


def read_metrics(path: str | Path) -> Metrics:
    """Metrics from a JSON file `{"schema": 1, "dataset", "figures", "protocol", "results"}`, or from the output folder
    (or summary.json) of `prm search`.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "summary.json"
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}, not an object")
    if "headline" in value and "problems" in value:
        return _from_search(path, value)
    schema = value.pop("schema", None)
    if isinstance(schema, int) and schema > METRICS_SCHEMA:
        raise NewerSchemaError(f"{path}: metrics of schema {schema}; this version of prmkit reads {METRICS_SCHEMA}")
    if schema != METRICS_SCHEMA:
        raise DataError(f"{path}: schema: got {schema!r}; accepted: {METRICS_SCHEMA}")
    return decode(Metrics, value, str(path))


def _from_search(path: Path, summary: dict[str, Any]) -> Metrics:
    """Metrics from a search: accuracy of its headline method (majority without a PRM) at the most samples."""
    from prmkit.evaluation.accuracy import problem_accuracy, samples_from_rows
    from prmkit.search.rows import read_rows

    if "method" not in summary:
        raise DataError(
            f"{path}: compares several searches; metrics come from one. Run `prm search` with one method, without "
            "--budgets."
        )
    rows = list(read_rows(path.with_name("rows.jsonl")))
    samples = samples_from_rows(rows)
    method = summary["headline"] if samples.log_scores is not None else "majority"
    n = 2 ** (samples.n.bit_length() - 1)
    values = problem_accuracy(samples, method, n)
    figures = {ACCURACY: _with_interval(values)}
    if method != "majority":
        figures["majority"] = _with_interval(problem_accuracy(samples, "majority", n))
    figures["pass_at_1"] = _with_interval(problem_accuracy(samples, "majority", 1))
    prm, truth = _prm_figures(summary, rows)
    source = summary["problems"]
    end = source["offset"] + len(rows)
    return Metrics(
        dataset=f"{source['task']}/{source['split']}[{source['offset']}:{end}]",
        figures={**figures, **prm},
        protocol={
            "search": summary["method"],
            "selection": method,
            "samples": n,
            "sampling": summary["sampling"],
            "seed": summary["seed"],
            "problems": {key: source[key] for key in ("task", "split", "offset", "limit", "task_options")},
            "prm_truth": truth,
        },
        results={row.problem_id: float(value) for row, value in zip(rows, values, strict=True)},
    )


def _prm_figures(summary: dict[str, Any], rows: list[SearchRow]) -> tuple[dict[str, Figure], str | None]:
    """AUROC and calibration error of the PRM on the search's own traces, and what it was compared with.

    Steps are compared with exact truth where the search could check them, else the product of a finished trace's step
    scores with whether its answer is right.
    """
    import numpy as np

    from prmkit.evaluation.prm_metrics import auroc, calibration_error

    checked = summary["figures"].get("prm")
    if checked is not None:
        found = {AUROC: checked["auroc"], CALIBRATION: checked["ece"]}
        count, truth = checked["steps"], "steps"
    else:
        traces = [t for row in rows for t in row.traces if t.scores is not None and t.finish == "stop"]
        if not traces:
            return {}, None
        scores = np.array([math.prod(t.scores or ()) for t in traces])
        right = np.array([t.correct for t in traces], dtype=np.bool_)
        found = {AUROC: auroc(scores, right), CALIBRATION: calibration_error(scores, right)}
        count, truth = len(traces), "answers"
    return {name: Figure(value, n=count) for name, value in found.items() if value is not None}, truth


def _with_interval(values: Any) -> Figure:
    """Mean over problems and its percentile bootstrap interval, seeded."""
    import numpy as np

    from registry.bootstrap import resampled_means

    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled_means(values, _RESAMPLES, 0), [tail, 1 - tail])
    return Figure(float(values.mean()), float(low), float(high), len(values))
