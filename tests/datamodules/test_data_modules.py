"""The data modules: configuration, what they refuse, and what they say in the log."""

import logging
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.batches import PairBatch
from datamodules.batching import BatchConfig
from datamodules.encoding import TargetConfig
from datamodules.sft import SFTDataModule
from datamodules.sources import SourceConfig
from datamodules.step_labels import StepLabelDataModule
from prmkit.annotation.records import StepLabels
from prmkit.errors import ConfigError, DataError
from prmkit.steps import get_step_format


def trainer(bound, accumulate=1, rank=0, world=1, **changes):
    """The part of a Trainer that data modules look at."""
    values = {
        "lightning_module": SimpleNamespace(bound_format=bound),
        "accumulate_grad_batches": accumulate,
        "global_rank": rank,
        "world_size": world,
        "limit_train_batches": 1.0,
        "overfit_batches": 0.0,
        "fast_dev_run": False,
        "callbacks": [],
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
    }
    return SimpleNamespace(**{**values, **changes})


def attach(data, bound, **changes):
    data.trainer = trainer(bound, **changes)
    return data


def record(*values, separator="\n", steps=None):
    steps = steps or ("f+5=C",) * len(values)
    return StepLabels("p", "f+5,7", "C", steps, values, (1,) * len(steps), "t", "", None, separator).to_json()


def task(count, split="train", **values):
    return SourceConfig(kind="task", name="accumulator", split=split, count=count, **values)


def test_sft_from_a_task_with_a_share_of_the_harder_split(bound):
    sources = [task(300, weight=9.0), task(100, "hard", weight=1.0)]
    data = attach(
        SFTDataModule(sources, [task(7, "validation")], batch=BatchConfig(max_tokens=512), epoch_rows=200), bound
    )
    data.setup("fit")
    for _ in range(2):
        batches = list(data.train_dataloader())
        assert all(batch.input_ids.numel() <= 512 for batch in batches)
        counts = Counter(id.split(":")[0] for batch in batches for id in batch.ids)
        assert counts["accumulator/hard"] == pytest.approx(20, abs=6)
        assert sum(counts.values()) == pytest.approx(200, abs=20)
    (whole,) = list(data.val_dataloader())
    assert len(whole.ids) == 7
    assert data.test_dataloader() == []


def test_sft_rows_that_do_not_fit_are_counted(bound, write_jsonl, caplog):
    rows = [{"question": "f+5,7", "solution": "f" * n} for n in (3, 30, 3, 30, 3)]
    source = [SourceConfig(path=write_jsonl(rows))]
    with caplog.at_level(logging.WARNING):
        for batch in (BatchConfig(rows=5), BatchConfig(max_tokens=40, drop_last=False)):
            data = attach(SFTDataModule(source, batch=batch, max_length=20), bound)
            used = [id for made in data.train_dataloader() for id in made.ids]
            assert sorted(used) == ["rows:0", "rows:2", "rows:4"]
    assert "train, epoch 0: 2 of 5 rows refused" in caplog.text
    assert "train: 2 of 5 rows refused" in caplog.text


def test_step_labels_real_formats(data_dir):
    """Every native sample goes through a byte-level tokenizer; labels stand where the records have them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<eos>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bound = get_step_format("plain").bind(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"))
    lines = {"prm800k": 2, "math-shepherd": 7, "math-aps": 1, "math-aps-tree": 1}
    folder = data_dir / "formats"
    sources = [SourceConfig(path=str(folder / f"{name}.jsonl"), count=count) for name, count in lines.items()]
    data = StepLabelDataModule(sources, val=sources, batch=BatchConfig(rows=8, drop_last=False), max_length=2000)
    attach(data, bound)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batches = list(loader)
        ids = [id for batch in batches for id in batch.ids if id]
        assert Counter(id.split(":")[0] for id in ids)["math-shepherd"] == 7
        assert len(set(ids)) == len(ids)
        assert all(batch.position_mask.any() for batch in batches)
        for batch in batches:
            at = batch.input_ids.gather(1, batch.positions)[batch.position_mask]
            assert set(at.tolist()) == set(bound.tag_ids)
            assert set(batch.targets[batch.position_mask].tolist()) <= {0.0, 1.0}


def test_pairs(bound, write_jsonl):
    source = [SourceConfig(path=write_jsonl([record(1.0, 0.0), record(1.0, 0.5, 0.0)]))]
    targets = TargetConfig("soft", mask_after_first_error=False, pairs=True)
    data = attach(StepLabelDataModule(source, batch=BatchConfig(rows=1), targets=targets), bound, accumulate=2)
    batches = list(data.train_dataloader())
    assert all(isinstance(batch, PairBatch) for batch in batches)
    assert [batch.window_count for batch in batches] == [4, 4]


@pytest.mark.parametrize("batch", [BatchConfig(rows=1), BatchConfig(max_tokens=64)])
def test_steps_of_another_separator_are_refused_before_training(bound, write_jsonl, batch):
    source = [SourceConfig(path=write_jsonl([record(1.0), record(1.0, separator="\n\n")]))]
    data = attach(StepLabelDataModule(source, batch=batch, max_length=64), bound)
    with pytest.raises(DataError, match=r"rows:1: separator: got '\\n\\n'; the step format 'accumulator|plain' has"):
        data.train_dataloader()


@pytest.mark.parametrize("batch", [BatchConfig(rows=1), BatchConfig(max_tokens=64)])
def test_data_without_any_label_is_refused(bound, write_jsonl, batch):
    source = [SourceConfig(path=write_jsonl([record(None), record(None)]))]
    data = attach(StepLabelDataModule(source, batch=batch, max_length=64), bound)
    with pytest.raises(DataError, match=r"none of its 2 records has a labelled step|no row is left to train on"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{broken\n"], r"rows\.jsonl:1: malformed JSON line"),
        ([], r"rows\.jsonl: no rows"),
        ([{**record(1.0), "values": [2]}], r"rows\.jsonl:1: values\[0\]: got 2; accepted: a number in \[0, 1\]"),
        ([{**record(1.0), "schema": 9}], r"rows\.jsonl:1: schema: got 9"),
    ],
)
def test_bad_files_show_in_setup(bound, write_jsonl, lines, message):
    data = StepLabelDataModule([SourceConfig(path=write_jsonl(lines))])
    with pytest.raises(DataError, match=message):
        data.setup("fit")


def test_missing_files_and_stages(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        StepLabelDataModule([SourceConfig(path=str(tmp_path / "none.jsonl"))]).setup("fit")
    with pytest.raises(ConfigError, match=r"data\.predict: got \[\]; accepted: at least one source, to predict"):
        StepLabelDataModule().setup("predict")
    with pytest.raises(ConfigError, match=r"data\.train: got \[\]; accepted: at least one source, to fit"):
        SFTDataModule().setup("fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 4, "limit_train_batches": 6}, r"trainer\.limit_train_batches: got 6; .* divisible by .* = 4"),
        ({"overfit_batches": 2}, r"trainer\.overfit_batches: got 2; accepted: 0\. Use source\.count"),
    ],
)
def test_trainer_settings_that_break_windows_are_refused(bound, changes, message):
    data = attach(SFTDataModule([task(64)], batch=BatchConfig(rows=2)), bound, **changes)
    with pytest.raises(ConfigError, match=message):
        data.train_dataloader()


def test_schedules_of_accumulation_are_refused(bound):
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    data = attach(SFTDataModule([task(64)]), bound, callbacks=[GradientAccumulationScheduler({0: 2})])
    with pytest.raises(ConfigError, match=r"a fixed trainer\.accumulate_grad_batches"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SFTDataModule(max_length=1), r"data\.max_length: got 1"),
        (lambda: SFTDataModule(overlong="keep"), r"data\.overlong: got 'keep'; accepted: refuse \| truncate"),
        (lambda: SFTDataModule(packing=True), r"data\.packing: got True; .*data\.batch\.max_tokens"),
        (lambda: StepLabelDataModule(max_length=0), r"data\.max_length: got 0"),
        (lambda: StepLabelDataModule([task(3)]), r"data\.train\.kind: got 'task'; accepted: jsonl \| hub"),
        (lambda: SFTDataModule(val=[task(3, weight=1.0)]), r"data\.val\.weight: got \[1\.0\]; accepted: null"),
        (lambda: SFTDataModule([task(3)], epoch_rows=3), r"epoch_rows: got 3"),
        (lambda: SFTDataModule([task(3, weight=1.0)], epoch_rows=0), r"epoch_rows: got 0"),
        (
            lambda: SFTDataModule([SourceConfig(kind="hub", name="json", path="x", streaming=True), task(3)]),
            r"data\.train\.streaming: got \[True, False\]; accepted: the same for every source",
        ),
    ],
)
def test_config_is_checked_on_construction_without_reading_anything(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_yaml_of_a_data_module(tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(
        """
        train:
          - {kind: task, name: accumulator, count: 10, weight: 0.9}
          - {kind: jsonl, path: more/*.jsonl, weight: 0.1}
        batch: {rows: null, max_tokens: 512}
        workers: {num_workers: 2}
        max_length: 128
        """
    )
    parser = ArgumentParser()
    parser.add_class_arguments(SFTDataModule, None)
    made = parser.instantiate_classes(parser.parse_path(str(config)))
    assert made.train == [task(10, weight=0.9), SourceConfig(path="more/*.jsonl", weight=0.1)]
    assert made.batch == BatchConfig(max_tokens=512)
    assert (made.workers.num_workers, made.max_length, made.seed) == (2, 128, 0)
    parser = ArgumentParser()
    parser.add_class_arguments(StepLabelDataModule, None)
    made = parser.instantiate_classes(parser.parse_args(['--train=[{"path": "a"}]', "--targets.kind=soft"]))
    assert (made.train, made.targets) == ([SourceConfig(path="a")], TargetConfig("soft"))
