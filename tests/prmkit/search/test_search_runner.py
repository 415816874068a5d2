"""Whole searches: rows in order, several searches at once, failures of single problems, grading by class, resuming."""

import asyncio
import gc
import threading
from functools import partial

import pytest

from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import ConfigError, DataError, EngineLostError
from prmkit.formats.bound import BoundStepFormat
from prmkit.grading.exact import ExactGrader
from prmkit.io import read_json, write_json
from prmkit.jobs.chunks import ChunkedOutput, meta_path
from prmkit.jobs.claims import ClaimFolder
from prmkit.jobs.runner import gather, run_claimed
from prmkit.records import Problem, SamplingParams, Step, Trace
from prmkit.scoring.table import TableScorer
from prmkit.search.best_of_n import BestOfNParams, best_of_n
from prmkit.search.budget import BudgetLimits
from prmkit.search.methods import make_method, make_params
from prmkit.search.result import TreeNode
from prmkit.search.rows import SearchRow, TraceRecord, read_rows
from prmkit.search.runner import (
    RunParams,
    Searcher,
    grade_traces,
    run_search,
    search_all,
    search_work,
)

PROBLEMS = [Problem(f"p{i}", f"q{i}", "1", level="easy", source="s") for i in range(10)]
GREEDY = SamplingParams(temperature=0.0)


def script(prefix, index, seed):
    return f"a{(index + seed // 1024) % 3}\n={(index + seed // 1024) % 4}\n"


@pytest.fixture
def engine(tree_policy):
    return ScriptedEngine(tree_policy(lambda steps: {}).format, script)


@pytest.fixture
def search(engine, last_step_grader):
    def run(path, problems=PROBLEMS, engine=engine, on_row=None, in_flight=4, limits=None, n=6, chunk=4):
        scorer = TableScorer(lambda question, steps: len(steps[-1]) / 10)
        searcher = Searcher(partial(best_of_n, params=BestOfNParams(n=n)), engine, scorer, last_step_grader)
        params = RunParams(in_flight, GREEDY, limits or BudgetLimits(), chunk)
        with ChunkedOutput(path, {"n": n}) as output:
            run_search(problems, searcher, output, params, on_row)
        return list(read_rows(path))

    return run


def test_rows(search, tmp_path):
    seen = []
    rows = search(tmp_path / "rows.jsonl", on_row=seen.append)
    assert [row.problem_id for row in rows] == [f"p{i}" for i in range(10)]
    assert sorted(row.problem_id for row in seen) == sorted(row.problem_id for row in rows)
    for row in rows:
        assert (row.question, row.answer, row.level, row.source) == ("q" + row.problem_id[1:], "1", "easy", "s")
        assert row.error is None
        assert len(row.traces) == 6
        assert [trace.correct for trace in row.traces] == [trace.answer == "1" for trace in row.traces]
        firsts = list(dict.fromkeys(trace.answer for trace in row.traces))
        assert [trace.group for trace in row.traces] == [firsts.index(trace.answer) for trace in row.traces]
        assert all(trace.scores == (0.2, 0.2) for trace in row.traces)
        assert row.usage.samples == 6
        assert row.usage.generated_tokens == sum(trace.tokens for trace in row.traces) == 6 * 7
        assert (row.greedy.answer, row.greedy.scores) == ("0", None)
        assert SearchRow.from_json(row.to_json(), "here") == row


def test_resumed_after_any_chunk(search, tmp_path):
    search(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for chunks in range(4):
        path = tmp_path / f"{chunks}.jsonl"
        lines = whole.splitlines(keepends=True)[: 4 * chunks]
        meta = read_json(meta_path(tmp_path / "whole.jsonl"))
        meta |= {"complete": False, "seconds": 1.0}
        meta["progress"] = {"chunks": chunks, "lines": len(lines), "bytes": sum(map(len, lines))}
        write_json(meta_path(path), meta)
        path.write_bytes(b"".join(lines) + b'{"torn')
        search(path)
        assert path.read_bytes() == whole
        assert read_json(meta_path(path))["seconds"] >= 1.0


def test_workers_share_the_chunks_and_one_may_fall(search, engine, last_step_grader, tmp_path):
    search(tmp_path / "whole.jsonl")
    settings, chunks = {"n": 6}, 3
    done = []

    def worker(engine):
        searcher = Searcher(
            partial(best_of_n, params=BestOfNParams(n=6)),
            engine,
            TableScorer(lambda question, steps: len(steps[-1]) / 10),
            last_step_grader,
        )
        with ClaimFolder(tmp_path / "parts", settings, chunks) as folder:
            params = RunParams(2, GREEDY, BudgetLimits(), 4)
            run_claimed(search_work(PROBLEMS, searcher, params, lambda row: done.append(row.problem_id)), folder)

    def falls(prefix, index, seed):
        if prefix.startswith("q2"):
            raise EngineLostError("gone")
        return script(prefix, index, seed)

    with pytest.raises(EngineLostError, match="gone"):
        worker(ScriptedEngine(engine.format, falls))
    done.clear()
    threads = [threading.Thread(target=worker, args=[ScriptedEngine(engine.format, script)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == sorted(problem.id for problem in PROBLEMS), "every problem once"
    for _ in range(2):  # the second finds it complete
        with (
            ClaimFolder(tmp_path / "parts", settings, chunks) as folder,
            ChunkedOutput(tmp_path / "shared.jsonl", settings) as output,
        ):
            assert folder.all_done
            seconds = gather(folder, output)["seconds"]
            assert seconds == pytest.approx(sum(folder.state(n)["seconds"] for n in range(3)))
        assert (tmp_path / "shared.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_problem_that_fails_is_a_row_that_says_so(search, engine, tmp_path):
    def fragile(prefix, index, seed):
        if prefix.startswith("q6") and index == 3:
            raise OSError("connection lost")
        return script(prefix, index, seed)

    broken = ScriptedEngine(engine.format, fragile)
    search(tmp_path / "whole.jsonl")
    rows = search(tmp_path / "x.jsonl", engine=broken)
    assert (rows[6].error, rows[6].traces, rows[6].greedy) == ("OSError: connection lost", (), None)
    whole = (tmp_path / "whole.jsonl").read_text().splitlines()
    assert [line for i, line in enumerate((tmp_path / "x.jsonl").read_text().splitlines()) if i != 6] == [
        line for i, line in enumerate(whole) if i != 6
    ]
    with pytest.raises(DataError, match="all of the first 1 searches failed; p6: OSError: connection lost"):
        search(tmp_path / "y.jsonl", PROBLEMS[6:7], engine=broken)


def test_defects_end_the_run(search, engine, tmp_path):
    def defect(prefix, index, seed):
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        search(tmp_path / "x.jsonl", engine=ScriptedEngine(engine.format, defect))


@pytest.mark.parametrize("before", [(700, 10, 10), (0, 10, 10), (200_000, 5, 5)])
def test_the_cycle_collector_is_as_it_was_before(search, engine, tmp_path, before):
    """Less often during the run, never more often, and not at all where it was off."""
    usual, seen = gc.get_threshold(), []
    gc.set_threshold(*before)
    try:
        search(tmp_path / "a.jsonl", on_row=lambda _: seen.append(gc.get_threshold()))
        with pytest.raises(ZeroDivisionError):
            search(tmp_path / "b.jsonl", engine=ScriptedEngine(engine.format, lambda *_: 1 / 0))
    finally:
        after = gc.get_threshold()
        gc.set_threshold(*usual)
    assert after == before
    assert set(seen) == {(0 if before[0] == 0 else max(before[0], 100_000), *before[1:])}


def test_in_flight_is_bounded(search, engine, tmp_path):
    class Watched(ScriptedEngine):
        now = most = 0

        async def generate(self, request):
            Watched.now += 1
            Watched.most = max(Watched.most, Watched.now)
            await asyncio.sleep(0)
            try:
                return await super().generate(request)
            finally:
                Watched.now -= 1

    search(tmp_path / "x.jsonl", engine=Watched(engine.format, script), in_flight=3)
    assert Watched.most == 3


def test_limits_of_a_problem(search, tmp_path):
    rows = search(tmp_path / "x.jsonl", limits=BudgetLimits(samples=2))
    assert {len(row.traces) for row in rows} == {2}


def test_grading_is_by_equivalence(engine):
    class Numbers(ExactGrader):
        def group(self, answers):
            return super().group([None if a is None else str(float(a)) for a in answers])

        def grade(self, pairs):
            return super().grade([(None if a is None else str(float(a)), str(float(b))) for a, b in pairs])

    grader = Numbers(lambda text: text.partition("=")[2] or None)
    texts = [("=2", "stop"), ("=1.0", "stop"), ("=1", "length"), ("?", "stop"), ("=1", "stop")]
    traces = [Trace("p", (Step(text),), finish) for text, finish in texts]
    graded = grade_traces(Problem("p", "q", "1"), traces, grader, engine.format)
    assert [trace.group for trace in graded] == [0, 1, 1, -1, 1]
    assert [trace.correct for trace in graded] == [False, True, False, False, True]


@pytest.fixture
def compare(digit_policy, digit_scorer, last_step_grader):
    """Three searches of every problem, on one engine and one scorer."""

    def run(problems=PROBLEMS, engine=digit_policy, scorer=digit_scorer, **params):
        searchers = [
            Searcher(make_method(name, make_params(name, values)), engine, scorer, last_step_grader, name, budget)
            for name, values, budget in (
                ("best_of_n", {"n": 5}, 5),
                ("beam_search", {"n": 4, "width": 2}, 4),
                ("mcts", {"simulations": 3}, 3),
            )
        ]
        return search_all(problems, searchers, RunParams(**params))

    return run


def test_every_problem_goes_through_every_search(compare):
    rows = compare()
    assert [(row.problem_id, row.method, row.budget) for row in rows] == [
        (problem.id, method, budget)
        for problem in PROBLEMS
        for method, budget in (("best_of_n", 5), ("beam_search", 4), ("mcts", 3))
    ]
    assert all(bool(row.tree) == (row.method != "best_of_n") for row in rows)


def test_the_window_stays_full_across_chunks(digit_policy, compare):
    """Problem 0 takes long; the others are not kept waiting, and rows come in order all the same."""

    log = []

    class Slow:
        format, weight_version = digit_policy.format, 0

        async def generate(self, request):
            name = digit_policy.format.decode(request.prompt_ids).split("\n")[0]
            for _ in range(300 if name == "q0" else 1):
                await asyncio.sleep(0)
            log.append(name)
            return await digit_policy.generate(request)

    rows = compare(engine=Slow(), in_flight=12, chunk=1)
    assert [(row.method, row.traces, row.tree) for row in rows] == [
        (row.method, row.traces, row.tree) for row in compare()
    ]
    assert log.index("q9") > log.index("q0"), "no more chunks are begun than keep the window full"
    assert log.index("q3") < log.index("q0")


def test_scored_tokens_are_those_of_the_search_alone(compare, digit_policy):
    """With a real scorer that keeps what it has encoded, whoever asked for it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForTokenClassification

    from prmkit.formats.spec import PRMFormat, StepFormat
    from prmkit.models.prm import PRMModel
    from prmkit.scoring.prm import PRMScorer

    torch.manual_seed(0)
    tokenizer = digit_policy.format.tokenizer
    bound = BoundStepFormat(
        StepFormat(prm=PRMFormat(head="scalar", tag="", after_step="\n", read="step_end")), tokenizer
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = Qwen2Config(vocab_size=len(tokenizer), num_labels=1, num_key_value_heads=1, **sizes)
    model = PRMModel(Qwen2ForTokenClassification(config), bound).eval()
    problems = PROBLEMS[:4]
    together = compare(problems, scorer=PRMScorer(model))
    for problem in problems:
        for row in together:
            if row.problem_id == problem.id:
                scorer = PRMScorer(model)
                rows = compare([problem], scorer=scorer)
                alone = next(r for r in rows if r.method == row.method)
                assert row.usage == alone.usage
                assert sum(r.usage.scored_tokens for r in rows) > scorer.stats.encoded_tokens, "searches share prefixes"


def test_what_is_done_is_not_paid_for_again(digit_policy, last_step_grader, tmp_path):
    """A run that dies in its third chunk: the next one asks the engine for the missing problems only."""

    class Dies:
        format, weight_version = digit_policy.format, 0
        left = 1000

        async def generate(self, request):
            Dies.left -= 1
            if Dies.left < 0:
                raise KeyboardInterrupt
            return await digit_policy.generate(request)

    def run(path):
        digit_policy.requests.clear()
        method = make_method("best_of_n", make_params("best_of_n", {"n": 2}))
        with ChunkedOutput(path, {}) as output:
            run_search(PROBLEMS, Searcher(method, Dies(), None, last_step_grader), output, RunParams(1, chunk=2))
        return sorted(digit_policy.format.decode(r.prompt_ids).strip() for r in digit_policy.requests)

    run(tmp_path / "whole.jsonl")
    Dies.left = 5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.jsonl")
    Dies.left = 1000
    assert run(tmp_path / "cut.jsonl") == [f"q{i}" for i in range(4, 10)]
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_rows_keep_the_tree(digit_policy, digit_scorer, last_step_grader, tmp_path):
    method = make_method("beam_search", make_params("beam_search", {"n": 4, "width": 2}))
    searcher = Searcher(method, digit_policy, digit_scorer, last_step_grader)
    with ChunkedOutput(tmp_path / "rows.jsonl", {}) as output:
        run_search(PROBLEMS[:3], searcher, output, RunParams())
    for row in read_rows(tmp_path / "rows.jsonl"):
        assert row.tree[0] == TreeNode(count=0, kept=True)
        assert sum(node.tokens for node in row.tree) == row.usage.generated_tokens
        kept = {(node.text, node.score) for node in row.tree if node.kept and node.text}
        assert kept == {pair for trace in row.traces for pair in zip(trace.steps, trace.scores, strict=True)}
        assert SearchRow.from_json(row.to_json(), "here") == row


def test_bad_rows_and_parameters_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="in_flight: got 0"):
        RunParams(in_flight=0)
    with pytest.raises(ConfigError, match="chunk: got 0"):
        RunParams(chunk=0)
    with pytest.raises(ConfigError, match=r"greedy\.temperature: got 1\.0"):
        RunParams(greedy=SamplingParams())
    good = SearchRow("p", "q", "1", (TraceRecord(("s",), "stop", "1", 0, True, 2),)).to_json()
    for schema, unknown in ((1, ("tree", "method", "budget")), (2, ("method", "budget"))):
        old = SearchRow.from_json({k: v for k, v in good.items() if k not in unknown} | {"schema": schema}, "f:3")
        assert old == SearchRow.from_json(good, "f:3"), "older rows have no tree, and name no method"
    with pytest.raises(DataError, match="f:3: schema 9"):
        SearchRow.from_json(good | {"schema": 9}, "f:3")
    with pytest.raises(DataError, match=r"f:3: not a search row \(KeyError: 'traces'\)"):
        SearchRow.from_json({k: v for k, v in good.items() if k != "traces"}, "f:3")
