"""The step-label record: round trip, and one clear error for everything it refuses."""

import dataclasses
import json

import pytest

from prmkit.annotation.records import RECORD_SCHEMA, StepLabels, question_id
from prmkit.errors import DataError

RECORD = StepLabels(
    problem_id="p1",
    question="1+1-3",
    answer="-1",
    steps=("1+1=2", "2-3=1"),
    values=(0.75, None),
    rollouts=(8, 0),
    source="test",
    policy="tiny",
    tree={"id": 3},
    separator="\n",
    correct=False,
)


def test_round_trip_through_a_json_line():
    line = json.dumps(RECORD.to_json())
    assert StepLabels.from_json(json.loads(line)) == RECORD
    assert json.loads(line)["schema"] == RECORD_SCHEMA == 1


def test_optional_fields_may_be_missing_and_unknown_ones_are_left_out():
    value = {k: v for k, v in RECORD.to_json().items() if k not in ("tree", "separator", "correct")}
    record = StepLabels.from_json({**value, "temperature": 1.0})
    assert record == dataclasses.replace(RECORD, tree=None, separator=None, correct=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [0.5, 1.5]}, r"values\[1\]: got 1\.5; accepted: a number in \[0, 1\], or null"),
        ({"values": [0.5, float("nan")]}, r"values\[1\]: got nan"),
        ({"values": [True, 0.0]}, r"values\[0\]: got True"),
        ({"values": [0.5]}, r"values: got 1 entries for 2 steps"),
        ({"values": 0.5}, r"values: got 0\.5; accepted: a list"),
        ({"rollouts": [8]}, r"rollouts: got 1 entries for 2 steps"),
        ({"rollouts": [8, -1]}, r"rollouts\[1\]: got -1"),
        ({"steps": ["a", 3]}, r"steps\[1\]: got 3; accepted: a string"),
        ({"steps": "ab"}, r"steps: got 'ab'; accepted: a list"),
        ({"question": None}, r"question: got None"),
        ({"correct": "yes"}, r"correct: got 'yes'; accepted: true, false or null"),
        ({"schema": 2}, r"schema: got 2; this version of prmkit reads up to 1\. Update prmkit"),
        ({"schema": None}, r"schema: got None; accepted: 1"),
        ({"schema": "1"}, r"schema: got '1'"),
    ],
)
def test_refusals_name_place_field_and_value(change, message):
    with pytest.raises(DataError, match=r"^data\.jsonl:7: " + message):
        StepLabels.from_json({**RECORD.to_json(), **change}, "data.jsonl:7")


def test_missing_field():
    value = RECORD.to_json()
    del value["values"]
    with pytest.raises(DataError, match=r"^f:1: values: missing"):
        StepLabels.from_json(value, "f:1")


def test_question_id_ignores_surrounding_space_only():
    assert question_id(" 1+1 \n") == question_id("1+1") != question_id("1 +1")
