"""Judges: what they are asked, how strictly they are read, and verdict files that survive a kill."""

import asyncio
import json

import pytest

from prmkit.annotation.judge import (
    EngineJudge,
    JudgePrompt,
    Opinion,
    ScorerJudge,
    Verdict,
    load_verdicts,
    run_judge,
    solution_key,
    verdicts_path,
)
from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import NO_ERROR
from prmkit.engines.scripted import ScriptedEngine
from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.jobs.chunks import ChunkedOutput
from prmkit.records import SamplingParams
from prmkit.scoring.table import TableScorer


class Letters:
    """A tokenizer of characters."""

    eos_token_id, bos_token_id, unk_token_id, chat_template = 0, None, None, None

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) for letter in text]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


@pytest.fixture
def engine():
    from prmkit.formats.presets import STEP_FORMATS

    bound = BoundStepFormat(STEP_FORMATS["plain"], Letters())
    return lambda script: ScriptedEngine(bound, script)


def record(name, n_steps=2):
    steps = tuple(f"{name} step {i}" for i in range(n_steps))
    return StepLabels("p", f"question {name}", "secret", steps, (0.125,) * n_steps, (8,) * n_steps, "test", "")


# -- reading and asking -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("I checked.\nFirst wrong step: 2", 1),
        ("First wrong step: 0\n\n", NO_ERROR),
        ("First wrong step: 1\nNo, rather\n  First wrong step:3 ", 2),
        ("First wrong step: 4", None),  # there are three
        ("First wrong step: 2.", None),
        ("First wrong step: two", None),
        ("**First wrong step: 2**", None),
        ("First wrong step: 2\nI hope this helps.", None),
        ("The first wrong step: 2", None),
        ("First wrong step: -1", None),
        ("2", None),
        ("", None),
    ],
)
def test_only_a_last_line_that_names_a_step_is_an_answer(reply, expected):
    assert JudgePrompt().parse(reply, 3) == expected


def test_the_request_holds_question_and_numbered_steps_and_nothing_else_is_filled_in():
    text = JudgePrompt().render("What is {steps}?", ("one {question}", "two"))
    assert "Problem:\nWhat is {steps}?\n" in text
    assert "[1] one {question}\n[2] two\n" in text
    assert "First wrong step: N" in text
    own = JudgePrompt("{question}|{steps}|{answer}", "{i}={step};", "Wrong:")
    assert own.render("q", ("a", "b")) == "q|1=a;\n2=b;|Wrong:"
    assert own.parse("Wrong: 1", 2) == 0


def test_prompts_are_checked():
    for values, field in (
        ({"template": "{steps}"}, "template"),
        ({"step": "{i}"}, "step"),
        ({"answer": " "}, "answer"),
    ):
        with pytest.raises(ConfigError, match=rf"judge\.prompt\.{field}: got"):
            JudgePrompt(**values)


def test_a_prompted_engine_judges_without_seeing_labels_or_answer(engine):
    seen = []

    def script(prefix, index, seed):
        seen.append((prefix, index))
        return "Fine so far.\nFirst wrong step: 2"

    opinion = asyncio.run(EngineJudge(engine(script), "me").judge("q", ("a", "b")))
    assert opinion == Opinion(1, "Fine so far.\nFirst wrong step: 2")
    ((prefix, index),) = seen
    assert index == 0
    assert "secret" not in prefix
    assert "0.125" not in prefix


def test_a_reply_that_was_cut_off_is_no_answer(engine):
    script = {JudgePrompt().render("q", ["a"] * 12) + "\n": "First wrong step: 12"}
    judge = EngineJudge(engine(script), "me", sampling=SamplingParams(max_tokens=19, temperature=0.0))
    opinion = asyncio.run(judge.judge("q", ["a"] * 12))
    assert opinion == Opinion(None, "First wrong step: 1")


def test_a_prm_judges_by_its_first_low_score():
    scorer = TableScorer({"a": 0.9, "b": 0.5, "c": 0.1})
    judge = ScorerJudge(scorer, "prm")
    assert asyncio.run(judge.judge("q", ("a", "c", "b"))) == Opinion(1, "0.900 0.100 0.500")
    assert asyncio.run(judge.judge("q", ("a", "b"))).first_error == 1  # at most the threshold
    assert asyncio.run(ScorerJudge(scorer, "prm", 0.4).judge("q", ("a", "b"))).first_error == NO_ERROR
    with pytest.raises(ConfigError, match=r"judge\.threshold: got 1\.0"):
        ScorerJudge(scorer, "prm", 1.0)


# -- files ------------------------------------------------------------------------------------------------------------


class Named:
    """Answers by the question's name: a number, none, or an error; counts what it is asked."""

    name = "named"

    def __init__(self, fail=()):
        self.asked, self.fail = [], fail

    async def judge(self, question, steps):
        await asyncio.sleep(0)
        self.asked.append(question)
        if question in self.fail:
            raise ValueError("too long")
        return Opinion(None if "x" in question else len(self.asked[0]) % 2, "why")


ROWS = [record("a"), record("b"), record("a"), record("x"), record("d"), record("none", 0)]


def test_every_distinct_solution_has_one_verdict(tmp_path):
    judge = Named()
    with ChunkedOutput(tmp_path / "v", {}) as output:
        state = run_judge(ROWS, judge, output, in_flight=2)
    assert judge.asked == [f"question {name}" for name in "abxd"]
    assert (state["verdicts"], state["unparsable"], state["failures"]) == (4, 1, [])
    verdicts = load_verdicts(tmp_path / "v")
    assert list(verdicts) == [solution_key(ROWS[i]) for i in (0, 1, 3, 4)]
    assert verdicts[solution_key(ROWS[2])] == Verdict(solution_key(ROWS[0]), "named", 0, "why")
    assert verdicts[solution_key(ROWS[3])].first_error is None


def test_one_failure_is_told_and_left_out_and_all_failing_ends_the_run(tmp_path):
    with ChunkedOutput(tmp_path / "v", {}) as output:
        state = run_judge(ROWS, Named(fail=["question b"]), output, in_flight=2)
    assert state["failures"] == [{"key": solution_key(ROWS[1]), "error": "ValueError: too long"}]
    assert len(load_verdicts(tmp_path / "v")) == state["verdicts"] == 3
    with (
        ChunkedOutput(tmp_path / "w", {}) as output,
        pytest.raises(DataError, match="all of the first 2 solutions failed; ValueError: too long"),
    ):
        run_judge(ROWS, Named(fail=["question a", "question b"]), output, in_flight=2)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    class Killed(BaseException):
        pass

    rows = [record(str(i)) for i in range(9)]
    with ChunkedOutput(tmp_path / "whole", {}) as output:
        run_judge(rows, Named(), output, in_flight=2)

    done = []

    def kill():
        done.append(1)
        if len(done) == 6:  # two chunks are written, and the third is in work
            raise Killed

    with pytest.raises(Killed), ChunkedOutput(tmp_path / "killed", {}) as output:
        run_judge(rows, Named(), output, in_flight=2, on_verdict=kill)
    judge = Named()
    with ChunkedOutput(tmp_path / "killed", {}) as output:
        state = run_judge(rows, judge, output, in_flight=2)
        assert run_judge(rows, judge, output, in_flight=2) == state
    assert len(judge.asked) == 5
    assert state["verdicts"] == 9
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_verdict_files(tmp_path):
    path = verdicts_path(tmp_path / "steps.jsonl")
    assert path.name == "steps.jsonl.verdicts"  # no *.jsonl: a folder's records are all of those
    path.write_text(json.dumps({"key": "k", "judge": "j", "first_error": 2}) + "\n")
    assert load_verdicts(path) == {"k": Verdict("k", "j", 2)}
    for line, message in (
        ({"key": "k"}, r"verdicts:1: got fields \['key'\]; accepted: a verdict"),
        ({"key": "k", "judge": "j", "first_error": -2}, r"verdicts:1: first_error: got -2; accepted: an index"),
    ):
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(DataError, match=message):
            load_verdicts(path)
    with ChunkedOutput(tmp_path / "v", {}) as output, pytest.raises(ConfigError, match=r"judge\.in_flight: got 0"):
        run_judge([], Named(), output, in_flight=0)
