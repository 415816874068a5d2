"""Whole runs on the built-in task: failures of single problems, SIGKILL anywhere, work shared by processes."""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import time

import pytest

import prmkit.jobs.chunks
from prmkit.annotation.math_shepherd import MathShepherdParams
from prmkit.annotation.omegaprm import OmegaPRMParams
from prmkit.annotation.records import StepLabels
from prmkit.annotation.runner import AnnotationRun, Workers, annotation_work, run_annotation
from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.io import read_json, read_jsonl
from prmkit.jobs.chunks import ChunkedOutput, meta_path
from prmkit.jobs.claims import ClaimFolder
from prmkit.jobs.runner import gather, run_claimed
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
PROBLEMS = TASK.problems("train", 12)
BRUTE = ("math_shepherd", MathShepherdParams(solutions_per_problem=6, rollouts=4))
OMEGA = ("omegaprm", OmegaPRMParams(filter_rollouts=8, rollouts=4, max_searches=3))
CHUNK = 5
CHUNKS = 3


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
    return Patient(BoundStepFormat(TASK.step_format, TASK.tokenizer()), slips)


def trees_of(path):
    return path.with_name(f"{path.name}.trees")


def annotate(engine, path, problems=PROBLEMS, in_flight=7, on_problem=None, how=OMEGA):
    run = AnnotationRun(*how, policy="slips", in_flight=in_flight, chunk=CHUNK)
    with ChunkedOutput(path, {"seed": 0}, companion=trees_of(path)) as output:
        return run_annotation(problems, Workers(engine, TASK.grader), output, run, on_problem)


def content(path):
    meta = {name: value for name, value in read_json(meta_path(path)).items() if name != "seconds"}
    return path.read_bytes(), trees_of(path).read_bytes(), meta


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "x.jsonl"
    annotate(engine, path)
    return path


@pytest.mark.parametrize("how", [BRUTE, OMEGA], ids=["math_shepherd", "omegaprm"])
def test_records_and_state(engine, tmp_path, how):
    annotate(engine, tmp_path / "x.jsonl", how=how)
    records = [StepLabels.from_json(value) for value in read_jsonl(tmp_path / "x.jsonl")]
    _, _, meta = content(tmp_path / "x.jsonl")
    order = [problem.id for problem in PROBLEMS]
    assert meta["complete"]
    assert meta["progress"]["chunks"] == CHUNKS
    assert [r.problem_id for r in records] == sorted((r.problem_id for r in records), key=order.index)
    counts = meta["counts"]
    samples = 12 * (6 if how is BRUTE else 8)
    assert (counts["problems"], counts["solutions"], counts["records"]) == (12, samples, len(records))
    assert meta["usage"]["samples"] == samples + counts["rollouts"]
    assert meta["usage"]["generated_tokens"] > 20 * samples
    trees = list(read_jsonl(trees_of(tmp_path / "x.jsonl")))
    assert [tree["problem_id"] for tree in trees] == ([] if how is BRUTE else order)


@pytest.mark.parametrize("in_flight", [1, 12])
def test_in_flight_and_progress_change_nothing(engine, whole, tmp_path, in_flight):
    path, seen = tmp_path / "x.jsonl", []
    annotate(engine, path, in_flight=in_flight, on_problem=lambda counts, _: seen.append(counts.problems))
    assert content(path) == content(whole)
    assert seen == list(range(1, 13))


def in_child(target):
    """Run in a forked process; its exit code (-9 when it killed itself or was killed)."""
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("problem", [1, 6, 11])
def test_killed_at_a_problem_and_resumed(engine, whole, tmp_path, problem):
    path = tmp_path / "x.jsonl"
    child = in_child(lambda: annotate(engine, path, on_problem=lambda counts, _: counts.problems == problem and die()))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert read_json(meta_path(path))["progress"]["chunks"] <= (problem - 1) // CHUNK
    annotate(engine, path)
    assert content(path) == content(whole)


def test_killed_between_writing_and_acknowledging(engine, whole, tmp_path):
    path = tmp_path / "x.jsonl"

    def child():
        write = prmkit.jobs.chunks.write_json
        prmkit.jobs.chunks.write_json = lambda to, meta: die() if meta["progress"]["chunks"] == 2 else write(to, meta)
        annotate(engine, path)

    process = in_child(child)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.stat().st_size > read_json(meta_path(path))["progress"]["bytes"] > 0
    annotate(engine, path)
    assert content(path) == content(whole)


def test_killed_at_twenty_random_moments(engine, whole, tmp_path):
    """What is acknowledged is always a prefix of the undisturbed run, and the end is the same, byte for byte."""
    path, kills, rng = tmp_path / "x.jsonl", 0, random.Random(0)
    while kills < 20:
        process = in_child(lambda: annotate(engine, path))
        process.join(rng.uniform(0.01, 0.25))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            if meta_path(path).exists():
                progress = read_json(meta_path(path))["progress"]
                for name, file in (("bytes", path), ("companion_bytes", trees_of(path))):
                    kept = file.read_bytes()[: progress[name]]
                    assert kept == (whole if file == path else trees_of(whole)).read_bytes()[: progress[name]]
        elif process.exitcode == 0:
            assert content(path) == content(whole)
            for file in tmp_path.iterdir():
                file.unlink()
        else:
            pytest.fail(f"exit code {process.exitcode}")
    annotate(engine, path)
    assert content(path) == content(whole)


def claimed(engine, folder, log):
    run = AnnotationRun(*OMEGA, policy="slips", in_flight=3, chunk=1)

    class Noting(ScriptedEngine):
        async def generate(self, request):
            await asyncio.sleep(0.002)
            return await super().generate(request)

    with ClaimFolder(folder, {"seed": 0}, len(PROBLEMS)) as claims:
        finish = claims.finish

        def noted(chunk, files, state):
            finish(chunk, files, state)
            with log.open("a") as file:
                file.write(f"{chunk}\n")

        claims.finish = noted
        run_claimed(annotation_work(PROBLEMS, Workers(Noting(engine.format, slips), TASK.grader), run), claims)


@pytest.mark.parametrize("kill", [False, True])
def test_workers_share_a_run_and_do_every_problem_once(engine, whole, tmp_path, kill):
    folder, log = tmp_path / "parts", tmp_path / "log"
    workers = [in_child(lambda: claimed(engine, folder, log)) for _ in range(3)]
    if kill:
        while not (log.exists() and len(log.read_text().split()) >= 2):
            time.sleep(0.005)
        os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[1:]] == [0, 0]
    done = [int(line) for line in log.read_text().split()]
    assert sorted(set(done)) == list(range(12))
    assert len(done) == 12
    path = tmp_path / "x.jsonl"
    with (
        ClaimFolder(folder, {"seed": 0}, len(PROBLEMS)) as claims,
        ChunkedOutput(path, {"seed": 0}, companion=trees_of(path)) as output,
    ):
        state = gather(claims, output)
    assert path.read_bytes() == whole.read_bytes()
    assert trees_of(path).read_bytes() == trees_of(whole).read_bytes()
    assert state["counts"] == content(whole)[2]["counts"]
    with pytest.raises(ConfigError, match="seed: got 1; accepted: 0, with which"):
        ClaimFolder(folder, {"seed": 1}, len(PROBLEMS))


def test_a_complete_output_is_not_made_again(engine, whole):
    before, asked = content(whole), engine.stats.requests
    annotate(engine, whole)
    assert content(whole) == before
    assert engine.stats.requests == asked


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
