"""Codecs: what counts in a row, what is cut, what is refused."""

import pytest
import torch

from datamodules.encoding import PRMCodec, SFTCodec, TargetConfig
from datamodules.readers import Demonstration
from prmkit.annotation.records import StepLabels
from prmkit.batches import PairBatch, PRMBatch
from prmkit.errors import ConfigError, DataError

ROW = Demonstration("f+5g*3,7", "f+5=C\ng*3=4")


def record(values, steps=None, separator=None, correct=None):
    steps = steps or tuple(f"{chr(97 + i)}+1={i}" for i in range(len(values)))
    return StepLabels("p", "f+5,7", "C", steps, values, (1,) * len(steps), "t", "", None, separator, correct)


# -- SFT -------------------------------------------------------------------------------------------------------------


def test_sft_counts_the_solution_and_its_end(bound):
    batch = SFTCodec(bound, 64).collate([SFTCodec(bound, 64).encode("a", ROW)])
    ids = batch.input_ids[0]
    counted = ids[batch.loss_mask[0]].tolist()
    assert counted[-1] == bound.eos_id
    assert bound.decode(counted) == ROW.solution
    assert bound.decode(ids[~batch.loss_mask[0]].tolist()) == "f+5g*3,7\n"
    assert batch.count == len(ROW.solution) + 1
    assert batch.position_ids is None


def test_sft_padding_counts_nowhere(bound):
    codec = SFTCodec(bound, 64)
    short, long = (codec.encode(name, Demonstration("f+5,7", text)) for name, text in (("s", "f"), ("l", "f+5=C")))
    batch = codec.collate([short, long])
    assert batch.ids == ("s", "l")
    assert batch.attention_mask.sum(1).tolist() == [len(short.input_ids), len(long.input_ids)]
    assert not batch.loss_mask[~batch.attention_mask].any()
    assert batch.count == 2 + 6


def test_sft_overlong(bound):
    length = len(SFTCodec(bound, 64).encode("a", ROW).input_ids)
    assert SFTCodec(bound, length).encode("a", ROW) is not None
    assert SFTCodec(bound, length - 1).encode("a", ROW) is None
    cut = SFTCodec(bound, length - 1, "truncate").encode("a", ROW)
    assert (len(cut.input_ids), cut.truncated) == (length - 1, True)
    assert bound.eos_id not in cut.input_ids[cut.n_prompt :]
    n_prompt = len(ROW.question) + 1
    assert SFTCodec(bound, n_prompt, "truncate").encode("a", ROW) is None
    assert len(SFTCodec(bound, n_prompt + 1, "truncate").encode("a", ROW).input_ids) == n_prompt + 1


def test_sft_packed(bound):
    codec = SFTCodec(bound, 64, packed=True)
    rows = [codec.encode(name, ROW) for name in "ab"]
    batch = codec.collate(rows)
    length = len(rows[0].input_ids)
    assert batch.input_ids.shape == batch.loss_mask.shape == (1, 2 * length)
    assert batch.position_ids[0].tolist() == [*range(length), *range(length)]
    assert batch.attention_mask is None
    assert batch.ids == ("a", "b")
    assert not batch.loss_mask[0, [0, length]].any()


# -- PRM -------------------------------------------------------------------------------------------------------------


def test_prm_reads_at_the_tags_of_labelled_steps(bound):
    codec = PRMCodec(bound, TargetConfig(), 256)
    batch = codec.collate([codec.encode("a", record((0.5, None, 1.0, 0.0, 0.5))), codec.encode("b", record((1.0,)))])
    # The second step has no value, and is right because the third is.
    assert batch.position_mask.tolist() == [[True, True, True, True], [True, False, False, False]]
    assert batch.targets.tolist() == [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert batch.first_error.tolist() == [3, -1]
    assert batch.count == 5
    # Read as the format reads: every score at a newline, behind "f+5,7\n" and the steps of 5 characters.
    at = batch.input_ids.gather(1, batch.positions)[batch.position_mask]
    assert set(at.tolist()) == set(bound.tag_ids)
    assert batch.positions[0].tolist() == [11, 17, 23, 29]
    # Nothing behind the last score: the masked fifth step is not even encoded.
    assert batch.attention_mask.sum(1).tolist() == (batch.positions.max(1).values + 1).tolist()


def test_prm_soft_targets_stay_floats(bound):
    codec = PRMCodec(bound, TargetConfig("soft", mask_after_first_error=False), 256)
    batch = codec.collate([codec.encode("a", record((0.7, 0.0, 0.3)))])
    assert batch.targets.dtype == torch.float32
    assert batch.targets[0].tolist() == pytest.approx([0.7, 0.0, 0.3])
    gap = codec.collate([codec.encode("a", record((0.7, None, 0.3)))])
    assert gap.position_mask.tolist() == [[True, False, True]]  # right, but nobody knows its value


def test_prm_truncation_keeps_whole_steps_and_refuses_rows_without_a_label(bound):
    whole = PRMCodec(bound, TargetConfig(), 256).encode("a", record((1.0, 1.0, 0.0)))
    first, second, third = whole.positions
    assert PRMCodec(bound, TargetConfig(), third + 1).encode("a", record((1.0, 1.0, 0.0))) == whole
    cut = PRMCodec(bound, TargetConfig(), third).encode("a", record((1.0, 1.0, 0.0)))
    assert cut.positions == (first, second)
    assert (cut.truncated, len(cut.input_ids)) == (True, second + 1)
    assert cut.first_error == -2  # the wrong step is out of sight
    assert PRMCodec(bound, TargetConfig(), first).encode("a", record((1.0, 1.0, 0.0))) is None
    assert PRMCodec(bound, TargetConfig(), third).encode("a", record((None, None, 0.0))) is None
    assert PRMCodec(bound, TargetConfig(), 256).encode("a", record((None, None))) is None


def test_prm_prediction_reads_every_step(bound):
    codec = PRMCodec(bound, TargetConfig(), 256, "predict")
    batch = codec.collate([codec.encode("a", record((None, 0.0, None)))])
    assert batch.position_mask.tolist() == [[True, True, True]]


def test_pairs_index_the_labelled_steps_of_the_batch(bound):
    codec = PRMCodec(bound, TargetConfig("soft", mask_after_first_error=False, pairs=True), 256)
    rows = [record((0.5, None, 1.0)), record((1.0, 0.25, 0.0))]
    batch = codec.collate([codec.encode(str(i), row) for i, row in enumerate(rows)])
    assert isinstance(batch, PairBatch)
    flat = batch.targets[batch.position_mask]
    assert batch.pairs.tolist() == [[1, 0], [2, 3], [2, 4], [3, 4]]
    assert (flat[batch.pairs[:, 0]] > flat[batch.pairs[:, 1]]).all()
    assert batch.count == 4
    assert codec.encode("c", record((1.0, 1.0))) is None
    evaluating = PRMCodec(bound, codec.targets, 256, "eval")
    assert evaluating.collate([evaluating.encode("c", record((1.0, 1.0)))]).pairs.shape == (0, 2)


def test_another_separator_is_refused_with_a_remedy(bound):
    codec = PRMCodec(bound, TargetConfig(), 256)
    assert codec.encode("a", record((1.0,), separator="\n")) is not None
    with pytest.raises(DataError, match=r"^rows:3: separator: got '\\n\\n'.*policy\.separator = '\\n'.*train with"):
        codec.encode("rows:3", record((1.0,), separator="\n\n"))


# -- fillers and records ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "packed", "prm", "pairs"])
def test_a_filler_counts_nowhere(bound, kind):
    codec = {
        "sft": SFTCodec(bound, 64),
        "packed": SFTCodec(bound, 64, packed=True),
        "prm": PRMCodec(bound, TargetConfig(), 64),
        "pairs": PRMCodec(bound, TargetConfig(pairs=True), 64),
    }[kind]
    batch = codec.collate([])
    assert batch.ids == ("",)
    assert batch.count == 0
    assert batch.input_ids.shape == (1, 1)
    mask = batch.position_mask if isinstance(batch, PRMBatch) else batch.loss_mask
    assert mask.dtype == torch.bool
    assert not mask.any()


def test_batches_move_as_a_whole_and_survive_input_conversion(bound):
    """Lightning moves batches by `.to`, and DeepSpeed's and bf16-true's plugins write converted fields."""
    from lightning.pytorch.plugins import HalfPrecision
    from lightning.pytorch.utilities import move_data_to_device

    codec = PRMCodec(bound, TargetConfig(pairs=True), 64)
    batch = codec.collate([codec.encode("a", record((1.0, 0.0)))]).with_window(9)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is PairBatch
    assert (moved.ids, moved.window_count) == (("a",), 9)
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert converted.targets.dtype == torch.bfloat16
    assert converted.pairs.dtype == torch.long
    assert batch.targets.dtype == torch.float32


@pytest.mark.parametrize(("values", "field"), [({"kind": "x"}, "targets.kind"), ({"threshold": 1.0}, "threshold")])
def test_target_config_refusals(values, field):
    with pytest.raises(ConfigError, match=field):
        TargetConfig(**values)
