"""Searches of many problems at once, what they encode, and methods at equal token budgets.

    python benchmarks/search.py --pairs runs/demo runs/demo-1 runs/demo-2 [--parts throughput curves] [--quick]

Written to results/search.json, parts that are not asked for as they were:

- scored_tokens_per_distinct_token: tokens that the first pair's PRM encoded over the distinct tokens of all its inputs,
  in beam searches of width 4; from_the_start_per_distinct_token: the same if every candidate were scored from its
  question on, as OpenR does.
- concurrency_speedup: problems a second of beam search of width 4 over 8 steps on 500 problems (problems_at_once), all
  in flight, over those one after the other, which are timed on a part of the problems. Four beams, 16 samples a round,
  unless it says `one_beam`: 4 samples.
  - `stand_in`: a scripted policy behind a server of fixed latency (LATENCY seconds a batch, of any size), which is what
    a GPU looks like to a search, and a table of scores;
  - `demo_pair`, `demo_pair_one_beam`: the first pair, on the CPU, where a batch costs more the larger it is. One search
    alone has batches of 16 and 4 already; engine_tokens_per_second_by_rows tells what larger ones bring of themselves.
- engine_calls_by_problems, engine_calls_by_steps: batches that the stand-in ran, by number of problems and by depth.
- curves: accuracy by method at equal token budgets (configs/search/methods.yaml), problems of all pairs together.
- rescored: accuracy by guide, selection and samples of the demos' own samples; see `_search_curves.rescored`.
- over_optimisation: accuracy by guide, method and budget; see `_search_curves.over_optimisation`, `pooled`
  and `cured`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _environment import RESULTS, write_result
from _search_curves import HEADLINE, Pair, by_method, cured, gains, over_optimisation, pooled, rescored
from _search_plot import draw

from prmkit.engines import HFEngine
from prmkit.engines.driver import Driver, Job
from prmkit.errors import DataError
from prmkit.evaluation.comparison import comparison_figures
from prmkit.evaluation.comparison_plots import comparison_figure, save_figure
from prmkit.formats.bound import BoundStepFormat, EncodedSteps
from prmkit.formats.presets import get_step_format
from prmkit.io import read_json
from prmkit.models import PRMModel, load_policy
from prmkit.protocols import Engine, StepScorer
from prmkit.records import Completion, GenerationRequest, Problem, StepScores
from prmkit.scoring import PRMScorer
from prmkit.scoring.table import TableScorer
from prmkit.search.methods import make_method, make_params
from prmkit.search.result import SearchMethod
from prmkit.search.runner import RunParams, Searcher, search_all
from prmkit.tasks import get_task
from prmkit.tasks.vocabulary import character_tokenizer

LATENCY = 0.1  # a step of 20 tokens at 5 ms each, whatever the size of the batch
STEPS, SAMPLES = 8, 16
TIMED = ("stand_in", "demo_pair", "demo_pair_one_beam")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
METHODS = ("best_of_n", "beam_search", "dvts", "rebase", "mcts", "rstar", "compute_optimal")
PARTS = ("throughput", "curves", "rescored", "over_optimisation")


class Server:
    """A scripted policy and a table of scores that answer whatever waits, once every LATENCY seconds."""

    def __init__(self, steps: int = STEPS) -> None:
        self._steps = steps
        tokenizer = character_tokenizer(f"{LETTERS}+-0123456789\n")
        self.format, self.weight_version = BoundStepFormat(get_step_format("plain"), tokenizer), 0
        (self._newline,) = self.format.encode_piece("\n")
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
        written = request.prompt_ids.count(self._newline) - 1
        if written >= self._steps:
            return [Completion((self.format.eos_id,), (0.0,), "", "stop")] * request.n
        rng = random.Random(request.seed)
        lines = [rng.choice(LETTERS) + "\n" for _ in range(request.n)]
        return [Completion(tuple(self.format.encode_piece(line)), (0.0, 0.0), line, "stop", "\n") for line in lines]


def beam(samples: int) -> SearchMethod:
    sampling = {"max_tokens": 64}
    return make_method("beam_search", make_params("beam_search", {"n": samples, "width": 4, "sampling": sampling}))


def timed(
    problems: Sequence[Problem], engine: Engine, scorer: StepScorer, in_flight: int, samples: int = SAMPLES
) -> tuple[float, float]:
    """Seconds of beam searches of width 4, so many at once: by the wall's clock, and by this process's processors,
    which other programs disturb less."""
    searcher = Searcher(beam(samples), engine, scorer, get_task("accumulator").grader)
    start, worked = time.perf_counter(), time.process_time()
    rows = search_all(problems, searcher, RunParams(in_flight))
    failed = [row.error for row in rows if row.error is not None]
    if failed:
        raise DataError(f"{len(failed)} searches failed: {failed[0]}")
    return time.perf_counter() - start, time.process_time() - worked


def speedup(
    make: Callable[[], tuple[Engine, StepScorer]], problems: Sequence[Problem], alone: int, samples: int = SAMPLES
) -> dict[str, float]:
    """Problems a second at once and one by one (timed on the first `alone` of them)."""
    together, together_worked = timed(problems, *make(), len(problems), samples)
    single, single_worked = timed(problems[:alone], *make(), 1, samples)
    return {
        "at_once_per_second": len(problems) / together,
        "one_by_one_per_second": alone / single,
        "speedup": (len(problems) / together) / (alone / single),
        "speedup_by_processor_time": (len(problems) / together_worked) / (alone / single_worked),
    }


def stand_in(count: int, alone: int) -> dict[str, Any]:
    problems = [Problem(f"p{i}", f"q{i}", "1") for i in range(count)]

    def make() -> tuple[Engine, StepScorer]:
        return Server(), TableScorer({letter: (place + 1) / 27 for place, letter in enumerate(LETTERS)})

    calls = {}
    for n in (1, 10, count):
        server, scorer = make()
        timed(problems[:n], server, scorer, n)
        calls[str(n)] = server.batches  # type: ignore[attr-defined]
    by_steps = {}
    for steps in (2, 4, 8, 16):
        server = Server(steps)
        timed(problems[:10], server, make()[1], 10)
        by_steps[str(steps)] = server.batches
    return {
        **speedup(make, problems, alone),
        "engine_calls_by_problems": calls,
        "engine_calls_by_steps": by_steps,
        "latency_seconds": LATENCY,
    }


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
    timed(problems, engine, watched, len(problems))
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


def engine_by_rows(engine: HFEngine, problems: Sequence[Problem], rows: Sequence[int]) -> dict[str, float]:
    """Tokens a second of processor time of plain sampling, so many at once: what larger batches bring at most."""
    speeds = {}
    for count in rows:
        asked = [GenerationRequest(engine.format.prompt_ids(p.question), 1, 1024 * n) for n, p in enumerate(problems)]
        repeats = [asked[at : at + count] for at in range(0, min(len(asked), 8 * count), count)]

        async def run(parts: list[list[GenerationRequest]] = repeats) -> int:
            found = [await asyncio.gather(*(engine.generate(request) for request in part)) for part in parts]
            return sum(len(completions[0].token_ids) for part in found for completions in part)

        start = time.process_time()
        speeds[str(count)] = asyncio.run(run()) / (time.process_time() - start)
    return speeds


def throughput(pair: Path, count: int, pair_count: int) -> dict[str, Any]:
    """All figures that a busy machine falsifies, of so many problems at once with the stand-in and with the pair."""
    alone, pair_alone = max(2, count // 20), max(2, pair_count // 10)
    policy = load_policy(pair / "sft/policy")
    model = PRMModel.from_pretrained(pair / "prm/model").eval()
    problems = get_task("accumulator", min_ops=STEPS, max_ops=STEPS).problems("test", pair_count)

    def models() -> tuple[HFEngine, PRMScorer]:
        engine = HFEngine(policy.model, policy.format, max_rows=512, cache_tokens=1 << 20)
        return engine, PRMScorer(model, max_batch_tokens=1024, cache_tokens=1 << 20)

    figures: dict[str, Any] = {}
    for name, measure in (
        ("stand_in", lambda: stand_in(count, alone)),
        ("demo_pair", lambda: speedup(models, problems, pair_alone)),
        ("demo_pair_one_beam", lambda: speedup(models, problems, pair_alone, 4)),
        ("encoding", lambda: encoded_per_distinct(models()[0], model, problems)),
        (
            "engine",
            lambda: engine_by_rows(models()[0], problems, tuple(n for n in (1, 4, 16, 64, 256) if n <= pair_count)),
        ),
    ):
        start = time.perf_counter()
        figures[name] = measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s\n  {figures[name]}", flush=True)
    return {
        **figures["encoding"],
        "problems_at_once": {"stand_in": count, "demo_pair": pair_count},
        "concurrency_speedup": {name: figures[name]["speedup"] for name in TIMED},
        "engine_calls_by_problems": figures["stand_in"]["engine_calls_by_problems"],
        "engine_calls_by_steps": figures["stand_in"]["engine_calls_by_steps"],
        "throughput": {name: figures[name] for name in TIMED},
        "engine_tokens_per_second_by_rows": figures["engine"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=Path, nargs="+", default=[Path("runs/demo")], help="folders of `prm demo` runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the others keep their last figures")
    parser.add_argument("--at-once", type=int, default=500, help="problems of the pair's throughput")
    parser.add_argument("--problems", type=int, default=300, help="problems a pair of the other parts")
    parser.add_argument("--train-problems", type=int, default=700, help="problems a pair and round of the cure")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the cure")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/search"), help="where searches are kept")
    parser.add_argument("--picture", type=Path, help="where to draw the curves at equal token budgets")
    parser.add_argument("--exhibit", type=Path, help="where to draw over-optimisation and its cure")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the throughput")
    parser.add_argument("--quick", action="store_true", help="a fraction of the throughput, to see that it works")
    arguments = parser.parse_args()
    for folder in arguments.pairs:
        if not (folder / "prm/model").is_dir():
            raise DataError(f"{folder}: no pair; `prm demo --output {folder}` makes one")
    torch.set_num_threads(arguments.threads)
    pairs = [Pair(folder, n, arguments.problems, arguments.work) for n, folder in enumerate(arguments.pairs)]
    path = RESULTS / "search.json"
    figures: dict[str, Any] = read_json(path)["figures"] if path.is_file() else {}
    if "throughput" in arguments.parts:
        figures |= throughput(arguments.pairs[0], *((20, 20) if arguments.quick else (500, arguments.at_once)))
    if "curves" in arguments.parts and not arguments.quick:
        rows = [row for pair in pairs for row in pair.curves("curves", pair.prm, METHODS)]
        problems = len({row.problem_id for row in rows})
        figures["curves"] = {"pairs": len(pairs), "problems": problems, "gains": gains(rows), **by_method(rows)}
        if arguments.picture is not None:
            title = f"accumulator, test: {len(pairs)} pairs, {figures['curves']['problems']} problems"
            save_figure(comparison_figure(comparison_figures(rows, HEADLINE), "tokens", title), arguments.picture)
    if "rescored" in arguments.parts and not arguments.quick:
        found = rescored(pairs, arguments.problems)
        figures["rescored"] = {"pairs": len(pairs), "problems_a_pair": arguments.problems, **found}
    if "over_optimisation" in arguments.parts and not arguments.quick:
        cure = cured(pairs, arguments.work, arguments.train_problems, arguments.rounds)
        more = pooled(pairs, arguments.work, arguments.rounds)
        figures["over_optimisation"] = found = over_optimisation(pairs, more, cure)
        if arguments.exhibit is not None:
            draw(found, arguments.exhibit)
    if not arguments.quick:
        print(write_result("search", figures, ("torch", "transformers"), threads=arguments.threads))


if __name__ == "__main__":
    main()
