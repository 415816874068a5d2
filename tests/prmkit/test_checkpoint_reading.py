"""What a checkpoint may hold: plain values come back as they are, others are refused before they are saved."""

import argparse
import datetime
import decimal
import enum
import fractions
import functools
import os
import uuid
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch

from prmkit.checkpoints import newest_checkpoint
from prmkit.checkpoints.reading import UnreadableCheckpointError, check_readable, load_plain

PLAIN = {
    "date": datetime.date(2024, 11, 30),
    "moment": datetime.datetime(2024, 11, 30, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    "clock": datetime.time(12, 30),
    "span": datetime.timedelta(seconds=3),
    "path": Path("a/b"),
    "pure path": PurePosixPath("a"),
    "other path": PureWindowsPath("a"),
    "decimal": decimal.Decimal("1.50"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=7),
    "frozen": frozenset({1}),
    "set": {1, "a"},
    "complex": 1j,
    "bytes": b"ab",
    "range": range(3),
    "counter": Counter("aab"),
    "ordered": OrderedDict(a=1),
    "float64": np.float64(1.5),
    "float32": np.float32(1.5),
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "array": np.arange(3),
    "nested": [{"a": (np.int32(1), Path("x"), [None, 2.5])}],
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_are_saved_and_loaded_as_they_are(name, tmp_path):
    content = {"callbacks": {"Mine": {"value": PLAIN[name]}}, "state_dict": {}, "global_step": 1}
    check_readable(content, "a.ckpt")
    torch.save(content, tmp_path / "a.ckpt")
    found = load_plain(tmp_path / "a.ckpt", mmap=True)["callbacks"]["Mine"]["value"]
    assert type(found) is type(PLAIN[name])
    assert np.array_equal(found, PLAIN[name]) if name == "array" else found == PLAIN[name]
    assert newest_checkpoint([tmp_path]) == tmp_path / "a.ckpt"


class Code:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


class Colour(enum.Enum):
    RED = 1


ODD = {
    "enum": Colour.RED,
    "namespace": argparse.Namespace(a=1),
    "function": len,
    "lambda": lambda: 1,
    "partial": functools.partial(int),
    "default": defaultdict(list),
    "objects": np.array([1, "a"], dtype=object),
    "code": Code(),
}


@pytest.mark.parametrize("name", ODD)
def test_other_values_are_refused_by_key_before_they_are_saved(name):
    content = {"loops": {"a": [1, 2]}, "callbacks": {"Mine": {"fine": 1, "own": [0, {"deep": ODD[name]}]}}}
    key = r"a\.ckpt: not written, callbacks\.Mine\.own\.1\.deep is a "
    with pytest.raises(UnreadableCheckpointError, match=key + rf".*{type(ODD[name]).__qualname__}"):
        check_readable(content, "a.ckpt")


def test_the_newest_is_refused_and_not_skipped_when_it_cannot_be_loaded(tmp_path):
    for step, own in ((1, None), (2, argparse.Namespace())):
        torch.save({"state_dict": {}, "global_step": step, "own": own}, tmp_path / f"{step}.ckpt")
        os.utime(tmp_path / f"{step}.ckpt", (step, step))
    with pytest.raises(UnreadableCheckpointError, match=r"2\.ckpt: refused.*argparse\.Namespace.*--weights_only false"):
        newest_checkpoint([tmp_path])
    assert newest_checkpoint([tmp_path], weights_only=False) == tmp_path / "2.ckpt"


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_of_another_kind_is_named_as_one(tmp_path, mmap):
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(RuntimeError, match="it is cut off, or another kind of file"):
        load_plain(tmp_path / "training.json", mmap=mmap)
