"""What each curation option does to step labels, on the built-in task, against exact truth.

    python benchmarks/curation.py runs/demo runs/demo-1

Labels are those of the first demo. The judge is the PRM of the second one: it has seen neither these labels nor this
policy. An engine prompted as judge needs a model that follows instructions and is not measured here.

Written to results/curation.json: for every option the solutions kept, the share of first errors of wrong solutions that
are where they truly are, the share of right solutions that hold a wrong step, and the most frequent position of first
errors over the median one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _environment import write_result

from prmkit.annotation import StepLabels, load_records
from prmkit.annotation.curate import CurationParams, curate
from prmkit.annotation.judge import ScorerJudge, load_verdicts, run_judge
from prmkit.annotation.report import describe_labels
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.models import PRMModel
from prmkit.scoring import PRMScorer
from prmkit.tasks import get_task

THRESHOLD = 0.125  # of the demo's labels


def judged(records: Sequence[StepLabels], prm: Path, folder: str) -> str:
    """The file of a PRM's verdicts."""
    path = f"{folder}/verdicts"
    with ChunkedOutput(path, {}) as output:
        run_judge(records, ScorerJudge(PRMScorer(PRMModel.from_pretrained(prm)), "prm"), output)
    return path


def describe(records: Sequence[StepLabels], problems: Any) -> dict[str, Any]:
    report = describe_labels(records, THRESHOLD, (get_task("accumulator"), problems))
    positions = Counter({k: n for k, n in report["first_error"].items() if k.isdigit()})
    return {
        "solutions": report["solutions"],
        "first_errors_true": report["truth"]["first_error_accuracy_wrong_solutions"],
        "right_solutions_with_a_wrong_step": report["truth"]["false_positive_rate"],
        "largest_position_over_median": max(positions.values()) / statistics.median(positions.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished demo, whose labels are curated")
    parser.add_argument("other", type=Path, help="another one, whose PRM judges them")
    arguments = parser.parse_args()
    records = list(load_records(arguments.run / "annotate/annotations.jsonl"))
    problems = {p.id: p for p in get_task("accumulator").problems("train", 1500, 12000)}
    figures = {"as they are": describe(records, problems)}
    with tempfile.TemporaryDirectory() as folder:
        verdicts = judged(records, arguments.other / "prm/model", folder)
        known = load_verdicts(verdicts)
        for name, params in {
            "deduplicate": CurationParams(deduplicate=True, threshold=THRESHOLD),
            "verdicts of a PRM": CurationParams(verdicts=verdicts, threshold=THRESHOLD),
            "position_ratio 1": CurationParams(position_ratio=1.0, threshold=THRESHOLD),
            "value_ratio 1": CurationParams(value_ratio=1.0, threshold=THRESHOLD),
        }.items():
            kept = list(curate(records, params, known).over(records))
            figures[name] = describe(kept, problems)
            print(name, figures[name], flush=True)
    print(write_result("curation", figures, ("torch", "transformers")))


if __name__ == "__main__":
    main()
