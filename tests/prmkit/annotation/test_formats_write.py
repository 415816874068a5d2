"""Writers of step-label formats: what is written reads back, native samples come out again, losses are counted."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from prmkit.annotation.formats import WriteReport, load_records, parse_records, read_prm800k, write_records
from prmkit.annotation.records import StepLabels, question_id
from prmkit.errors import ConfigError, DataError

NATIVE = {
    "prm800k.jsonl": "prm800k",
    "math-shepherd.jsonl": "math-shepherd",
    "math-aps.jsonl": "math-aps",
    "math-aps-tree.jsonl": "math-aps-tree",
}


def record(*rated, question="Q?", **fields):
    steps, values = zip(*rated, strict=True)
    made = StepLabels(question_id(question), question, None, steps, values, (0,) * len(steps), "test", "")
    return replace(made, **fields)


def as_written(record):
    return record.question, record.steps, record.values


@pytest.fixture
def rewrite(tmp_path):
    """Writes records; gives the report, the JSON lines, and the records read back."""

    def rewrite(records, format, **options):
        path = tmp_path / "out.jsonl"
        report = write_records(iter(records), path, format, **options)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return report, lines, list(load_records(path))

    return rewrite


# -- native samples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "format"), NATIVE.items())
def test_samples_read_written_and_read_are_the_same_records(data_dir, rewrite, name, format):
    records = list(load_records(data_dir / "formats" / name))
    report, lines, again = rewrite(records, format)
    assert again == records
    assert report == WriteReport(records=len(records), lines=len(lines))
    assert len(lines) == len((data_dir / "formats" / name).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", NATIVE)
def test_samples_survive_our_own_format_and_the_tree(data_dir, rewrite, name):
    records = list(load_records(data_dir / "formats" / name))
    assert rewrite(records, "prmkit")[2] == records
    labelled = [record for record in records if None not in record.values]
    _, _, again = rewrite(labelled, "math-aps-tree")
    assert list(map(as_written, again)) == list(map(as_written, labelled))


def natives(data_dir, name):
    return [json.loads(line) for line in (data_dir / "formats" / name).read_text(encoding="utf-8").splitlines()]


def test_math_shepherd_sample_comes_out_letter_for_letter_but_for_the_task(data_dir, rewrite):
    native = natives(data_dir, "math-shepherd.jsonl")
    _, lines, _ = rewrite(load_records(data_dir / "formats" / "math-shepherd.jsonl"), "math-shepherd")
    assert lines == [{"input": line["input"], "label": line["label"]} for line in native]


def test_prm800k_sample_comes_out_but_for_raters_neutral_ratings_and_unrated_ends(data_dir, rewrite):
    _, lines, _ = rewrite(load_records(data_dir / "formats" / "prm800k.jsonl"), "prm800k")
    for line, native in zip(lines, natives(data_dir, "prm800k.jsonl"), strict=True):
        expected = native["label"]["steps"]
        for number, level in enumerate(expected):
            for completion in level["completions"] or []:
                del completion["flagged"]
                completion["rating"] = 1 if completion["rating"] == 0 else completion["rating"]
            if level["human_completion"]:
                del level["human_completion"]["flagged"]
            if level["completions"] is None:
                del expected[number:]
                expected[-1]["human_completion"] = None  # nobody rated what follows it
        assert line["label"]["steps"] == expected
        solved = native["label"]["finish_reason"] == "solution"
        assert line["label"]["finish_reason"] == ("solution" if solved else None)
        assert line["question"] == {name: native["question"][name] for name in ("problem", "ground_truth_answer")}


def test_math_aps_sample_comes_out_but_for_the_bare_question_and_white_space(data_dir, rewrite):
    _, lines, _ = rewrite(load_records(data_dir / "formats" / "math-aps.jsonl"), "math-aps")
    for line, native in zip(lines, natives(data_dir, "math-aps.jsonl"), strict=True):
        values: dict[str, list[float]] = {}
        for node in native["reasoning_steps"]:
            values.setdefault(node["solution_prefix"], []).append(node["mc_value"])
        values.pop(native["question"], None)
        expected = Counter(("".join(prefix.split()), sum(found) / len(found)) for prefix, found in values.items())
        assert expected == Counter(
            ("".join(node["solution_prefix"].split()), node["mc_value"]) for node in line["reasoning_steps"]
        )
        assert all(node["solution_prefix"].count(native["question"]) == 1 for node in line["reasoning_steps"])
        assert {**line, "reasoning_steps": 0} == {**native, "reasoning_steps": 0}


def test_math_aps_tree_sample_comes_out_but_for_the_value_of_the_question(data_dir, rewrite):
    _, lines, _ = rewrite(load_records(data_dir / "formats" / "math-aps-tree.jsonl"), "math-aps-tree")
    for line, native in zip(lines, natives(data_dir, "math-aps-tree.jsonl"), strict=True):
        native["reasoning_steps"]["mc_value"] = None
        assert line == native


# -- worked examples --------------------------------------------------------------------------------------------------


def test_prm800k_1x3x2_gives_its_6_rows_again(tmp_path, rewrite):
    rows = [
        record(("a", 1.0)),
        record(("a", 1.0), ("b0", 0.0)),
        record(("a", 1.0), ("b1", 1.0)),
        record(("a", 1.0), ("b2", 1.0)),
        record(("a", 1.0), ("b1", 1.0), ("c0", 0.0)),
        record(("a", 1.0), ("b1", 1.0), ("c1", 1.0), correct=True),
    ]
    _, (line,), again = rewrite(rows, "prm800k")
    levels = line["label"]["steps"]
    assert [len(level["completions"]) for level in levels] == [1, 3, 2]
    assert [level["chosen_completion"] for level in levels] == [0, 1, 1]
    assert [as_written(row) for row in again] == [as_written(row) for row in rows]
    assert [row.correct for row in again] == [None] * 5 + [True]


def test_prm800k_human_steps_trajectories_and_monte_carlo_values(rewrite):
    rows = [
        record(("bad", 0.0)),
        record(("human", None), ("next", 0.25), correct=True),
        record(("human", None), ("other", 0.0)),
        record(("human", None), ("next", 0.25), ("behind a solution: another trajectory", 1.0)),
        record(("a", 0.5), ("b", 0.0), question="R?"),
    ]
    report, lines, again = rewrite(rows, "prm800k")
    assert [line["question"]["problem"] for line in lines] == ["Q?", "Q?", "R?"]
    assert lines[0]["label"]["steps"][0]["human_completion"]["text"] == "human"
    assert [(row.question, row.steps, row.values) for row in again] == [
        ("Q?", ("bad",), (0.0,)),
        ("Q?", ("human", "next"), (None, 1.0)),
        ("Q?", ("human", "other"), (None, 0.0)),
        ("Q?", ("human", "next"), (None, 1.0)),  # rated on the way of the second trajectory
        ("Q?", ("human", "next", "behind a solution: another trajectory"), (None, 1.0, 1.0)),
        ("R?", ("a",), (1.0,)),
        ("R?", ("a", "b"), (1.0, 0.0)),
    ]
    assert report.hardened == 3
    assert rewrite(rows[-1:], "prm800k", threshold=0.5)[2][0].values == (0.0,)


def test_tree_keeps_repeated_records_beginnings_of_others_and_differing_values(rewrite):
    rows = [
        record(("a", 0.5)),
        record(("a", 0.5), ("b", 1.0)),
        record(("a", 0.5), ("b", 1.0)),
        record(("a", 0.25), ("b", 1.0)),
        record(("c", 1.0)),
        record(("a", 0.5), ("d", 0.0)),
        record(("x", 1.0), question="R?"),
    ]
    _, lines, again = rewrite(rows, "math-aps-tree")
    assert list(map(as_written, again)) == list(map(as_written, rows))
    assert len(lines) == 2
    assert [child["text"] for child in lines[0]["reasoning_steps"]["children"]] == ["a", "a", "a", "c", "a"]


def test_flat_leaves_out_repetitions_and_tells_siblings_from_continuations(rewrite):
    rows = [record(("a", 0.5)), record(("a", 0.5), ("b", 1.0)), record(("ab", 0.0)), record(("ab", 0.0))]
    report, (line,), again = rewrite(rows, "math-aps")
    assert [node["mc_value"] for node in line["reasoning_steps"]] == [0.5, 1.0, 0.0]
    assert list(map(as_written, again)) == list(map(as_written, rows[1:3]))
    assert report.repeated_records == 2


def test_values_of_one_prefix_are_averaged_by_the_flat_form(rewrite):
    _, _, again = rewrite([record(("a", 0.5), ("b", 1.0)), record(("a", 1.0), ("c", 0.0))], "math-aps")
    assert [row.values for row in again] == [(0.75, 1.0), (0.75, 0.0)]


def test_unlabelled_steps_are_right_before_right_ones_or_join_the_next_labelled_one(rewrite):
    gaps = [("a", None), ("b", 0.5), ("c", None), ("d", 0.0), ("e", None), ("f", None)]
    rows = [record(*gaps), record(("a", None))]
    report, _, (row,) = rewrite(rows, "math-shepherd")
    assert (row.steps, row.values) == (("a", "b", "c\nd", "e\nf"), (1.0, 1.0, 0.0, None))
    assert (report.joined_steps, report.dropped_records, report.hardened) == (1, 1, 1)
    report, _, (row,) = rewrite(rows, "trl")
    assert (row.steps, row.values, report.dropped_steps) == (("a", "b", "c\nd"), (1.0, 1.0, 0.0), 1)
    for format in ("math-aps", "math-aps-tree"):
        report, _, (row,) = rewrite(rows, format)
        assert (row.steps, row.values) == (("a\n\nb", "c\n\nd"), (0.5, 0.0))
        assert (report.joined_steps, report.dropped_steps, report.dropped_records) == (2, 1, 1)


def test_random_records_come_back_from_every_format_as_far_as_it_holds_them(rewrite):
    """Trees whole and in order; right and wrong of every step elsewhere; nothing that was not there before."""
    draw = random.Random(0)
    rows = []
    for question in range(12):
        for _ in range(draw.randrange(1, 8)):
            steps = [f"{draw.choice('ab')}{depth}" for depth in range(draw.randrange(1, 5))]
            values = [draw.choice([0.0, 0.125, 0.5, 1.0]) for _ in steps]
            rows.append(record(*zip(steps, values, strict=True), question=f"Question {question}?"))
    hard = [(row.question, row.steps, tuple(float(value > 0) for value in row.values)) for row in rows]
    assert [as_written(row) for row in rewrite(rows, "math-aps-tree")[2]] == [as_written(row) for row in rows]
    for format in ("trl", "math-shepherd"):
        assert [as_written(row) for row in rewrite(rows, format)[2]] == hard
    again = {as_written(row) for row in rewrite(rows, "prm800k")[2]}
    prefixes = {(q, steps[:end], values[:end]) for q, steps, values in hard for end in range(1, len(steps) + 1)}
    assert set(hard) <= again <= prefixes
    report, _, flat = rewrite(rows, "math-aps")
    assert len(flat) + report.repeated_records == len(rows)
    assert {row.steps for row in flat} <= {row.steps for row in rows}


def test_everything_of_our_own_format_is_kept(rewrite):
    full = StepLabels("p", "q", "1", ("a",), (0.3,), (8,), "omegaprm", "tiny", {"id": 3}, "\n", False)
    assert rewrite([full, full], "prmkit")[2] == [full, full]


@pytest.mark.parametrize(
    ("rows", "format", "message"),
    [
        ([record(("a ки b", 1.0))], "math-shepherd", r"record 1 .*math-shepherd cannot hold its text"),
        ([record(("then Step 1: b", 1.0))], "math-shepherd", "cannot hold its text"),
        ([record(("a", 1.0)), record(("a\n\nb", 1.0))], "math-aps", "Write math-aps-tree"),
    ],
)
def test_texts_that_a_format_cannot_hold_are_refused(tmp_path, rows, format, message):
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    with pytest.raises(DataError, match=message):
        write_records(rows, path, format)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_wrong_options(tmp_path):
    with pytest.raises(ConfigError, match=r"format: got 'csv'; accepted: prmkit \| prm800k"):
        write_records([], tmp_path / "x", "csv")
    with pytest.raises(ConfigError, match=r"threshold: got 1\.0"):
        write_records([], tmp_path / "x", "trl", threshold=1.0)


# -- published flat sets ----------------------------------------------------------------------------------------------


def test_trl_rows(rewrite):
    plain = {"prompt": "Q? ", "completions": ["a", "Step 2: b "], "labels": [True, False]}
    (row,) = parse_records(plain, "auto", "x:1")
    assert as_written(row) == ("Q?", ("a", "Step 2: b"), (1.0, 0.0))
    assert (row.source, row.correct) == ("trl", None)
    numbered = {"prompt": "Q?", "completions": ["Step 1: a", "step 2:b"], "labels": [1, None]}
    assert as_written(parse_records(numbered, "auto", "x:1")[0]) == ("Q?", ("a", "b"), (1.0, None))
    _, lines, again = rewrite([row], "trl")
    assert lines == [{"prompt": "Q?", "completions": ["a", "Step 2: b"], "labels": [True, False]}]
    assert again == [row]


@pytest.mark.parametrize("tag", ["ки", "\n\n\n\n\n"])
@pytest.mark.parametrize("labels", [{"label": ["+", "-"]}, {"labels": [1, 0]}, {"label": [1.0, 0.0]}])
def test_openr_rows(tag, labels):
    (row,) = parse_records({"question": "Q?", "process": f"Step 1: a {tag}\nStep 2: b {tag}", **labels}, "auto", "x:1")
    assert as_written(row) == ("Q?", ("a", "b"), (1.0, 0.0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"prompt": "Q", "completions": ["a"], "labels": []},
            "x:1: labels: got 0 labels for 1 steps; accepted: one a step",
        ),
        ({"prompt": "Q", "completions": ["a"], "labels": [2]}, r"x:1: labels\[0\]: got 2; accepted: a number"),
        ({"prompt": "Q", "completions": [1], "labels": [1]}, r"x:1: completions\[0\]: got 1; accepted: a string"),
        ({"prompt": 1, "completions": ["a"], "labels": [1]}, "x:1: prompt: got 1; accepted: a string"),
        ({"question": "Q", "process": "a", "label": []}, "x:1: process: got no step tag"),
        ({"question": "Q", "process": "aки", "label": ["?"]}, r"x:1: label\[0\]: got '\?'"),
    ],
)
def test_refusals_of_flat_sets(line, message):
    with pytest.raises(DataError, match=message):
        parse_records(line, "auto", "x:1")


@pytest.mark.parametrize(
    ("text", "signs", "expected"),
    [
        ("Q is this. ки\nStep 1: a ки\nStep 2: b ки", "-+-", ("Q is this.", ("a", "b"), (1.0, 0.0))),
        ("How many? a ки\nStep 2: b ки", "+-", ("How many?", ("a", "b"), (1.0, 0.0))),
        ("Q step 1: a ки", "+", ("Q", ("a",), (1.0,))),
    ],
)
def test_slips_of_the_published_math_shepherd_file(text, signs, expected):
    label = text
    for sign in signs:
        label = label.replace("ки", sign, 1)
    assert as_written(parse_records({"input": text, "label": label}, "auto", "x:1")[0]) == expected


def test_a_written_file_is_read_by_the_named_reader(tmp_path):
    path = tmp_path / "x.jsonl"
    write_records([record(("a", 1.0), ("b", 0.0))], path, "prm800k")
    assert [row.steps for row in read_prm800k(path)] == [("a",), ("a", "b")]
