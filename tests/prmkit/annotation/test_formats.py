"""Readers of step-label formats, on the documented examples and on real samples."""

import json

import pytest

from prmkit.annotation.formats import (
    detect_format,
    load_records,
    read_math_aps,
    read_math_shepherd,
    read_prm800k,
)
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError
from prmkit.formats.presets import STEP_FORMATS


def completions(*rated):
    return [{"text": text, "rating": rating, "flagged": False} for text, rating in rated]


def level(chosen, *rated, human=None):
    human = None if human is None else {"text": human, "rating": None, "source": "human"}
    return {"completions": completions(*rated), "human_completion": human, "chosen_completion": chosen}


def prm800k(*levels, finish="solution"):
    return {
        "question": {"problem": "Q?", "ground_truth_answer": "7"},
        "label": {"steps": list(levels), "finish_reason": finish},
    }


@pytest.fixture
def write(tmp_path):
    def write(*records, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records), encoding="utf-8")
        return path

    return write


# -- PRM800K ---------------------------------------------------------------------------------------------------------


def test_prm800k_1x3x2_gives_6_rows_along_the_chosen_path(write):
    path = write(
        prm800k(
            level(0, ("a", 1)),
            level(1, ("b0", -1), ("b1", 0), ("b2", 1)),
            level(1, ("c0", -1), ("c1", 1)),
        )
    )
    rows = list(read_prm800k(path))
    assert [(row.steps, row.values, row.correct) for row in rows] == [
        (("a",), (1.0,), None),
        (("a", "b0"), (1.0, 0.0), None),
        (("a", "b1"), (1.0, 1.0), None),
        (("a", "b2"), (1.0, 1.0), None),
        (("a", "b1", "c0"), (1.0, 1.0, 0.0), None),
        (("a", "b1", "c1"), (1.0, 1.0, 1.0), True),
    ]
    assert {(row.question, row.answer, row.source) for row in rows} == {("Q?", "7", "prm800k")}


def test_prm800k_neutral_value(write):
    path = write(prm800k(level(0, ("a", 0))))
    assert [row.values for row in read_prm800k(path, neutral=0.5)] == [(0.5,)]


def test_prm800k_goes_on_from_the_human_completion_without_a_label_for_it(write):
    path = write(prm800k(level(None, ("bad", -1), human="good"), level(0, ("next", 1)), finish="found_error"))
    assert [(row.steps, row.values, row.correct) for row in read_prm800k(path)] == [
        (("bad",), (0.0,), None),
        (("good", "next"), (None, 1.0), None),
    ]


def test_prm800k_stops_where_nothing_was_continued(write):
    empty = {"completions": None, "human_completion": None, "chosen_completion": None}
    path = write(prm800k(level(None, ("a", -1)), empty, level(0, ("unreachable", 1))))
    assert [row.steps for row in read_prm800k(path)] == [("a",)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (prm800k(level(3, ("a", 1))), r":1: label\.steps\[0\]\.chosen_completion: got 3; accepted: null or 0\.\.0"),
        (prm800k(level(0, ("a", 2))), r"completions\[0\]\.rating: got 2; accepted: -1, 0, 1 or null"),
        (prm800k(level(0, (None, 1))), r"completions\[0\]: text: got None; accepted: a string"),
        ({"question": "Q?", "label": {"steps": []}}, r":1: question: got 'Q\?'; accepted: an object"),
    ],
)
def test_prm800k_refusals(write, record, message):
    with pytest.raises(DataError, match=message):
        list(load_records(write(record)))


def test_prm800k_sample(data_dir):
    path = data_dir / "formats" / "prm800k.jsonl"
    rows = list(load_records(path))
    # Counted by hand from the file: completions a step, up to where nothing was continued.
    per_line = [1 + 5 + 1 + 1 + 1 + 5, 6 + 4, 4 + 7, 5 + 7 + 1, 7 + 6, 12]
    assert len(rows) == sum(per_line)
    whole = [row for row in rows if row.correct]
    assert len(whole) == 4  # four of six trajectories end in a solution
    assert whole[0].steps[1] == "We have $3p+e=1.24$ and $5p+e=1.82$."  # the human's, behind five wrong ones
    assert whole[0].values == (1.0, None, 1.0, 1.0, 1.0, 1.0)
    assert whole[0].answer == "29"


# -- Math-Shepherd ---------------------------------------------------------------------------------------------------


def shepherd(text, signs):
    label = text
    for sign in signs:
        label = label.replace("ки", sign, 1)
    return {"input": text, "label": label, "task": "GSM8K"}


def test_math_shepherd(write):
    text = "Is Step 1: a step? Step 1: 1+1=2 ки\nStep 2: 2-3=1\nso 1 ки\nStep 3: The answer is: 1 ки"
    (row,) = load_records(write(shepherd(text, "+--")))
    assert row.question == "Is Step 1: a step?"
    assert row.steps == ("1+1=2", "2-3=1\nso 1", "The answer is: 1")
    assert row.values == (1.0, 0.0, 0.0)
    assert (row.answer, row.correct, row.separator) == (None, False, None)


def test_math_shepherd_prefix_kept_on_demand_and_unlabelled_end(write):
    path = write(shepherd("Q Step 1: a ки\nStep 2: b", "+"))
    (row,) = read_math_shepherd(path, strip_prefix=False)
    assert (row.steps, row.values, row.correct) == (("Step 1: a", "Step 2: b"), (1.0, None), None)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input": "Q Step 1: a ки", "label": "Q Step 1: b +"}, r":1: label: differs from input at character 0"),
        ({"input": "Q Step 1: a ки", "label": "Q Step 1: a ки"}, r"label: differs from input"),
        ({"input": "Q a ки", "label": "Q a +"}, r"no 'Step 1:' before the first label"),
        ({"input": "Q Step 1: a", "label": "Q Step 1: a"}, r"input: got no 'ки'"),
    ],
)
def test_math_shepherd_refusals(write, record, message):
    with pytest.raises(DataError, match=message):
        list(load_records(write(record)))


def test_math_shepherd_sample_is_rebuilt_by_its_step_format(data_dir):
    """Question, prefix and steps put together by the format's texts give the native input again: nothing doubled."""
    path = data_dir / "formats" / "math-shepherd.jsonl"
    prm = STEP_FORMATS["math-shepherd"].prm
    natives = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = list(load_records(path))
    assert len(rows) == len(natives) == 7
    for row, native in zip(rows, natives, strict=True):
        steps = [prm.before_step.replace("{i}", str(i)) + step + prm.tag for i, step in enumerate(row.steps, 1)]
        squeezed = "".join([row.question, *steps]).replace(" ", "").replace("\n", "")
        assert squeezed == native["input"].replace(" ", "").replace("\n", "")
    assert rows[0].values == (1.0, 1.0, 1.0, 1.0, 0.0)
    assert rows[4].values == (1.0, 0.0, 0.0, 0.0, 0.0)


# -- MATH-APS --------------------------------------------------------------------------------------------------------


def aps(nodes):
    return {"question": "Q.", "final_answer": 5, "question_id": 9, "reasoning_steps": nodes}


def test_math_aps_flat_prefixes_become_paths(write):
    texts = {"": 0.5, "\n\nA.": 0.75, "\n\nA. B": 0.5, "\n\nA. C": 0.0, "\n\nA. B D": 1.0, "\n E": 0.25}
    nodes = [{"solution_prefix": "Q." + text, "mc_value": value} for text, value in texts.items()]
    nodes.append({"solution_prefix": "Q.\n\nA.", "mc_value": 0.25})  # estimated twice
    rows = list(read_math_aps(write(aps(nodes))))
    assert [(row.steps, row.values) for row in rows] == [
        (("A.", "C"), (0.5, 0.0)),
        (("A.", "B", "D"), (0.5, 0.5, 1.0)),
        (("E",), (0.25,)),
    ]
    assert {(row.question, row.answer, row.tree) for row in rows} == {("Q.", "5", 9)}


def test_math_aps_tree_gives_its_root_to_leaf_paths(write):
    tree = {
        "text": "Q.",
        "mc_value": 0.5,
        "children": [
            {
                "text": "A",
                "mc_value": 0.5,
                "children": [{"text": "B", "mc_value": 1.0}, {"text": "C", "mc_value": 0.0}],
            },
            {"text": "D", "mc_value": 0.0, "children": []},
        ],
    }
    assert [(row.steps, row.values) for row in load_records(write(aps(tree)))] == [
        (("A", "B"), (0.5, 1.0)),
        (("A", "C"), (0.5, 0.0)),
        (("D",), (0.0,)),
    ]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"solution_prefix": "other", "mc_value": 1}], r"reasoning_steps\[0\]\.solution_prefix: got 'other'"),
        ([{"solution_prefix": "Q.", "mc_value": 2}], r"reasoning_steps\[0\]\.mc_value: got 2; accepted: a number in"),
        ({"children": [{"text": "A", "mc_value": None}]}, r"reasoning_steps\.children\[0\]\.mc_value: got None"),
        (3, r"reasoning_steps: got 3"),
    ],
)
def test_math_aps_refusals(write, nodes, message):
    with pytest.raises(DataError, match=message):
        list(load_records(write(aps(nodes))))


def test_math_aps_samples_hold_the_question_once_and_every_prefix(data_dir):
    folder = data_dir / "formats"
    rows = list(load_records([folder / "math-aps.jsonl", folder / "math-aps-tree.jsonl"]))
    assert len(rows) == 81 + 7 + 36 + 137 + 85 + 20
    assert not any(row.question in step for row in rows for step in row.steps)
    flat = [json.loads(line) for line in (folder / "math-aps.jsonl").read_text(encoding="utf-8").splitlines()]
    for native in flat:
        mine = {
            ("".join("".join(row.steps[: n + 1]).split()), row.values[n])
            for row in rows
            if row.question == native["question"]
            for n in range(len(row.steps))
        }
        for node in native["reasoning_steps"]:
            text = "".join(node["solution_prefix"][len(native["question"]) :].split())
            same = [
                other["mc_value"]
                for other in native["reasoning_steps"]
                if other["solution_prefix"] == node["solution_prefix"]
            ]
            assert not text or (text, sum(same) / len(same)) in mine


# -- files -----------------------------------------------------------------------------------------------------------


def own(question="q"):
    return StepLabels("p", question, "1", ("a",), (1.0,), (4,), "test", "tiny").to_json()


def test_formats_are_detected_file_by_file(write):
    first = write(own(), name="a.jsonl")
    second = write(shepherd("Q Step 1: a ки", "+"), name="b.jsonl")
    assert [row.source for row in load_records(first.parent)] == ["test", "math-shepherd"]
    assert [row.source for row in load_records([second, first])] == ["math-shepherd", "test"]
    assert [row.source for row in load_records(str(first.parent / "b*"))] == ["math-shepherd"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((own(), "\n", "{oops\n"), r"data\.jsonl:3: malformed JSON line"),
        ((own(), "[1]\n"), r"data\.jsonl:2: expected a JSON object, got list"),
        ((own(), {"steps": 1}), r"data\.jsonl:2: schema: got None"),
        (({"text": "x"},), r"data\.jsonl:1: fields \['text'\] are no known format"),
    ],
)
def test_errors_name_file_and_line(write, lines, message):
    with pytest.raises(DataError, match=message):
        list(load_records(write(*lines)))


def test_missing_file_and_unknown_format(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        load_records(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"format: got 'csv'; accepted: auto \| prmkit \| prm800k"):
        load_records(tmp_path, format="csv")


def test_detect_format_prefers_our_own():
    assert detect_format(own()) == "prmkit"
