"""All readers of files that others wrote: every form is read everywhere; a mutation gives one clear line at most."""

import json
import random
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.readers import demonstration_parser, open_mixture, record_parser
from datamodules.sources import SourceConfig
from prmkit.annotation.formats import RecordFormat, detect_format, load_records
from prmkit.annotation.judge import load_verdicts
from prmkit.annotation.records import StepLabels
from prmkit.cli import main
from prmkit.errors import DataError
from prmkit.io import read_json, read_jsonl, read_objects
from prmkit.json_objects import one_object_a_line
from prmkit.search.rows import SearchRow, TraceRecord, read_rows
from prmkit.tasks import get_task

Q, A, B = "How many are 12 - 5?", "Take 5 off.", "That is 8."
TURNS = [("user", f"{Q} Step 1: {A}"), ("assistant", "+"), ("user", f"Step 2: {B}"), ("assistant", "-")]
SHEPHERD = f"{Q} Step 1: {A} {{}}\nStep 2: {B} {{}}"
PRM800K = {
    "question": {"problem": Q, "ground_truth_answer": "7"},
    "label": {
        "steps": [
            {"completions": [{"text": A, "rating": 1}], "human_completion": None, "chosen_completion": 0},
            {"completions": [{"text": B, "rating": -1}], "human_completion": None, "chosen_completion": None},
        ],
        "finish_reason": "found_error",
    },
}
APS = [{"solution_prefix": f"{Q}\n\n{A}", "mc_value": 1.0}, {"solution_prefix": f"{Q}\n\n{A}\n\n{B}", "mc_value": 0.0}]
TREE = {"text": Q, "children": [{"text": A, "mc_value": 1, "children": [{"text": B, "mc_value": 0}]}]}
CHAT = [{"role": "system", "content": "Be right."}, {"role": "user", "content": Q}]
BENCH = {"problem": Q, "steps": [A, B], "final_answer_correct": False}

# What each form says: two steps, the first right, the second wrong.
FORMS = {
    "prmkit": [StepLabels("p", Q, "7", (A, B), (1.0, 0.0), (4, 4), "test", "").to_json()],
    "prm800k": [PRM800K],
    "math-shepherd": [{"input": SHEPHERD.format("ки", "ки"), "label": SHEPHERD.format("+", "-")}],
    "math-aps": [{"question": Q, "reasoning_steps": steps, "final_answer": 7} for steps in (APS, TREE)],
    "trl": [
        {"prompt": prompt, "completions": steps, "labels": labels}
        for prompt in (Q, CHAT)
        for steps in ([A, B], [f"Step 1: {A}", f"Step 2: {B}"], [{"role": "assistant", "content": x} for x in (A, B)])
        for labels in ([True, False], [1, 0], [1, -1])
    ],
    "openr": [
        {"question": Q, "process": text, name: labels}
        for text in (
            f"{A} \n\n\n\n\n{B} \n\n\n\n\n",
            f"Step 1: {A} ки\nStep 2: {B} ки",
            f"Step: 1: {A} ки\nStep: 2: {B} ки",
        )
        for name, labels in (("label", ["+", "-"]), ("labels", [1, 0]))
    ],
    "openrlhf": [{"input": SHEPHERD.format("ки", "ки"), name: ["+", "-"]} for name in ("value", "label", "labels")],
    "rlhflow": [{field: [{"role": r, "content": c} for r, c in TURNS]} for field in ("conversations", "messages")],
    "chain-of-thoughts": [{"question": Q, "chain_of_thoughts": [A, B], "labels": [1, -1]}],
    "extra-0": [{"query": Q, "response": [A, B], "text": f"{Q}\n{A}<extra_0>{B}<extra_0>", "labels": [1, 0]}],
    "processbench": [BENCH | {"label": 1}],
    "prmbench": [
        {"modified_question": Q, "original_process": [A, "No."], "modified_process": [A, B], "error_steps": [2]},
        {"question": Q, "modified_process": [A, B], "error_steps": [2]},
    ],
}  # fmt: skip
SAMPLES = [(name, record) for name, records in FORMS.items() for record in records]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


LAYOUTS = {
    "lines": lines,
    "lines and blanks": lambda records: "\n \n" + lines(records).replace("\n", "\r\n\n"),
    "list": json.dumps,
    "list over lines": lambda records: json.dumps(records, indent=2),
    "one after another": lambda records: "\n".join(json.dumps(record, indent=1) for record in records),
    "on one line": lambda records: " ".join(map(json.dumps, records)),
    "a list a line": lambda records: "\n".join(json.dumps([record]) for record in records),
}


def judged(record):
    return record.question, record.steps, record.values


def test_every_format_has_a_sample():
    assert set(FORMS) == set(get_args(RecordFormat)) - {"auto"}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "record"), SAMPLES, ids=[f"{name}{i}" for i, (name, _) in enumerate(SAMPLES)])
def test_every_form_in_every_layout_is_read_where_labels_enter(name, record, layout, mark, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(mark + LAYOUTS[layout]([record, record]), encoding="utf-8", newline="")
    assert detect_format(record) == name
    found = list(load_records(path))
    assert judged(found[-1]) == (Q, (A, B), (1.0, 0.0))
    half = len(found) // 2
    assert found[:half] == found[half:]
    mixture = open_mixture([SourceConfig(path=str(path))], record_parser)
    assert [mixture.row(index)[1] for index in range(len(mixture))] == found


def test_convert_takes_every_form(tmp_path, capsys):
    for number, (_, record) in enumerate(SAMPLES):
        (tmp_path / f"{number:02}.json").write_text(json.dumps([record], indent=2), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert main(["annotate", "--convert", f"{tmp_path}/*.json", "--to", "prmkit", "--output", str(output)]) == 0
    assert {judged(record) for record in load_records(output) if len(record.steps) == 2} == {(Q, (A, B), (1.0, 0.0))}


@pytest.mark.parametrize(
    ("record", "values"),
    [
        ({"question": Q, "process": f"Step: 1: {A} ки", "label": 1}, (1.0,)),
        ({"question": Q, "process": f"Step: 1: {A} ки", "label": "-"}, (0.0,)),
        (BENCH | {"label": -1}, (1.0, 1.0)),
        (BENCH | {"label": 0}, (0.0, None)),
        ({"question": Q, "modified_process": [A, B], "error_steps": [1]}, (0.0, None)),
        ({"question": Q, "modified_process": [A, B], "error_steps": []}, (1.0, 1.0)),
        ({"question": Q, "modified_process": [A, B], "error_steps": [2, 1]}, (0.0, 0.0)),
        ({"conversations": [{"role": r, "content": c} for r, c in TURNS[:3]]}, (1.0, None)),
        ({"prompt": Q, "completions": [A, B], "labels": [1, None]}, (1.0, None)),
    ],
)
def test_labels_that_are_special(record, values, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(record), encoding="utf-8")
    (found,) = load_records(tmp_path / "x.json")
    assert found.values == values


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (BENCH | {"label": 2}, "label: got 2; accepted: -1 for no error, or a step in 0..1"),
        (BENCH | {"label": True}, "label: got True; accepted: an integer"),
        (
            {"question": Q, "modified_process": [A, B], "error_steps": [0]},
            "error_steps: got 0; accepted: steps in 1..2",
        ),
        (
            {"prompt": Q, "completions": [A, B], "labels": [0, -1]},
            "labels[0]: got 0 beside -1; accepted: 1, -1 or null",
        ),
        ({"prompt": Q, "completions": [A, B], "labels": 1}, "labels: got one label for 2 steps; accepted: one a step"),
        ({"prompt": [CHAT[1]] * 2, "completions": [A], "labels": [1]}, "prompt: got [{'role': 'user'"),
        ({"conversations": [{"role": "assistant", "content": "+"}]}, "conversations: got a turn of 'assistant'"),
        ({"problem": Q, "samples": [{"text": A, "score": 0.9}]}, "holds samples of whole solutions, without labels"),
        ({"problem_id": "p", "traces": []}, "holds rows of `prm search`, without labels of their steps"),
    ],
)
def test_refusals(record, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(lines([record]), encoding="utf-8")
    with pytest.raises(DataError) as error:
        list(load_records(path))
    assert str(error.value).startswith(f"{path}:1: {message}")


def test_published_forms(data_dir):
    """The forms that others publish, and two benchmarks whole: ProcessBench counts from 0, PRMBench from 1."""
    for path in sorted((data_dir / "forms").iterdir()):
        if path.stem == "best_of_n":
            with pytest.raises(DataError, match="without labels of their steps"):
                list(load_records(path))
            continue
        found = list(load_records(path))
        if path.stem == "openr_single_scalar":
            assert [row.values for row in found] == [(1.0,), (0.0,)]
            continue
        wrong = next(row for row in found if len(row.steps) == 2)
        assert (wrong.steps, wrong.values) == (("3*4=12 pens.", "12-5=8 pens."), (1.0, 0.0)), path
    native = read_json(data_dir / "processbench" / "gsm8k.json")
    for row, record in zip(load_records(data_dir / "processbench" / "gsm8k.json"), native, strict=True):
        first = record["label"] if record["label"] >= 0 else len(row.steps)
        assert row.values[:first] == (1.0,) * first
        assert row.values[first:] == ((0.0,) + (None,) * (len(row.steps) - first - 1) if first < len(row.steps) else ())
    path = data_dir / "prmbench" / "confidence_200.jsonl"
    with pytest.raises(DataError, match=r"confidence_200\.jsonl:44: error_steps: got 34; accepted: steps in 1\.\.33"):
        list(load_records(path))
    mixture = open_mixture([SourceConfig(path=str(path), malformed=9)], record_parser)
    rows = [mixture.row(index)[1] for index in range(len(mixture))]
    assert 190 < len(rows) < 200
    assert all(row.values.index(0.0) == 3 for row in rows[:1])


def test_bad_records_of_a_benchmark_are_left_out_on_demand(tmp_path, capsys):
    path, out = tmp_path / "x.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps([BENCH | {"label": label} for label in (1, 5, 0)], indent=1))
    command = ["annotate", "--convert", str(path), "--to", "prmkit", "--output", str(out)]
    assert main(command) == 2
    assert f"error: {path}:11: record 2: label: got 5" in capsys.readouterr().err
    assert main([*command, "--malformed", "1"]) == 0
    assert [row.values for row in load_records(out)] == [(1.0, 0.0), (0.0, None)]


# -- labels and answers that are null ---------------------------------------------------------------------------------


def test_labels_that_are_all_null_are_refused(tmp_path, capsys):
    path, out = tmp_path / "x.jsonl", tmp_path / "out.jsonl"
    path.write_text(lines([{"prompt": Q, "completions": [A], "labels": [None]}] * 3))
    assert main(["annotate", "--convert", str(path), "--to", "prmkit", "--output", str(out)]) == 2
    assert "3 records, but all their labels are null, so nothing is written" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("task", ["jsonl", "math500"])
def test_an_answer_that_is_null_says_so(task, tmp_path):
    path = tmp_path / "x.json"
    name = "problem" if task == "math500" else "question"
    path.write_text(json.dumps([{name: Q, "answer": "7", "unique_id": 1}, {name: Q, "answer": None, "unique_id": 2}]))
    with pytest.raises(DataError, match=r"x\.json:1: record 2: field 'answer' is null; every record needs one"):
        problems_of(task)(path)


# -- every reader, every sample, mutated ------------------------------------------------------------------------------

PROBLEM = {"question": Q, "answer": "7", "solution": "So\n#### 7", "level": 2}
ROW = SearchRow("p", Q, "7", (TraceRecord((A, B), "stop", "8", 0, False, 9, (0.5, 0.25)),), level="1").to_json()
VERDICT = {"key": "k", "judge": "j", "first_error": 1, "reply": "no"}


def records_of(path):
    mixture = open_mixture([SourceConfig(path=str(path))], record_parser)
    return [mixture.row(index)[1] for index in range(len(mixture))]


def demonstrations_of(path):
    mixture = open_mixture([SourceConfig(path=str(path))], demonstration_parser)
    return [mixture.row(index)[1] for index in range(len(mixture))]


def problems_of(task, **options):
    def read(path):
        opened = get_task(task, str(path), **options)
        return list(opened.problems(opened.splits[0]))

    return read


def converted(path):
    from prmkit.cli.convert import convert

    convert([str(path)], path.with_name("converted.jsonl"))


LABELS = [record for _, record in SAMPLES]
READERS = {
    "load_records": (lambda path: list(load_records(path)), LABELS),
    "record_parser": (records_of, LABELS),
    "convert": (converted, LABELS),
    "demonstration_parser": (demonstrations_of, [PROBLEM]),
    "jsonl": (problems_of("jsonl", level_field="level"), [PROBLEM]),
    "gsm8k": (problems_of("gsm8k"), [PROBLEM | {"answer": "So\n#### 7"}]),
    "math500": (problems_of("math500"), [{"problem": Q, "answer": "7", "unique_id": "a", "level": 1}]),
    "math": (problems_of("math"), [{"problem": Q, "final_answer": "7"}]),
    "bbh": (problems_of("bbh"), [{"examples": [{"input": Q, "target": "7"}]}]),
    "read_rows": (lambda path: list(read_rows(path)), [ROW]),
    "load_verdicts": (load_verdicts, [VERDICT]),
}
ODD = [
    "null", "true", "-1", "1e999", "NaN", "9" * 5000, "0.5", '""', '"\\ud800"', '"+"', "[]", "[null]", "{}", '{"a": 1}',
    "[" * 300 + "]" * 300, "[" * 100_000, "[" * 100_000 + "]" * 100_000,
]  # fmt: skip
BYTES = [b"", b"\xff", b"\xed\xa0\x80", b"\x00", b'"', b"{", b"]", b"\n", b",", b"\\u"]


NOTHING = (
    "no rows",
    "holds no problems",
    "nothing is written",
    "holds a labelled step",
)  # of a file of nothing


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, name))


def planted(record, path, odd):
    """The record's text with something odd at a place; None takes the place away."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    if not path:
        return odd or ""
    if odd is None:
        del inner[path[-1]]
        return json.dumps(copy)
    inner[path[-1]] = "@@"
    return json.dumps(copy).replace('"@@"', odd)


def only_a_result_or_one_line(read, path):
    try:
        read(path)
        return
    except DataError as error:
        said = str(error)
    assert said.startswith(f"{path}:") or any(word in said for word in NOTHING), said
    assert "\n" not in said
    assert len(said) < 700


@pytest.mark.parametrize("name", READERS)
def test_anything_odd_at_any_place_is_a_result_or_one_line_with_its_place(name, tmp_path):
    read, samples = READERS[name]
    path = tmp_path / "data.json"
    draw = random.Random(0)
    cases = [(record, place, odd) for record in samples for place in places(record) for odd in (None, *ODD)]
    for record, place, odd in draw.sample(cases, min(len(cases), 400)):
        path.write_text(planted(record, place, odd) + "\n" + json.dumps(record) + "\n", encoding="utf-8")
        only_a_result_or_one_line(read, path)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_bytes_that_are_changed_are_a_result_or_one_line_with_its_place(name, tmp_path_factory, data):
    read, samples = READERS[name]
    path = tmp_path_factory.mktemp("fuzz") / "data.json"
    record = data.draw(st.sampled_from(samples))
    text = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]([record] * 2).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 8, len(text))))
        text = text[:start] + data.draw(st.sampled_from(BYTES)) + text[end:]
    path.write_bytes(text)
    only_a_result_or_one_line(read, path)


@pytest.mark.parametrize("name", READERS)
def test_lone_surrogates_never_get_behind_a_reader(name, tmp_path):
    read, samples = READERS[name]
    path = tmp_path / "data.json"
    for number, record in enumerate(samples):
        text = json.dumps(record).replace(json.dumps(Q)[:-1], json.dumps(Q)[:-1] + " \\uD83D \\ud83d\\ude00 ")
        for layout in (text, f"[{text}]")[: 1 if name == "bbh" else 2]:
            path.write_text(layout)
            found = read(path)
            assert str(found).encode() is not None, (name, number)  # writable
            if name != "load_verdicts" and found:
                assert "\ufffd \U0001f600" in str(found)
            (record_again,) = read_jsonl(path)
            json.dumps(record_again, ensure_ascii=False).encode()


# -- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_are_those_of_the_text(layout, tmp_path):
    records = [{"n": i, "text": "é" * i, "deep": [[{"a": ']}\\"'}]]} for i in range(5)]
    path = tmp_path / "x"
    path.write_text("\ufeff" + LAYOUTS[layout](records), encoding="utf-8")
    found = list(read_objects(path))
    assert [record for _, record in found] == records
    text = path.read_text(encoding="utf-8-sig").splitlines()
    for number, (where, record) in enumerate(found, start=1):
        file, line, *of_many = where.split(":")
        assert (file, of_many) == (str(path), [] if one_object_a_line(path) else [f" record {number}"])
        rest = "".join(text[int(line) - 1 :]).replace(" ", "")
        assert f'"n":{record["n"]}' in rest[: rest.index("deep")] or layout in ("list", "on one line")


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_blocks_change_nothing(block, tmp_path, monkeypatch):
    monkeypatch.setattr("prmkit.json_objects._BLOCK", block)
    records = [{"a": "é€😀" * i, "b": [1e-3, -12, None, True, "\\u00e9\\n"]} for i in range(9)]
    path = tmp_path / "x"
    for layout in LAYOUTS.values():
        path.write_text(layout(records), encoding="utf-8")
        assert list(read_jsonl(path)) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', "2: record 2: malformed JSON: Expecting ':' delimiter"),
        ('[{"a": 1},\n 7]', "2: record 2: expected a JSON object, got '7]'"),
        ('[{"a": 1}\n {"a": 2}]', "2: record 2: expected ',' or ']', got '{\"a\": 2}]'"),
        ('[{"a": 1},\n', "2: record 1: the list that begins in line 1 has no end"),
        ('{\n"a": 1}\n{"b":\n2', "4: record 2: malformed JSON: Expecting ',' delimiter"),
        ('{"a": 1}\n[1]\n', "2: expected a JSON object, got list"),
        ('{"a": 1}\n{"a": "x\n', "2: malformed JSON line: Invalid control character"),
        ("[" * 100_000, "1: record 1: expected a JSON object"),
        ('{"a": ' + "[" * 100_000 + "\n", "1: malformed JSON line: nested too deeply"),
        ('[{"a": %s}]' % ("9" * 5000), "1: record 1: malformed JSON: an integer of more than 4,300 digits"),
    ],
)
def test_malformed_layouts(text, message, tmp_path):
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        list(read_objects(path))
    assert str(error.value).startswith(f"{path}:{message}")


def test_a_long_list_is_held_one_object_at_a_time(tmp_path):
    import tracemalloc

    path = tmp_path / "x.json"
    record = json.dumps({"text": "x" * 1000})
    with Path(path).open("w") as file:
        file.write("[" + ",\n".join([record] * 20_000) + "]")
    tracemalloc.start()
    count = sum(1 for _ in read_objects(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 8 << 20, f"{peak} bytes of {path.stat().st_size}"
