import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from prmkit.errors import ConfigError
from prmkit.metrics import FirstErrorF1, StepMetrics, predicted_first_error


def test_step_metrics_agree_with_scikit_learn_over_batches() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1)
    metrics = StepMetrics()
    for part in np.split(np.arange(200), [50, 50, 120]):  # one part is empty
        metrics.update(torch.tensor(scores[part], dtype=torch.float32), torch.tensor(labels[part]))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["step_accuracy"] == pytest.approx(accuracy_score(labels, scores > 0.5))
    assert found["f1"] == pytest.approx(f1_score(labels, scores > 0.5))
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["calibration_error"] == pytest.approx(expected_calibration_error(scores, labels), abs=1e-6)


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    error = 0.0
    for low in range(15):
        inside = (scores > low / 15) & (scores <= (low + 1) / 15)
        if low == 0:
            inside |= scores == 0
        if inside.any():
            error += abs(scores[inside].mean() - labels[inside].mean()) * inside.mean()
    return float(error)


def test_predicted_first_error() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, True], [False, False, False]])
    scores = torch.tensor([0.9, 0.4, 0.1, 0.5, 0.8, 0.7, 0.2])
    assert predicted_first_error(scores, mask, 0.5).tolist() == [1, -1, 2, -1]


def test_first_error_f1_by_hand() -> None:
    # Erroneous traces: 2 of 3 found at the right step; correct ones: 1 of 2 left alone; one unknown is not counted.
    scores = [[0.9, 0.2, 0.1], [0.3, 0.9, 0.9], [0.9, 0.9, 0.3], [0.9, 0.8, 0.7], [0.9, 0.4, 0.9], [0.1, 0.1, 0.1]]
    first_error = [1, 0, 1, -1, -1, -2]
    whole, split = FirstErrorF1(), FirstErrorF1()
    mask = torch.ones(6, 3, dtype=torch.bool)
    whole.update(torch.tensor(scores).flatten(), mask, torch.tensor(first_error))
    for row, label in zip(scores, first_error, strict=True):
        split.update(torch.tensor(row), mask[:1], torch.tensor([label]))
    wanted = 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2)
    assert float(whole.compute()) == pytest.approx(wanted)
    assert float(split.compute()) == pytest.approx(wanted)


def test_first_error_f1_at_its_edges() -> None:
    never = FirstErrorF1()
    never.update(torch.tensor([0.9, 0.1]), torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, -1]))
    assert float(never.compute()) == 0.0
    one_kind = FirstErrorF1()
    one_kind.update(torch.tensor([0.9]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([-1]))
    assert math.isnan(float(one_kind.compute()))
    with pytest.raises(ConfigError, match="threshold"):
        FirstErrorF1(1.5)


def test_threshold_moves_the_prediction() -> None:
    metric = FirstErrorF1(threshold=0.3)
    mask = torch.ones(2, 2, dtype=torch.bool)
    metric.update(torch.tensor([0.4, 0.2, 0.4, 0.4]), mask, torch.tensor([1, -1]))
    assert float(metric.compute()) == 1.0
