"""`prm grade`: verdicts on files as users have them, an own grader, and the attack."""

import json

import pytest

from prmkit.cli import main

ACCEPTS_ALL = """
from prmkit.records import Grade

class Careless:
    def extract(self, text):
        return text[-1:]
    def grade(self, pairs):
        return [Grade(answer is not None) for answer, _ in pairs]
    def group(self, answers):
        return list(range(len(answers)))
"""


@pytest.fixture
def file(tmp_path):
    def write(*records, name="records.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


def run(capsys, *arguments):
    status = main(["grade", *arguments])
    return status, *capsys.readouterr()


def test_verdicts_and_reasons(capsys, file):
    path = file(
        {"gold": "1/2", "answer": "0.5"},
        {"gold": "18", "solution": "So the answer is 18 dollars."},
        {"gold": "x^2+y^2=5", "answer": "5"},
        {"answer": "7", "completion": "I cannot say."},
    )
    status, out, _ = run(capsys, path)
    lines = out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines] == ["right", "right", "wrong", "wrong", "result"]
    assert "number is not relation" in lines[2]
    assert "no answer was found" in lines[3]
    status, out, err = run(capsys, path, "--json", "--wrong")
    result = json.loads(out)
    assert (status, result["records"], result["correct"], len(result["verdicts"])) == (0, 4, 2, 2)
    assert "2 of 4 right" in err


def test_a_list_of_json_options_and_a_task(capsys, file, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"gold": "3.14", "answer": "3.1415"}]))
    assert run(capsys, str(path), "--json")[1].count('"correct": 0')
    assert run(capsys, str(path), "--tolerance", "0.01", "--json")[1].count('"correct": 1')
    hashes = file({"gold": "6", "solution": "\\boxed{5}\n#### 6"})
    assert "1 of 1" in run(capsys, hashes, "--task", "gsm8k")[1]
    assert "0 of 1" in run(capsys, hashes, "--extractors", "boxed,hashes")[1]


def test_attack_finds_the_holes_of_an_own_grader(capsys, file, tmp_path, monkeypatch):
    (tmp_path / "careless_grader.py").write_text(ACCEPTS_ALL)
    monkeypatch.syspath_prepend(tmp_path)
    path = file({"gold": "42", "question": "6 times 7?"}, {"gold": "x^2+y^2=5"})
    status, out, _ = run(capsys, "--attack", path, "--json")
    result = json.loads(out)
    assert (status, result["accepted"], result["targets"]) == (0, 0, 2)
    assert result["tried"] > 200
    status, out, _ = run(capsys, "--attack", path, "--grader", "careless_grader.Careless")
    assert status == 1
    assert "accepted  '0'  gold '42'  constant" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["FILE", "--limit", "0"], "--limit: got 0; accepted: an integer of at least 1"),
        (["FILE", "--tolerance", "2"], "grader.tolerance: got 2"),
        (["FILE", "--extractors", "boxed,magic"], "grader.extractors: got 'magic'"),
        (["FILE", "--task", "magic"], "--task: got 'magic'"),
        (["FILE", "--task", "gsm8k", "--tolerance", "0.1"], "--tolerance: got 0.1; accepted: no value beside --task"),
        (["FILE", "--task", "gsm8k", "--grader", "a.B"], "--grader: got 'a.B'; accepted: one of --task and --grader"),
        (["FILE", "--grader", "nowhere.Grader"], "--grader: got 'nowhere.Grader'"),
        (["FILE", "--grader", "collections.Counter"], "a class with extract, grade and group"),
        (["EMPTY"], "holds no record"),
        (["NO_GOLD"], "no gold answer; accepted: a field gold"),
        (["NO_ANSWER"], "nothing to grade; accepted: a field answer"),
        (["--attack", "NO_GOLD"], "no gold answer; accepted: a field gold"),
    ],
)
def test_mistakes_end_in_one_line(capsys, file, arguments, words):
    files = {
        "FILE": file({"gold": "1", "answer": "1"}),
        "EMPTY": file(name="empty.jsonl"),
        "NO_GOLD": file({"nothing": 1}, name="no_gold.jsonl"),
        "NO_ANSWER": file({"gold": "1"}, name="no_answer.jsonl"),
    }
    status, _, err = run(capsys, *(files.get(argument, argument) for argument in arguments))
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
