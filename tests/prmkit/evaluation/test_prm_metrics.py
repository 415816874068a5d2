"""A PRM's figures against scikit-learn, torchmetrics and hand-worked tables."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from prmkit.errors import DataError
from prmkit.evaluation.prm_metrics import auroc, calibration_error, f1, first_error_f1, prm_figures


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_against_other_libraries(digits):
    rng = np.random.default_rng(digits)
    truth = rng.random(500) < 0.7
    scores = np.round(np.clip(0.3 * truth + 0.7 * rng.random(500), 0, 1), digits)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), rel=1e-12)
    assert f1(scores > 0.5, truth) == pytest.approx(f1_score(truth, scores > 0.5), rel=1e-12)
    shifted = np.clip(scores + 1e-4, 0, 1)  # away from the edges of bins, where conventions differ
    expected = binary_calibration_error(torch.from_numpy(shifted), torch.from_numpy(truth.astype(int)), n_bins=15)
    assert calibration_error(shifted, truth) == pytest.approx(float(expected), abs=1e-6)


def test_edges():
    ones = np.ones(3)
    assert auroc(ones, np.array([True, True, True])) is None
    assert auroc(ones, np.array([True, False, True])) == 0.5
    assert f1(np.zeros(2, dtype=bool), np.zeros(2, dtype=bool)) is None
    assert calibration_error(np.zeros(0), np.zeros(0, dtype=bool)) is None
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_first_error_by_hand():
    # two of three traces with an error found, one of two without: 2 * (2/3) * (1/2) / (2/3 + 1/2) = 4/7
    got = first_error_f1([1, 2, -1, -1, 0], [1, 2, 2, -1, -1])
    assert got["first_error_accuracy_wrong"] == pytest.approx(2 / 3)
    assert got["first_error_accuracy_right"] == 0.5
    assert got["first_error_f1"] == pytest.approx(4 / 7)
    assert first_error_f1([0, 0], [-1, 1])["first_error_f1"] == 0.0
    assert first_error_f1([1], [1])["first_error_f1"] is None


def test_steps_behind_the_first_error_do_not_count():
    scores = [(0.9, 0.4, 0.99), (0.8, 0.6)]
    got = prm_figures(scores, [(True, False, False), (True, True)])
    assert got == prm_figures([(0.9, 0.4, 0.01), (0.8, 0.6)], [(True, False, True), (True, True)])
    assert (got["traces"], got["steps"]) == (2, 4)
    assert (got["auroc"], got["step_accuracy"], got["f1"], got["f1_wrong"]) == (1.0, 1.0, 1.0, 1.0)
    assert got["first_error_f1"] == 1.0
    assert got["ece"] == pytest.approx((0.1 + 0.4 + 0.2 + 0.4) / 4)


def test_a_score_at_the_threshold_is_wrong():
    assert prm_figures([(0.5,)], [(False,)])["step_accuracy"] == 1.0
    assert prm_figures([(0.5,)], [(True,)])["step_accuracy"] == 0.0
    assert prm_figures([(0.5,)], [(True,)], threshold=0.4)["step_accuracy"] == 1.0


def test_no_trace_and_mismatch():
    assert prm_figures([], []) == dict.fromkeys(prm_figures([], [])) | {"traces": 0, "steps": 0}
    with pytest.raises(DataError, match="trace 0: 1 scores for 2 verdicts"):
        prm_figures([(0.5,)], [(True, False)])
