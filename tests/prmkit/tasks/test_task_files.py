import json
import subprocess
import sys

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.tasks import TASKS, get_task


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_gsm8k(data_dir):
    task = get_task("gsm8k", str(data_dir / "gsm8k"))
    assert task.splits == ("test", "train")
    assert (len(task.problems("test")), len(task.problems("train"))) == (1319, 7473)
    first = task.problems("test", 1)[0]
    assert (first.id, first.answer) == ("gsm8k/test/0", "18")
    assert first.solution.endswith("She makes 9 * 2 = $18 every day at the farmer’s market.\n#### 18")


def test_math(data_dir, caplog):
    task = get_task("math", str(data_dir / "math"))
    assert len(task.problems("train")) == 7498
    assert "math/train: skipped 2 of 7500 records" in caplog.text
    test = get_task("math500", str(data_dir / "math")).problems("test")
    assert len(test) == 500
    assert test[0].id == "math500/test/test/precalculus/807.json"
    assert test[0].level == "Level 2"
    assert test[0].solution.startswith("We have that $r")
    assert not {p.question for p in test} & {p.question for p in task.problems("train")}


def test_bbh(data_dir):
    file = data_dir / "bbh" / "multistep_arithmetic_two.json"
    problems = get_task("bbh", str(file)).problems("test")
    assert len(problems) == 250
    assert problems == get_task("bbh", str(file.parent)).problems("test")
    assert (problems[0].question, problems[0].answer) == ("((-1 + 2 + 9 * 5) - (-2 + -4 + -4 * -7)) =", "24")


def test_bbh_grades_what_the_specialist_writes():
    task = get_task("bbh", "unread.json")
    specialist = get_task("multistep_arithmetic")
    for problem in specialist.problems("test", 20):
        answer = task.grader.extract(problem.solution)
        assert answer == problem.answer
        assert task.grader.grade([(answer, problem.answer)])[0].correct
        assert task.grader.extract(problem.solution.rsplit("\n", 1)[0]) is None


def test_slices_read_no_further_than_asked(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "a", "answer": 1}\n\n{"question": "b", "answer": 2.5}\n{"question": broken\n')
    task = get_task("jsonl", str(path))
    assert [p.answer for p in task.problems("test", 2)] == ["1", "2.5"]
    for _ in range(2):  # an error does not make the data look complete
        with pytest.raises(DataError, match=r"test\.jsonl:4: malformed JSON line"):
            task.problems("test")
    assert [p.question for p in task.problems("test", 1, offset=1)] == ["b"]


def test_fields_by_name(tmp_path):
    record = {"q": "1+1?", "gold": "2", "uid": "x7", "work": "1+1=2", "grade": 3}
    path = write_jsonl(tmp_path / "dev.jsonl", record)
    names = {"question_field": "q", "answer_field": "gold", "id_field": "uid", "level_field": "grade"}
    task = get_task("jsonl", str(path), solution_field="work", **names)
    problem = task.problems("dev")[0]
    assert (problem.id, problem.solution, problem.level, problem.source) == ("jsonl/dev/x7", "1+1=2", "3", "jsonl/dev")


def test_a_folder_has_a_split_for_every_file(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", {"question": name, "answer": name})
    task = get_task("hub", str(tmp_path), splits=["train"])
    assert get_task("jsonl", str(tmp_path)).splits == ("a", "b")
    assert [p.question for p in task.problems("train", 2)] == ["a", "b"]  # `datasets` puts a folder's files together


@pytest.mark.parametrize(
    ("records", "options", "match"),
    [
        ([], {}, r"split 'test' holds no problems"),
        ([{"question": "a"}], {}, r"test\.jsonl:1: no field 'answer'; the record has: question"),
        ([{"question": "a", "answer": ""}], {}, r"test\.jsonl:1: the answer .* is empty"),
        ([{"question": " ", "answer": "1"}], {}, r"test\.jsonl:1: the question .* is empty"),
        ([{"question": "a", "answer": [1]}], {}, r"test\.jsonl:1: field 'answer' must be a text or a number, got \["),
        (
            [{"question": "a", "answer": "1", "id": 1}] * 2,
            {"id_field": "id"},
            r"test\.jsonl:2: the id .* appears twice",
        ),
    ],
)
def test_bad_records(tmp_path, records, options, match):
    path = write_jsonl(tmp_path / "test.jsonl", *records)
    with pytest.raises(DataError, match=match):
        get_task("jsonl", str(path), **options).problems("test")


def test_bad_places(tmp_path):
    (tmp_path / "bad.json").write_text('{"cases": []}')
    with pytest.raises(DataError, match="no such file or folder"):
        get_task("gsm8k", str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"no file train\.jsonl or test\.jsonl"):
        get_task("gsm8k", str(tmp_path))
    with pytest.raises(DataError, match=r"missing\.jsonl: no such file"):
        get_task("math500", str(tmp_path / "missing.jsonl")).problems("test")
    with pytest.raises(DataError, match="field 'examples'"):
        get_task("bbh", str(tmp_path / "bad.json")).problems("test")
    with pytest.raises(DataError, match=r"bad\.json:1: no field 'problem'; the record has: cases"):
        get_task("math", str(tmp_path / "bad.json")).problems("train")
    with pytest.raises(DataError, match="cannot load this dataset"):
        get_task("hub", str(tmp_path / "missing")).problems("test")
    path = write_jsonl(tmp_path / "test.jsonl", {"question": "a", "answer": "7"})
    with pytest.raises(DataError, match=r"test\.jsonl:1: the answer has no last line '#### n'"):
        get_task("gsm8k", str(path)).problems("test")


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (("aime",), {}, r"task\.name: got 'aime'; accepted: accumulator \| multistep_arithmetic \| gsm8k"),
        (("accumulator", "x.jsonl"), {}, r"task\.data"),
        (("jsonl",), {}, r"task\.data: got None"),
        (("accumulator",), {"ops": 3}, r"task\.ops: got 3; accepted: for accumulator: min_ops"),
        (("jsonl", "x"), {"grader": "llm"}, r"task\.grader: got 'llm'|no such file"),
        (("jsonl", "x"), {"tolerance": 2}, r"grader\.tolerance: got 2|no such file"),
        (("jsonl", "x"), {"grader": "exact", "tolerance": 0.1}, r"task\.tolerance: got 0\.1|no such file"),
        (("bbh", "x"), {"extractors": ["magic"]}, r"grader\.extractors: got 'magic'"),
    ],
)
def test_bad_arguments(arguments, options, match):
    with pytest.raises((ConfigError, DataError), match=match):
        get_task(*arguments, **options)


def test_unknown_split(tmp_path):
    task = get_task("jsonl", str(write_jsonl(tmp_path / "test.jsonl", {"question": "a", "answer": "1"})))
    with pytest.raises(ConfigError, match=r"task\.split: got 'train'; accepted: test"):
        task.problems("train")


def test_importing_tasks_and_graders_imports_nothing_heavy():
    heavy = ("torch", "transformers", "tokenizers", "datasets", "sympy", "math_verify")
    code = (
        "import sys, prmkit.tasks, prmkit.grading; prmkit.tasks.get_task('accumulator').problem('test', 0);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert len(TASKS) == 8
