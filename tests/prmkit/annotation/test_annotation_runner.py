"""Whole runs on the built-in task: exact truth, failures of single problems, SIGKILL anywhere."""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import time

import pytest

import prmkit.chunks
from prmkit.annotation.math_shepherd import MathShepherdParams
from prmkit.annotation.records import StepLabels
from prmkit.annotation.runner import AnnotationRun, compare_with_truth, run_annotation
from prmkit.chunks import ChunkedOutput, meta_path
from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import DataError
from prmkit.io import read_json, read_jsonl
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
PROBLEMS = TASK.problems("train", 12)
PARAMS = MathShepherdParams(solutions_per_problem=6, rollouts=4)


def slips(prefix, index, seed, every=3):
    """Carries the program on from the value written last; a third of the lines say another value."""
    rng = random.Random(f"{prefix} {index} {seed}")
    question, *lines = prefix.split("\n")[:-1]
    operations = [line.partition("=")[0] for line in TASK.solve(question)[0].split("\n")]
    value, out = (lines[-1] if lines else question)[-1], []
    for operation in operations[len(lines) :]:
        value = TASK.solve(f"{operation},{value}")[1]
        if rng.randrange(every) == 0:
            value = f"{(int(value, 16) + rng.randrange(1, 15)) % 16:X}"
        out.append(f"{operation}={value}\n")
    return "".join(out)


class Patient(ScriptedEngine):
    """Takes its time, so that a kill meets it at work."""

    async def generate(self, request):
        await asyncio.sleep(0.001)
        return await super().generate(request)


@pytest.fixture(scope="module")
def engine():
    return Patient(TASK.step_format.bind(TASK.tokenizer()), slips)


def annotate(engine, path, problems=PROBLEMS, in_flight=5, on_problem=None, params=PARAMS):
    run = AnnotationRun(params, policy="slips", in_flight=in_flight, truth=TASK)
    with ChunkedOutput(path, {"seed": 0}) as output:
        return run_annotation(problems, engine, TASK.grader, output, run, on_problem)


def without_seconds(path):
    return {name: value for name, value in read_json(meta_path(path)).items() if name != "seconds"}


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "x.jsonl"
    annotate(engine, path)
    return path


def test_records_and_state(whole):
    records = [StepLabels.from_json(value) for value in read_jsonl(whole)]
    meta = without_seconds(whole)
    assert meta["complete"]
    assert meta["progress"]["chunks"] == 3
    assert [r.problem_id for r in records] == sorted(
        (r.problem_id for r in records), key=[p.id for p in PROBLEMS].index
    )
    counts = meta["counts"]
    assert counts["problems"] == 12
    assert counts["solutions"] == 72
    assert counts["records"] == len(records)
    assert meta["usage"]["samples"] == 72 + counts["rollouts"]
    assert meta["usage"]["generated_tokens"] > 20 * 72
    assert set(meta["truth"]) == {
        "step_accuracy",
        "first_error_accuracy",
        "first_error_accuracy_wrong_solutions",
    }
    assert 0.6 < meta["truth"]["step_accuracy"] <= 1.0


def test_in_flight_and_progress_change_no_record(engine, whole, tmp_path):
    seen = []
    annotate(engine, tmp_path / "x.jsonl", in_flight=12, on_problem=lambda counts, usage: seen.append(counts.problems))
    assert (tmp_path / "x.jsonl").read_bytes() == whole.read_bytes()
    assert seen == list(range(1, 13))


def in_child(target):
    """Run in a forked process; its exit code (-9 when it killed itself or was killed)."""
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("problem", [1, 5, 6, 11])
def test_killed_at_a_problem_and_resumed(engine, whole, tmp_path, problem):
    path = tmp_path / "x.jsonl"
    child = in_child(
        lambda: annotate(engine, path, on_problem=lambda counts, usage: counts.problems == problem and die())
    )
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert read_json(meta_path(path))["progress"]["chunks"] == (problem - 1) // 5
    annotate(engine, path)
    assert path.read_bytes() == whole.read_bytes()
    assert without_seconds(path) == without_seconds(whole)


def test_killed_between_writing_and_acknowledging(engine, whole, tmp_path):
    path = tmp_path / "x.jsonl"

    def child():
        write = prmkit.chunks.write_json
        prmkit.chunks.write_json = lambda to, meta: die() if meta["progress"]["chunks"] == 2 else write(to, meta)
        annotate(engine, path)

    process = in_child(child)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.stat().st_size > read_json(meta_path(path))["progress"]["bytes"] > 0
    annotate(engine, path)
    assert path.read_bytes() == whole.read_bytes()
    assert without_seconds(path) == without_seconds(whole)


def test_killed_again_and_again(engine, whole, tmp_path):
    path, kills = tmp_path / "x.jsonl", 0
    for attempt in range(40):
        process = in_child(lambda: annotate(engine, path))
        process.join(0.02 + 0.01 * attempt)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert kills > 0
    assert path.read_bytes() == whole.read_bytes()
    assert without_seconds(path) == without_seconds(whole)


def test_a_complete_output_is_not_made_again(engine, whole):
    before, asked, start = whole.read_bytes(), engine.stats.requests, time.monotonic()
    annotate(engine, whole)
    assert whole.read_bytes() == before
    assert engine.stats.requests == asked
    assert time.monotonic() - start < 5


def test_a_problem_that_fails_is_left_out_and_named(engine, whole, tmp_path):
    def script(prefix, index, seed):
        if prefix.startswith(PROBLEMS[7].question):
            raise ValueError("too long")
        return slips(prefix, index, seed)

    fragile = ScriptedEngine(engine.format, script)
    state = annotate(fragile, tmp_path / "x.jsonl")
    assert state["failures"] == [{"problem_id": PROBLEMS[7].id, "error": "ValueError: too long"}]
    assert (state["counts"]["problems"], state["counts"]["failed"]) == (12, 1)
    kept = [line for line in whole.read_text().splitlines() if json.loads(line)["problem_id"] != PROBLEMS[7].id]
    assert (tmp_path / "x.jsonl").read_text().splitlines() == kept
    with pytest.raises(DataError, match=r"all of the first 1 problems failed.*too long"):
        annotate(fragile, tmp_path / "y.jsonl", problems=PROBLEMS[7:8])


def labels(values, correct=False):
    n = len(values)
    return StepLabels("p", "q", "1", ("s",) * n, tuple(values), (1,) * n, "s", "p", separator="\n", correct=correct)


def test_truth_by_hand():
    # truth: the second step is the first error. Labels: right, right, wrong -> 1 of 2 steps, first error one late
    late = compare_with_truth(labels([0.5, 0.1, 0.0]), (True, False, True))
    assert (late.steps, late.steps_agree, late.first_error_agree, late.wrong_first_error_agree) == (2, 1, 0, 0)
    exact = compare_with_truth(labels([0.5, 0.0, None]), (True, False, False))
    assert (exact.steps, exact.steps_agree, exact.first_error_agree, exact.wrong_solutions) == (2, 2, 1, 1)
    right = compare_with_truth(labels([1.0, 1.0], correct=True), (True, True))
    assert (right.steps, right.steps_agree, right.first_error_agree, right.wrong_solutions) == (2, 2, 1, 0)
    lucky = compare_with_truth(labels([1.0, 1.0], correct=True), (False, True))
    assert (lucky.steps, lucky.steps_agree, lucky.first_error_agree) == (1, 0, 0)
    total = late + exact + right + lucky
    assert total.figures() == {
        "step_accuracy": 5 / 7,
        "first_error_accuracy": 2 / 4,
        "first_error_accuracy_wrong_solutions": 1 / 2,
    }
    assert set((total.__class__()).figures().values()) == {None}
