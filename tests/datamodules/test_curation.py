"""Records curated as the data module reads them: files as a whole, streams block by block, evaluation not at all."""

import json
import logging
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from datamodules.batching import BatchConfig
from datamodules.sources import SourceConfig
from datamodules.step_labels import StepLabelDataModule
from prmkit.annotation.curate import CurationParams
from prmkit.annotation.judge import Verdict, solution_key
from prmkit.annotation.records import StepLabels
from prmkit.annotation.targets import first_error


def record(*values, question="f+5,7"):
    n = len(values)
    return StepLabels("p", question, "C", ("f+5=C",) * n, values, (8,) * n, "t", "", None, "\n")


ROWS = [
    record(1.0),
    record(0.5, 0.0),
    record(0.5),  # as the first
    record(1.0, 0.0, 0.0),
    record(1.0, 1.0, 1.0, 1.0),
]


@pytest.fixture
def seen(bound, write_jsonl):
    """Ids and soft targets of an epoch of training, and the number of rows of evaluation."""

    def seen(curation, batch=BatchConfig(rows=1), rows=ROWS, **source):  # noqa: B008 - frozen
        values = {"path": write_jsonl([row.to_json() for row in rows]), "label": "x", **source}
        train, val = [SourceConfig(**values)], [SourceConfig(path=values["path"])]
        data = StepLabelDataModule(
            train, val, batch=batch, max_length=64, curation=curation,
            epoch_rows=4 if values.get("weight") else None,
        )  # fmt: skip
        data.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(bound_format=bound), accumulate_grad_batches=1, global_rank=0,
            world_size=1, limit_train_batches=1.0, overfit_batches=0.0, fast_dev_run=False, callbacks=[],
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )  # fmt: skip
        data.setup("fit")
        rows = {
            id: int(mask.sum())
            for made in data.train_dataloader()
            for id, mask in zip(made.ids, made.position_mask, strict=True)
        }
        return rows, sum(len(made.ids) for made in data.val_dataloader())

    return seen


@pytest.mark.parametrize("batch", [BatchConfig(rows=1), BatchConfig(max_tokens=64, drop_last=False)])
def test_files_are_curated_as_a_whole_and_evaluation_is_not(seen, batch, caplog):
    with caplog.at_level(logging.INFO, "datamodules"):
        rows, n_val = seen(CurationParams(deduplicate=True), batch)
    assert rows == {"x:0": 1, "x:1": 2, "x:3": 2, "x:4": 4}
    assert n_val == 5
    assert "train: 4 of 5 records kept (1 duplicates)" in caplog.text
    assert seen(CurationParams(), batch)[0].keys() == {"x:0", "x:1", "x:2", "x:3", "x:4"}


def test_consensus_with_a_file_of_verdicts(seen, tmp_path):
    verdicts = [Verdict(solution_key(row), "j", first_error(row.values)) for row in ROWS[2:4]]
    (tmp_path / "v").write_text("".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))
    params = CurationParams(verdicts=str(tmp_path / "v"))
    assert seen(params)[0].keys() == {"x:0", "x:2", "x:3"}
    assert seen(CurationParams(deduplicate=True, verdicts=params.verdicts))[0].keys() == {"x:0", "x:3"}


def test_merged_labels_are_what_is_trained_on(seen):
    """0.0 over 8 rollouts and 1.0 over 8 are 0.5: a right step in the merged record, so the next one counts."""
    wrong, right = record(0.0, 1.0), record(1.0, 1.0)
    assert seen(CurationParams(), rows=[wrong, right])[0] == {"x:0": 1, "x:1": 2}
    assert seen(CurationParams(deduplicate=True), rows=[wrong, right])[0] == {"x:0": 2}


def test_streams_are_curated_block_by_block(seen, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    stream = {"kind": "hub", "name": "json", "streaming": True, "weight": 1.0}
    assert seen(CurationParams(deduplicate=True), **stream)[0].keys() == {"x:0", "x:1", "x:3", "x:4"}
    # In blocks of two lines the two alike do not meet.
    assert "x:2" in seen(CurationParams(deduplicate=True), shuffle_buffer=2, **stream)[0]
