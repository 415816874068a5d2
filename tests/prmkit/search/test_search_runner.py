"""Whole searches: rows in order, failures of single problems, grading by class, resuming."""

import asyncio
from functools import partial

import pytest

from prmkit.chunks import ChunkedOutput, meta_path
from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import ConfigError, DataError
from prmkit.grading.exact import ExactGrader
from prmkit.io import read_json, write_json
from prmkit.scoring.table import TableScorer
from prmkit.search.best_of_n import BestOfNParams, best_of_n
from prmkit.search.budget import BudgetLimits
from prmkit.search.methods import make_method, make_params
from prmkit.search.result import TreeNode
from prmkit.search.rows import SearchRow, TraceRecord, read_rows
from prmkit.search.runner import RunParams, Searcher, grade_traces, run_search
from prmkit.types import Problem, SamplingParams, Step, Trace

PROBLEMS = [Problem(f"p{i}", f"q{i}", "1", level="easy", source="s") for i in range(10)]
GREEDY = SamplingParams(temperature=0.0)


def script(prefix, index, seed):
    return f"a{(index + seed // 1024) % 3}\n={(index + seed // 1024) % 4}\n"


@pytest.fixture
def engine(tree_policy):
    return ScriptedEngine(tree_policy(lambda steps: {}).format, script)


@pytest.fixture
def search(engine, last_step_grader):
    def run(path, problems=PROBLEMS, engine=engine, on_row=None, in_flight=4, limits=None, n=6):
        scorer = TableScorer(lambda question, steps: len(steps[-1]) / 10)
        searcher = Searcher(partial(best_of_n, params=BestOfNParams(n=n)), engine, scorer, last_step_grader)
        params = RunParams(in_flight, GREEDY, limits or BudgetLimits())
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
    with pytest.raises(DataError, match="all of the first 1 problems failed; p6: OSError: connection lost"):
        search(tmp_path / "y.jsonl", PROBLEMS[6:7], engine=broken)


def test_defects_end_the_run(search, engine, tmp_path):
    def defect(prefix, index, seed):
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        search(tmp_path / "x.jsonl", engine=ScriptedEngine(engine.format, defect))


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
    with pytest.raises(ConfigError, match=r"greedy\.temperature: got 1\.0"):
        RunParams(greedy=SamplingParams())
    good = SearchRow("p", "q", "1", (TraceRecord(("s",), "stop", "1", 0, True, 2),)).to_json()
    old = SearchRow.from_json({k: v for k, v in good.items() if k != "tree"} | {"schema": 1}, "f:3")
    assert old == SearchRow.from_json(good, "f:3"), "rows of the first schema have no tree"
    with pytest.raises(DataError, match="f:3: schema 9"):
        SearchRow.from_json(good | {"schema": 9}, "f:3")
    with pytest.raises(DataError, match=r"f:3: not a search row: KeyError\('traces'\)"):
        SearchRow.from_json({k: v for k, v in good.items() if k != "traces"}, "f:3")
