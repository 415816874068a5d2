"""Accuracy of all methods at equal token budgets on the demo's pairs, and what helps against over-optimisation.

Everything is run through `prm search`, `prm annotate` and `prm fit`, into a folder of its own for every pair, so that a
benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from _prm import run_prm

from prmkit.evaluation.accuracy import mean_and_se, problem_accuracy, samples_from_rows
from prmkit.evaluation.comparison import comparison_figures, levels_of
from prmkit.io import write_json
from prmkit.models import PRMModel
from prmkit.protocols import StepScorer
from prmkit.resources import find_config
from prmkit.scoring import EnsembleScorer, PRMScorer
from prmkit.scoring.ensemble import PESSIMISMS
from prmkit.search.methods import METHODS
from prmkit.search.rows import SearchRow, read_rows

HEADLINE = "product_vote"
SELECTIONS = ("majority", "product_vote", "product_max", "last_vote", "last_max", "min_vote", "min_max", "oracle")
CURVES = yaml.safe_load(find_config("configs/search/methods.yaml").read_text())
GUIDED = ("best_of_n", "beam_search", "dvts", "rebase", "compute_optimal")
FAST = ("--greedy", "false", "--in_flight", "256", "--engine.max_rows", "256", "--chunk", "60")
TASK = ("--task", "accumulator", "--task_options", '{"hard_share": 0.0}')
BEAMS = {
    name: (f"--beam_search.merge_equal={merge}", "--beam_search.max_children=null")
    for name, merge in (("merged", "true"), ("plain", "false"))
}
LABELS = ("--wrong_per_problem=12", "--right_per_problem=0")
_STRIDE = 300  # test problems from one pair to the next


class Pair:
    """The policy and the PRM of a `prm demo` run, and where its searches go.

    Args:
        folder: of the demo.
        number: its place among the pairs; every pair has problems of its own.
        problems: how many it solves.
        work: folder of the benchmark.
    """

    def __init__(self, folder: Path, number: int, problems: int, work: Path) -> None:
        self.policy, self.prm = folder / "sft/policy", folder / "prm/model"
        self.samples = folder / "search/rows.jsonl"
        self.labels = {"path": str(folder / "annotate/annotations.jsonl"), "offset": 150}
        self._number, self._problems = number, problems
        self._work = work / f"pair{number}"

    def curves(self, name: str, prm: Path, methods: Sequence[str], *settings: str) -> list[SearchRow]:
        """Rows of methods at equal token budgets under a PRM; a run each, so that one that changed can be run again."""
        rows: list[SearchRow] = []
        for method in methods:
            config = self._work / name / f"{method}.json"  # a run knows no settings of methods that it does not hold
            shared = {key: value for key, value in CURVES.items() if key == method or key not in METHODS}
            write_json(config, {**shared, "method": method})
            rows += self._search(f"{name}/{method}", "--config", str(config), "--prm", str(prm), *settings)
        return rows

    def misled(self, prm: Path, problems: int, number: int) -> dict[str, Any]:
        """Labels by the policy's rollouts of the wrong solutions that a PRM scores highest in wide beams, on training
        problems new in every round. Plain beams that merge equal steps find most of them."""
        work = self._work / f"round{number}"
        where = ("--split", "train", "--offset", str(20000 + problems * number), "--limit", str(problems))
        found = ("--policy", str(self.policy), "--prm", str(prm), *self._seed(), *TASK, *where)
        beams = ("--beam_search.aggregation=product", "--beam_search.step_tokens=16")
        sizes = ("--method=beam_search", "--budgets=64", "--sampling.max_tokens=64", *beams, *BEAMS["merged"])
        run_prm("search", *found, *sizes, *FAST, "--output", str(work / "search"))
        source = ("--candidates", str(work / "search/rows.jsonl"), "--policy", str(self.policy), *self._seed())
        run_prm(
            "annotate",
            "--config",
            "configs/annotate/traces.yaml",
            *source,
            *LABELS,
            "--output",
            str(work / "hard.jsonl"),
        )
        return {"path": str(work / "hard.jsonl")}

    def _search(self, name: str, *arguments: str) -> list[SearchRow]:
        output = self._work / name
        which = ("--task", "accumulator", "--offset", str(_STRIDE * self._number), "--limit", str(self._problems))
        run_prm("search", *arguments, "--policy", str(self.policy), "--output", str(output), *which, *self._seed())
        return list(read_rows(output / "rows.jsonl"))

    def _seed(self) -> tuple[str, str]:
        return "--seed", str(self._number)


def pooled(pairs: Sequence[Pair], work: Path, rounds: int) -> Path:
    """The first pair's PRM, trained on with the first labels of all pairs, for as many epochs as `cured` in all."""
    return _trained(pairs[0].prm, [pair.labels for pair in pairs], work / "pooled", sum(range(rounds + 1)))


def cured(pairs: Sequence[Pair], work: Path, problems: int, rounds: int) -> Path:
    """A PRM of all pairs' labels, trained on in rounds against what misled searches: every round searches new problems
    under the last PRM (in the first one, under each pair's own), and goes on from it with the labels of all rounds."""
    labels = [pair.labels for pair in pairs]
    model = pairs[0].prm
    for number in range(1, rounds + 1):
        labels += [pair.misled(pair.prm if number == 1 else model, problems, number) for pair in pairs]
        model = _trained(model, labels, work / f"cured{number}", epochs=number)
    return model


def _trained(model: Path, labels: Sequence[Mapping[str, Any]], output: Path, epochs: int) -> Path:
    if not (output / "model").is_dir():
        fit = ("--config", "configs/prm/accumulator.yaml", "--trainer.default_root_dir", str(output))
        short = ("--trainer.max_epochs", str(epochs), "--data.init_args.batch.max_tokens", "960")
        data = ("--model.init_args.source.path", str(model), "--data.init_args.train", json.dumps(list(labels)))
        run_prm("fit", *fit, *short, *data, "--ckpt_path", "last")
    return output / "model"


def over_optimisation(pairs: Sequence[Pair], more: Path, cure: Path) -> dict[str, Any]:
    """{guide: {method: {budget: figures}, gains}}: under a pair's own PRM (`own`), one of `pooled` labels and a `cured`
    one; beam search also with the settings of BEAMS (`<guide>_<setting>`). For `gains` see there."""
    beam, large = ("beam_search",), ("--budgets", "128,512,2048")
    searches: dict[str, list[SearchRow]] = {}
    for pair in pairs:
        found = {
            "own": pair.curves("curves", pair.prm, GUIDED),
            "pooled": pair.curves("pooled", more, ("best_of_n", *beam), *large),
            "cured": pair.curves("cured", cure, GUIDED, *large),
        }
        for name, settings in BEAMS.items():
            found[f"own_{name}"] = pair.curves(f"own_{name}", pair.prm, beam, *settings)
            found[f"cured_{name}"] = pair.curves(f"cured_{name}", cure, beam, *settings, *large)
        for name, rows in found.items():
            searches.setdefault(name, []).extend(rows)
    return {name: {**by_method(rows), "gains": gains(rows)} for name, rows in searches.items()}


def gains(rows: Sequence[SearchRow]) -> dict[str, Any]:
    """{method: {mean, se}}: the headline's accuracy at the greatest budget less that at a quarter of it, by problem."""
    found = {}
    most = max(row.budget or 0 for row in rows)
    for method in dict.fromkeys(row.method for row in rows):
        less, more = (
            samples_from_rows([row for row in rows if (row.method, row.budget) == (method, budget)])
            for budget in (most // 4, most)
        )
        hits = [problem_accuracy(samples, HEADLINE, samples.n) for samples in (less, more)]
        found[method] = mean_and_se(hits[1] - hits[0]).to_json()
    return found


def rescored(pairs: Sequence[Pair], problems: int) -> dict[str, Any]:
    """{guide: {selection: {samples: {mean, se}}}}: the samples of the demos' own best-of-N, scored by a pair's own PRM
    and by those of all pairs together; problems of all pairs as one set. Costs no sample."""
    scorers = [PRMScorer(PRMModel.from_pretrained(pair.prm).eval()) for pair in pairs]
    rows: dict[str, list[SearchRow]] = {}
    for pair, own in zip(pairs, scorers, strict=True):
        guides: dict[str, StepScorer] = {"own": own}
        guides |= {how: EnsembleScorer([own, *(s for s in scorers if s is not own)], how) for how in PESSIMISMS}
        sampled = list(read_rows(pair.samples))[:problems]
        for name, guide in guides.items():
            rows.setdefault(name, []).extend(asyncio.run(_scored(sampled, guide)))
    found = {}
    for name, each in rows.items():
        samples = samples_from_rows(each)
        sizes = [n for n in (1, 4, 8, 16, 32) if n <= samples.n]
        found[name] = {
            selection: {str(n): mean_and_se(problem_accuracy(samples, selection, n)).to_json() for n in sizes}
            for selection in SELECTIONS
        }
    return found


async def _scored(rows: Sequence[SearchRow], scorer: StepScorer) -> list[SearchRow]:
    """Rows with the scores of another scorer on their finished traces."""

    async def one(row: SearchRow) -> SearchRow:
        texts = list(dict.fromkeys(trace.steps for trace in row.traces if trace.finish == "stop" and trace.steps))
        replies = await asyncio.gather(*(scorer.score(row.question, steps) for steps in texts))
        scores = {steps: reply.values for steps, reply in zip(texts, replies, strict=True)}
        traces = [replace(t, scores=scores.get(t.steps) if t.finish == "stop" else None) for t in row.traces]
        return replace(row, traces=tuple(traces))

    return await asyncio.gather(*map(one, rows))


def by_method(rows: Sequence[SearchRow]) -> dict[str, Any]:
    """{method: {budget: what a reader of curves needs}}, problems of all pairs together."""
    found: dict[str, Any] = {}
    for search in comparison_figures(rows, HEADLINE, levels_of(rows))["searches"]:
        found.setdefault(search["method"], {})[str(search["budget"])] = {
            **{name: search["accuracy"][name] for name in SELECTIONS if name in search["accuracy"]},
            "generated_tokens": search["tokens"]["generated"],
            "scored_tokens": search["tokens"]["scored"],
            "unfinished": search["unfinished"],
            "failed": search["failed"],
        }
    return found
