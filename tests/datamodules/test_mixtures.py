"""Mixtures: proportions, and no row a second time before all have come once."""

from collections import Counter

import numpy as np
import pytest

from datamodules.readers import Mixture, Reader, open_mixture, record_parser
from datamodules.sources import SourceConfig
from prmkit.errors import ConfigError, DataError


class Numbers:
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def raw(self, index):
        return {"value": index}, f"numbers:{index}"

    def sizes(self):
        return np.arange(self.n)


def readers(*sizes):
    return [Reader(Numbers(n), lambda raw, where: [raw["value"]], "n") for n in sizes]


def test_without_weights_every_row_once():
    mixture = Mixture(readers(5, 3))
    assert Counter(mixture.epoch(0).tolist()) == Counter(range(8)) == Counter(mixture.epoch(7).tolist())
    assert [mixture.row(i) for i in (0, 4, 5, 7)] == [("n:0", 0), ("n:4", 4), ("n#2:0", 0), ("n#2:2", 2)]
    assert mixture.sizes().tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_weights_give_the_shares_of_every_epoch():
    mixture = Mixture(readers(90, 30, 7), weights=[3, 1, 1])
    assert mixture.shares() == [76, 26, 25]  # 127 rows: 76.2, 25.4, 25.4
    for epoch in range(3):
        rows = mixture.epoch(epoch)
        assert [int(((rows >= a) & (rows < b)).sum()) for a, b in ((0, 90), (90, 120), (120, 127))] == [76, 26, 25]
    assert Mixture(readers(90, 30), weights=[9, 1], epoch_rows=50).shares() == [45, 5]


def test_repeats_are_spread_evenly():
    mixture = Mixture(readers(90, 10), weights=[1, 1])
    dealt = Counter(np.concatenate([mixture.epoch(epoch) for epoch in range(4)]).tolist())
    assert {dealt[row] for row in range(90, 100)} == {20}  # 4 x 50 rows dealt from 10
    assert {dealt[row] for row in range(90)} == {2, 3}  # 200 from 90
    laps = mixture.epoch(0)[50:].reshape(5, 10)
    assert all(sorted(lap) == list(range(90, 100)) for lap in laps.tolist())
    assert laps.tolist()[0] != laps.tolist()[1]


def test_epochs_are_reproducible_and_seeded():
    def made(seed):
        return Mixture(readers(40, 10), weights=[1, 1], seed=seed).epoch(3).tolist()

    assert made(0) == made(0) != made(1)


def test_rows_left_out_come_in_no_epoch():
    for weights in (None, [1, 3]):
        mixture = Mixture(readers(6, 4), weights)
        mixture.leave_out(np.array([0, 7]))
        rows = np.concatenate([mixture.epoch(epoch) for epoch in range(5)])
        assert set(rows.tolist()) == set(range(10)) - {0, 7}
        assert sum(mixture.shares()) == 8
    with pytest.raises(DataError, match="no row is left to train on"):
        mixture.leave_out(np.arange(10))


def test_lines_that_hold_several_records(write_jsonl, data_dir):
    from prmkit.annotation.formats import load_records

    path = str(data_dir / "formats" / "prm800k.jsonl")
    mixture = open_mixture([SourceConfig(path=path)], record_parser)
    assert [mixture.row(i)[1] for i in range(len(mixture))] == list(load_records(path))
    assert len({mixture.row(i)[0] for i in range(len(mixture))}) == len(mixture) == len(mixture.sizes())


def test_refusals(write_jsonl):
    path = write_jsonl([{"question": "q", "solution": "s"}])
    with pytest.raises(ConfigError, match=r"source\.weight: got \[1\.0, None\]; accepted: a number for every source"):
        open_mixture([SourceConfig(path=path, weight=1.0), SourceConfig(path=path)], record_parser)
    with pytest.raises(ConfigError, match=r"epoch_rows: got 5; accepted: null, unless sources have weights"):
        open_mixture([SourceConfig(path=path)], record_parser, epoch_rows=5)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: fields .* are no known format"):
        open_mixture([SourceConfig(path=path)], record_parser)
