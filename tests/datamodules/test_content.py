"""What a position in the data means is its content: names and sizes are not enough."""

import json
from pathlib import Path

import pytest

from datamodules.batching import BatchConfig, Shards
from datamodules.readers import demonstration_parser, open_mixture, record_parser
from datamodules.sources import SourceConfig, open_source
from datamodules.streams import open_streams, streams_content
from prmkit.errors import DataError

ROWS = [{"question": f"f+5,{i}", "solution": "f" * (i % 3 + 1)} for i in range(9)]
EDITED = [*ROWS[:4], {"question": "f+5,4", "solution": "gg"}, *ROWS[5:]]  # of the same length


def text(rows, layout):
    return json.dumps(rows, indent=1) if layout == "list" else "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("layout", ["lines", "list"])
@pytest.mark.parametrize(
    "source", [{"kind": "jsonl"}, {"kind": "hub", "name": "json"}, {"kind": "task", "name": "jsonl"}]
)
def test_content_is_equal_where_the_rows_are(source, layout, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def content(name, rows, **values):
        path = tmp_path / name / "train.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text(rows, layout))
        given = source if source["kind"] != "task" else {**source, "options": {"answer_field": "question"}}
        return open_source(SourceConfig(**given, path=str(path), **values)).content()

    one = content("a", ROWS)
    assert content("b", ROWS) == one
    assert content("c", EDITED) != one
    assert content("a", EDITED) != one
    assert content("d", ROWS, offset=1) != one


def test_content_of_a_built_in_task_is_that_of_its_options():
    def content(**values):
        return open_source(SourceConfig(kind="task", name="accumulator", count=100, **values)).content()

    same, *others = [{}, {"seed": 1}, {"split": "test"}, {"offset": 1}, {"options": {"max_ops": 5}}]
    assert content(**same) == content()
    assert len({content(**values) for values in (same, *others)}) == 5


def test_curation_is_part_of_the_content(tmp_path):
    from prmkit.annotation.curate import CurationParams, curate

    path = tmp_path / "x.jsonl"
    path.write_text(text([{"prompt": "Q", "completions": ["a"], "labels": [1]}] * 3, "lines"))
    plain, curated = (open_mixture([SourceConfig(path=str(path))], record_parser) for _ in range(2))
    assert plain.content() == curated.content()
    curated.curate(lambda records: curate(records, CurationParams(deduplicate=True)))
    assert plain.content() != curated.content()


@pytest.mark.parametrize("batch", [BatchConfig(rows=2), BatchConfig(max_tokens=40)], ids=["rows", "tokens"])
@pytest.mark.parametrize("layout", ["lines", "list"])
def test_a_fit_in_mid_epoch_refuses_data_that_was_edited(sft_feeds, batch, layout, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text(ROWS, layout))
    first = sft_feeds(path, batch)
    batches = iter(first)
    next(batches)
    middle = first.state_dict()
    list(batches)
    end = first.state_dict()
    sft_feeds(path, batch).load_state_dict(middle)
    path.write_text(text(EDITED, layout))
    with pytest.raises(DataError, match=r"middle of an epoch with data_content = .*Resume with the same data"):
        sft_feeds(path, batch).load_state_dict(middle)
    sft_feeds(path, batch).load_state_dict(end)  # between epochs other data are allowed


@pytest.fixture
def sft_feeds(bound):
    from types import SimpleNamespace

    from datamodules.encoding import SFTCodec
    from datamodules.feeds import Feeds
    from datamodules.loader import WorkerConfig

    root = SimpleNamespace(root_device=SimpleNamespace(type="cpu"))
    trainer = SimpleNamespace(
        **{"global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1, "callbacks": [], "overfit_batches": 0},
        **{"limit_train_batches": 1.0, "fast_dev_run": False, "strategy": root},
    )

    def make(path: Path, batch: BatchConfig):
        sources = {"train": [SourceConfig(path=str(path))], "val": []}
        feeds = Feeds(sources, demonstration_parser, batch, None, WorkerConfig(), 0, None)
        return feeds.train(trainer, SFTCodec(bound, 64))

    return make


def test_streams_know_their_local_files(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(text(ROWS, "lines"))
    config = SourceConfig(kind="hub", name="json", path=str(path), streaming=True, count=9)
    before = streams_content([config])
    plan = open_streams([config], demonstration_parser, BatchConfig(rows=2), Shards(), seed=0)
    plan.identify(before)
    state = plan.state(0, 1)
    path.write_text(text(EDITED, "lines"))
    assert streams_content([config]) != before
    plan.identify(streams_content([config]))
    with pytest.raises(DataError, match="data_content"):
        plan.check_state(state, mid_epoch=True)


def test_a_source_without_any_label_is_refused_but_to_predict(bound, tmp_path):
    from datamodules.step_labels import StepLabelDataModule

    path = tmp_path / "x.jsonl"
    path.write_text(text([{"prompt": "Q", "completions": ["a"], "labels": [None]}] * 3, "lines"))
    sources = [SourceConfig(path=str(path))]
    data = StepLabelDataModule(train=sources, val=sources, test=sources, predict=sources)
    for stage in ("validate", "test"):
        with pytest.raises(DataError, match="x: none of its 3 records has a labelled step: all labels are null"):
            data._feeds.open(stage)
    data._feeds.open("predict")
