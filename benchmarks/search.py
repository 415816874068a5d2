"""Searches of many problems at once, what they encode, and methods at equal token budgets.

    python benchmarks/search.py [--policy runs/demo/sft/policy] [--prm runs/demo/prm/model] [--quick]

Written to results/search.json:

- scored_tokens_per_distinct_token: tokens that the demo's PRM encoded over the distinct tokens of all its inputs, in
  beam searches of width 4; from_the_start_per_distinct_token: the same if every candidate were scored from its question
  on, as OpenR does.
- concurrency_speedup: problems a second of beam search of width 4 over 8 steps on 500 problems, all in one event loop,
  over those one after the other, which are timed on a part of the problems.
  - `stand_in`: a scripted policy behind a server of fixed latency (LATENCY seconds a batch, of any size), which is what
    a GPU looks like to a search, and a table of scores;
  - `demo_pair`: the models of `prm demo`, on the CPU, where a batch costs more the larger it is.
- engine_calls_by_problems: batches that the stand-in ran, by number of problems: they grow with depth only.
- curves: accuracy by method at equal token budgets, on the built-in task with the demo's pair, problems of all seeds
  together; standard errors over problems.
- vote_at: by method, accuracy of every selection at every number of samples, for what over-optimises and what does not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _environment import write_result

from prmkit.engines import HFEngine
from prmkit.engines.driver import Driver, Job
from prmkit.errors import DataError
from prmkit.evaluation.budgets import BudgetPlan, BudgetUnit, make_searchers, plan_searches, share_sampling
from prmkit.evaluation.comparison import comparison_figures, levels_of
from prmkit.evaluation.comparison_plots import comparison_figure, save_figure
from prmkit.models import PRMModel, load_policy
from prmkit.scoring import PRMScorer
from prmkit.scoring.table import TableScorer
from prmkit.search.budget import Budget
from prmkit.search.methods import make_method, make_params
from prmkit.search.result import SearchMethod
from prmkit.search.rows import SearchRow
from prmkit.search.runner import RunParams, search_all
from prmkit.steps import EncodedSteps, get_step_format
from prmkit.tasks import get_task
from prmkit.tasks.vocabulary import character_tokenizer
from prmkit.types import Completion, Engine, GenerationRequest, Problem, SamplingParams, StepScorer, StepScores

LATENCY = 0.1  # a step of 20 tokens at 5 ms each, whatever the size of the batch
STEPS = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"
METHODS: dict[str, dict[str, Any]] = {
    "best_of_n": {},
    "beam_search": {"width": 4, "aggregation": "product", "step_tokens": 16},
    "dvts": {"width": 4, "aggregation": "product", "step_tokens": 16},
    "rebase": {"aggregation": "product", "step_tokens": 16},
    "mcts": {"width": 4, "aggregation": "product", "step_tokens": 16},
    "rstar": {"step_tokens": 16},
    "compute_optimal": {"aggregation": "product"},
}


class Server:
    """A scripted policy and a table of scores that answer whatever waits, once every LATENCY seconds."""

    def __init__(self) -> None:
        tokenizer = character_tokenizer(f"{LETTERS}+-0123456789\n")
        self.format, self.weight_version = get_step_format("plain").bind(tokenizer), 0
        self._driver: Driver[GenerationRequest, list[Completion]] = Driver(self)
        self.batches = 0

    async def generate(self, request: GenerationRequest) -> list[Completion]:
        return await self._driver.submit(request)

    def reset(self) -> None: ...

    def is_full(self, _jobs: list[Job[GenerationRequest, list[Completion]]]) -> bool:
        return False

    def advance(self, jobs: list[Job[GenerationRequest, list[Completion]]]) -> bool:
        time.sleep(LATENCY)
        self.batches += 1
        for job in jobs:
            job.future.set_result(self._answers(job.payload))
        return False

    def _answers(self, request: GenerationRequest) -> list[Completion]:
        """A random letter a step, and the end of sequence behind the last one."""
        written = self.format.decode(request.prompt_ids).count("\n") - 1
        if written >= STEPS:
            return [Completion((self.format.eos_id,), (0.0,), "", "stop")] * request.n
        rng = random.Random(request.seed)
        lines = [rng.choice(LETTERS) + "\n" for _ in range(request.n)]
        return [Completion(tuple(self.format.encode_piece(line)), (0.0, 0.0), line, "stop", "\n") for line in lines]


def beam() -> SearchMethod:
    sampling = {"max_tokens": 64}
    return make_method("beam_search", make_params("beam_search", {"n": 16, "width": 4, "sampling": sampling}))


def timed(problems: Sequence[Problem], engine: Engine, scorer: StepScorer, at_once: bool) -> float:
    """Seconds of beam searches of width 4, together or one after the other."""
    search = beam()

    async def run() -> None:
        if at_once:
            await asyncio.gather(*(search(problem, engine, scorer, budget=Budget()) for problem in problems))
            return
        for problem in problems:
            await search(problem, engine, scorer, budget=Budget())

    start = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - start


def speedup(make: Callable[[], tuple[Engine, StepScorer]], problems: Sequence[Problem], alone: int) -> dict[str, float]:
    """Problems a second at once and one by one (timed on the first `alone` of them)."""
    together = len(problems) / timed(problems, *make(), at_once=True)
    single = alone / timed(problems[:alone], *make(), at_once=False)
    return {"at_once_per_second": together, "one_by_one_per_second": single, "speedup": together / single}


def stand_in(count: int, alone: int) -> dict[str, Any]:
    problems = [Problem(f"p{i}", f"q{i}", "1") for i in range(count)]

    def make() -> tuple[Engine, StepScorer]:
        return Server(), TableScorer({letter: (place + 1) / 27 for place, letter in enumerate(LETTERS)})

    calls = {}
    for n in (1, 10, count):
        server, scorer = make()
        timed(problems[:n], server, scorer, at_once=True)
        calls[str(n)] = server.batches  # type: ignore[attr-defined]
    return {**speedup(make, problems, alone), "engine_calls_by_problems": calls, "latency_seconds": LATENCY}


class Watched:
    """A scorer, and the inputs that it was given."""

    def __init__(self, scorer: PRMScorer) -> None:
        self._scorer = scorer
        self.inputs: list[EncodedSteps] = []

    async def score(self, question: str, steps: Sequence[str]) -> StepScores:
        if steps:
            self.inputs.append(self._scorer.format.encode_steps(question, steps))
        return await self._scorer.score(question, steps)


def encoded_per_distinct(engine: Engine, model: PRMModel, problems: Sequence[Problem]) -> dict[str, float]:
    """Tokens that the PRM encoded, and that it would have from the start of every candidate, over the distinct ones."""
    scorer = PRMScorer(model, cache_tokens=1 << 24)
    watched = Watched(scorer)
    timed(problems, engine, watched, at_once=True)
    inputs = [encoded.input_ids[: encoded.positions[-1] + 1] for encoded in watched.inputs]
    seen: set[int] = set()
    for ids in inputs:
        key = 0
        for token in ids:
            key = hash((key, token))
            seen.add(key)
    return {
        "scored_tokens_per_distinct_token": scorer.stats.encoded_tokens / len(seen),
        "from_the_start_per_distinct_token": sum(map(len, inputs)) / len(seen),
    }


def compare(
    engine: Engine, scorer: StepScorer, problems: int, seed: int, budgets: tuple[int, ...], unit: BudgetUnit
) -> list[SearchRow]:
    """Rows of all methods on the test problems; every seed has problems of its own."""
    task = get_task("accumulator")
    sampling = SamplingParams(max_tokens=64)
    methods = {name: share_sampling(make_params(name, values), sampling, seed) for name, values in METHODS.items()}
    planned = plan_searches(methods, BudgetPlan(budgets, unit, 32))
    searchers = make_searchers(planned, engine, scorer, task.grader)
    return search_all(task.problems("test", problems, seed * problems), searchers, RunParams(in_flight=256))


def summary(rows: Sequence[SearchRow]) -> dict[str, Any]:
    """{method: {budget: what a reader of curves needs}}."""
    found: dict[str, Any] = {}
    for search in comparison_figures(rows, "product_vote", levels_of(rows))["searches"]:
        kept = ("majority", "product_vote", "product_max", "last_vote", "last_max", "min_vote", "min_max", "oracle")
        found.setdefault(search["method"], {})[str(search["budget"])] = {
            **{name: search["accuracy"][name] for name in kept if name in search["accuracy"]},
            "generated_tokens": search["tokens"]["generated"],
            "scored_tokens": search["tokens"]["scored"],
            "unfinished": search["unfinished"],
            "failed": search["failed"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, default=Path("runs/demo/sft/policy"), help="folder of a trained policy")
    parser.add_argument("--prm", type=Path, default=Path("runs/demo/prm/model"), help="folder of its PRM")
    parser.add_argument("--problems", type=int, default=300, help="problems a seed of the curves")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the curves")
    parser.add_argument("--picture", type=Path, help="where to draw the curves at equal token budgets")
    parser.add_argument("--quick", action="store_true", help="a fraction of it all, to see that it works")
    arguments = parser.parse_args()
    for folder in (arguments.policy, arguments.prm):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such model; `prm demo` makes one, or name others with --policy and --prm")
    quick = arguments.quick
    count, alone, pair_alone = (20, 2, 2) if quick else (500, 25, 50)
    samples, tokens = ((1, 4), (64, 128)) if quick else ((1, 4, 16, 64), (64, 256, 1024, 2048))
    problems, seeds = (4, 1) if quick else (arguments.problems, arguments.seeds)

    policy = load_policy(arguments.policy)
    model = PRMModel.from_pretrained(arguments.prm).eval()
    long_task = get_task("accumulator", min_ops=STEPS, max_ops=STEPS)
    long_problems = long_task.problems("test", count)

    def pair() -> tuple[HFEngine, PRMScorer]:
        engine = HFEngine(policy.model, policy.format, max_rows=256, cache_tokens=1 << 20)
        return engine, PRMScorer(model, max_batch_tokens=8192, cache_tokens=1 << 20)

    def curves(unit: BudgetUnit, budgets: tuple[int, ...]) -> list[SearchRow]:
        return [row for seed in range(seeds) for row in compare(*pair(), problems, seed, budgets, unit)]

    figures: dict[str, Any] = {}
    for name, measure in (
        ("stand_in", lambda: stand_in(count, alone)),
        ("demo_pair", lambda: speedup(pair, long_problems, pair_alone)),
        ("encoding", lambda: encoded_per_distinct(pair()[0], model, long_problems)),
    ):
        start = time.perf_counter()
        figures[name] = measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s\n  {figures[name]}", flush=True)
    by_tokens, by_samples = curves("tokens", tokens), curves("samples", samples)
    figures = {
        "scored_tokens_per_distinct_token": figures["encoding"]["scored_tokens_per_distinct_token"],
        "from_the_start_per_distinct_token": figures["encoding"]["from_the_start_per_distinct_token"],
        "concurrency_speedup": {name: figures[name]["speedup"] for name in ("stand_in", "demo_pair")},
        "engine_calls_by_problems": figures["stand_in"]["engine_calls_by_problems"],
        "throughput": {name: figures[name] for name in ("stand_in", "demo_pair")},
        "curves": summary(by_tokens),
        "vote_at": summary(by_samples),
    }
    for name in ("curves", "vote_at"):
        print(f"{name}:\n  {figures[name]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = arguments.picture or Path(folder) / "search.png"
        title = f"accumulator, test: {problems} problems, {seeds} seeds"
        save_figure(comparison_figure(comparison_figures(by_tokens, "product_vote"), "tokens", title), picture)
    if not quick:
        print(write_result("search", figures, ("torch", "transformers"), problems=problems, seeds=seeds))


if __name__ == "__main__":
    main()
