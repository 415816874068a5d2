"""`predictions.jsonl` holds the rows of all processes in order of rank, and appears when it is whole."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from callbacks.predictions import PredictionsWriter
from prmkit.errors import ConfigError, DataError
from prmkit.io import read_jsonl


def trainer(rank: int, world: int = 2):
    strategy = SimpleNamespace(barrier=lambda name: None)
    return SimpleNamespace(global_rank=rank, world_size=world, is_global_zero=rank == 0, strategy=strategy)


def test_rows_of_all_ranks_are_joined_at_the_end(tmp_path):
    path = tmp_path / "deep" / "predictions.jsonl"
    ranks = [(trainer(rank), PredictionsWriter(path)) for rank in range(2)]
    for process, writer in ranks:
        writer.on_predict_start(process, None)
    for batch in range(2):
        for process, writer in reversed(ranks):
            rows = [{"id": f"{process.global_rank}:{batch}:{row}", "scores": [0.5, 1.0]} for row in range(2)]
            writer.on_predict_batch_end(process, None, rows, None, batch)
            assert not path.exists()
    for process, writer in reversed(ranks):
        writer.on_predict_end(process, None)
    ids = [row["id"] for row in read_jsonl(path)]
    assert ids == [f"{rank}:{batch}:{row}" for rank in range(2) for batch in range(2) for row in range(2)]
    assert [file.name for file in path.parent.iterdir()] == ["predictions.jsonl"]


def test_a_new_run_replaces_what_a_killed_one_left(tmp_path):
    path = tmp_path / "predictions.jsonl"
    for name in ("killed", "whole"):
        writer = PredictionsWriter(path)
        writer.on_predict_start(trainer(0, 1), None)
        writer.on_predict_batch_end(trainer(0, 1), None, [{"id": name}], None, 0)
    writer.on_predict_end(trainer(0, 1), None)
    assert [row["id"] for row in read_jsonl(path)] == ["whole"]


@pytest.mark.parametrize("outputs", [None, 0.5, ["text"], "text"])
def test_other_outputs_are_refused(tmp_path, outputs):
    writer = PredictionsWriter(tmp_path / "predictions.jsonl")
    writer.on_predict_start(trainer(0, 1), None)
    with pytest.raises(DataError, match=r"predict_step returned .*a sequence of mappings, one a row"):
        writer.on_predict_batch_end(trainer(0, 1), None, outputs, None, 0)


@pytest.mark.parametrize("fields", [("id", "scores"), ()])
def test_files_that_no_prediction_left_are_refused(tmp_path, fields):
    path = tmp_path / "predictions.jsonl"
    module, writer = SimpleNamespace(prediction_fields=fields), PredictionsWriter(path)
    writer.setup(trainer(0, 1), module, "predict")
    for text, ours in (('{"id": "a", "scores": [1.0]}\n', bool(fields)), ('{"id": "a", "question": "q"}\n', False)):
        path.write_text(text)
        with nullcontext() if ours else pytest.raises(ConfigError, match=r"predictions: got .* move it away"):
            writer.setup(trainer(0, 1), module, "predict")
        assert path.read_text() == text
