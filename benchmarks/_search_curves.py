"""Accuracy of all methods at equal token budgets on the demo's pairs, and what helps against over-optimisation.

Everything is run through `prm search`, `prm annotate` and `prm fit`, into a folder of its own for every pair, so that a
benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prmkit.cli import main as prm
from prmkit.evaluation.accuracy import mean_and_se, problem_accuracy, samples_from_rows
from prmkit.evaluation.comparison import comparison_figures, levels_of
from prmkit.models import PRMModel
from prmkit.scoring import EnsembleScorer, PRMScorer
from prmkit.scoring.ensemble import PESSIMISMS
from prmkit.search.rows import SearchRow, read_rows
from prmkit.types import StepScorer

HEADLINE = "product_vote"
SELECTIONS = ("majority", "product_vote", "product_max", "last_vote", "last_max", "min_vote", "min_max", "oracle")
STEPWISE = ("beam_search", "dvts", "rebase")
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
        self._labels = folder / "annotate/annotations.jsonl"
        self._number, self._problems = number, problems
        self._work = work / f"pair{number}"
        self._retrained = self._work / "prm/model"

    def curves(self) -> list[SearchRow]:
        """Rows of all methods at equal token budgets."""
        return self._search("curves", "--config", "configs/search/methods.yaml", "--prm", str(self.prm))

    def guided(self, name: str, prms: Sequence[Path], methods: Sequence[str], *settings: str) -> list[SearchRow]:
        """Rows of some methods with 4, 16 and 64 samples, under one PRM or the lowest score of several."""
        shape = [
            f"--{m}.{part}" for m in methods if m in STEPWISE for part in ("aggregation=product", "step_tokens=16")
        ]
        models = [part for path in prms for part in ("--prm", str(path))]
        sizes = ("--method", ",".join(methods), "--budgets", "4,16,64", "--sampling.max_tokens", "64")
        fast = ("--greedy", "false", "--in_flight", "256", "--engine.max_rows", "256", "--chunk", "60")
        return self._search(name, *models, *sizes, *fast, *shape, *settings)

    def retrained(self, problems: int) -> Path:
        """A PRM that also learned from what misled searches under the first one, on problems of the training split."""
        traces, hard = self._work / "traces", self._work / "hard.jsonl"
        seed = ("--seed", str(self._number))
        found = ("--task", "accumulator", "--split", "train", "--offset", "20000", "--limit", str(problems))
        sizes = (
            "--method",
            "best_of_n,beam_search",
            "--budgets",
            "32",
            "--sampling.max_tokens",
            "64",
            "--greedy",
            "false",
        )
        shape = ("--beam_search.width=4", "--beam_search.aggregation=product", "--beam_search.step_tokens=16")
        fast = ("--in_flight", "128", "--chunk", "32", "--engine.max_rows", "256")
        pair = ("--policy", str(self.policy), "--prm", str(self.prm))
        _run("search", *pair, "--output", str(traces), *found, *sizes, *shape, *fast, *seed)
        labels = ("--wrong_per_problem", "6", "--right_per_problem", "1", "--threshold", "0.125")
        source = ("--method", "traces", "--candidates", str(traces / "rows.jsonl"), "--policy", str(self.policy))
        sampling = ("--sampling.max_tokens", "64", "--engine.max_rows", "256", "--in_flight", "200")
        _run("annotate", *source, "--output", str(hard), *labels, *sampling, *seed)
        if not self._retrained.is_dir():
            sources = f'[{{"path": "{self._labels}", "offset": 150}}, {{"path": "{hard}"}}]'
            fit = ("--trainer.default_root_dir", str(self._work / "prm"), "--seed_everything", str(self._number))
            short = ("--trainer.max_epochs", "2", "--data.init_args.batch.max_tokens", "960")
            data = ("--model.init_args.source.path", str(self.prm), "--data.init_args.train", sources)
            _run("fit", "--config", "configs/prm/accumulator.yaml", *fit, *short, *data, "--ckpt_path", "last")
        return self._retrained

    def _search(self, name: str, *arguments: str) -> list[SearchRow]:
        output = self._work / name
        which = ("--task", "accumulator", "--offset", str(_STRIDE * self._number), "--limit", str(self._problems))
        _run("search", *arguments, "--policy", str(self.policy), "--output", str(output), *which, *self._seed())
        return list(read_rows(output / "rows.jsonl"))

    def _seed(self) -> tuple[str, str]:
        return "--seed", str(self._number)


def over_optimisation(pairs: Sequence[Pair], train_problems: int) -> dict[str, Any]:
    """{guide: {method: {samples: figures}}}: under a pair's own PRM; under the lowest score of all pairs' PRMs; under a
    PRM retrained on the search's own traces; and under the lowest score of that and the other pairs' PRMs.
    `beam_search_places` is beam search with merge_equal = false."""
    searches: dict[str, list[SearchRow]] = {}
    places: dict[str, list[SearchRow]] = {}
    for pair in pairs:
        others = [other.prm for other in pairs if other is not pair]
        retrained = pair.retrained(train_problems)
        guides = {
            "own": [pair.prm],
            "min_of_all": [pair.prm, *others],
            "retrained": [retrained],
            "min_with_retrained": [retrained, *others],
        }
        for name, guide in guides.items():
            found = pair.guided(name, guide, ("best_of_n", *STEPWISE))
            searches.setdefault(name, []).extend(found)
            apart = pair.guided(f"{name}-places", guide, ("beam_search",), "--beam_search.merge_equal=false")
            places.setdefault(name, []).extend(apart)
    return {
        name: {**by_method(found), "beam_search_places": by_method(places[name])["beam_search"]}
        for name, found in searches.items()
    }


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


def _run(*arguments: str) -> None:
    """A command of prmkit; an error ends the benchmark."""
    status = prm(list(arguments))
    if status:
        raise SystemExit(status)
