"""The gate: paired bootstrap against an independent oracle, tolerances, and promotion."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from prmkit.errors import ConfigError, DataError
from registry import Figure, GateConfig, Metrics, read_metrics
from registry.bootstrap import resampled_means
from registry.errors import GateRefusedError, NewerSchemaError
from registry.gate import evaluate_gate


def metrics(results, auroc=0.9, ece=0.05, **more):
    values = {f"p{i}": float(value) for i, value in enumerate(results)}
    figures = {"accuracy": Figure(float(np.mean(results))), "prm_auroc": Figure(auroc), "prm_ece": Figure(ece)}
    return Metrics(**{"dataset": "toy", "figures": figures, "results": values, **more})


def test_the_interval_agrees_with_scipy():
    generator = np.random.default_rng(3)
    mine, theirs = (generator.random(120) < share for share in (0.6, 0.5))
    decision = evaluate_gate(metrics(mine), metrics(theirs), "math@1", GateConfig(resamples=20_000))
    difference = mine.astype(float) - theirs
    oracle = stats.bootstrap(
        (difference,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    assert decision.numbers["gain"] == pytest.approx(difference.mean())
    assert decision.numbers["gain_low"] == pytest.approx(oracle.low, abs=0.006)
    assert decision.numbers["gain_high"] == pytest.approx(oracle.high, abs=0.006)


def test_pairing_matters():
    """Ten problems gained of 400 and none lost is no noise, whatever the rest are; unpaired it would be."""
    base = np.random.default_rng(0).random(400) < 0.5
    better = base.copy()
    better[np.flatnonzero(~base)[:10]] = True
    assert evaluate_gate(metrics(better), metrics(base), "math@1").passed
    shuffled = np.random.default_rng(1).permutation(better)
    decision = evaluate_gate(metrics(shuffled), metrics(base), "math@1")
    assert not decision.passed
    assert decision.numbers["gain"] == pytest.approx(10 / 400)


def test_noise_does_not_pass():
    """Equal pairs pass about as often as the confidence leaves room for: 1 in 20."""
    generator = np.random.default_rng(0)
    passed = 0
    for _ in range(200):
        mine, theirs = generator.random((2, 100)) < 0.5
        passed += evaluate_gate(metrics(mine), metrics(theirs), "math@1", GateConfig(resamples=400)).passed
    assert 2 <= passed <= 20


def test_the_same_seed_gives_the_same_decision_in_pieces():
    values = np.random.default_rng(0).random(1000)
    import registry.bootstrap as module

    whole = resampled_means(values, 300, seed=5)
    before = module._AT_ONCE
    module._AT_ONCE = 7000
    try:
        pieces = resampled_means(values, 300, seed=5)
    finally:
        module._AT_ONCE = before
    np.testing.assert_array_equal(whole, pieces)
    assert whole.std() == pytest.approx(values.std() / 1000**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auroc": 0.87}, "prm_auroc 0.8700 against 0.9000, may be worse by 0.02"),
        ({"ece": 0.08}, "prm_ece 0.0800 against 0.0500"),
        ({"dataset": "other"}, "math@1 was measured otherwise: on toy, not other"),
        ({"protocol": {"samples": 8}}, "samples None, not 8"),
    ],
)
def test_conditions(changes, reason):
    base, better = np.zeros(100), np.ones(100)
    assert evaluate_gate(metrics(better), metrics(base), "math@1").passed
    decision = evaluate_gate(metrics(better, **changes), metrics(base), "math@1")
    assert not decision.passed
    assert any(text.startswith("not met") and reason in text for text in decision.reasons)


def test_within_tolerance_and_better_figures_pass():
    base, better = np.zeros(100), np.ones(100)
    for auroc, ece in ((0.881, 0.069), (1.0, 0.0)):
        assert evaluate_gate(metrics(better, auroc, ece), metrics(base), "math@1").passed


def test_seeds_of_the_measurement_may_differ():
    mine, theirs = metrics(np.ones(100), protocol={"seed": 1}), metrics(np.zeros(100), protocol={"seed": 0})
    assert evaluate_gate(mine, theirs, "math@1").passed


def test_what_cannot_be_compared():
    one = metrics(np.ones(100))
    assert not evaluate_gate(None, one, "math@1").passed
    assert not evaluate_gate(one, None, "math@1").passed
    assert not evaluate_gate(metrics(np.ones(49)), None, None).passed
    unmeasured = replace(one, figures={"accuracy": Figure(1.0)})
    assert not evaluate_gate(unmeasured, None, None).passed
    assert evaluate_gate(unmeasured, None, None, GateConfig(require_prm=False)).passed
    few = replace(metrics(np.zeros(100)), results={f"q{i}": 0.0 for i in range(100)})  # other problems
    decision = evaluate_gate(one, few, "math@1")
    assert decision.reasons[0] == "not met: 0 problems, at least 50 wanted"


def test_a_margin_can_be_asked_for():
    base = np.zeros(200)
    better = np.arange(200) < 30
    assert evaluate_gate(metrics(better), metrics(base), "m@1", GateConfig(min_gain=0.10)).passed
    assert not evaluate_gate(metrics(better), metrics(base), "m@1", GateConfig(min_gain=0.12)).passed


@pytest.mark.parametrize(
    "field", [{"confidence": 1.0}, {"min_problems": 1}, {"resamples": 10}, {"auroc_tolerance": -0.1}]
)
def test_config_is_checked(field):
    (name,) = field
    with pytest.raises(ConfigError, match=rf"gate\.{name}"):
        GateConfig(**field)


def test_promotion(registry, make_publication, make_metrics):
    registry.publish(make_publication(metrics=make_metrics(0.5)), alias="best")
    worse = registry.publish(make_publication(metrics=make_metrics(0.4, seed=1), parent="math@1"))
    better = registry.publish(make_publication(metrics=make_metrics(0.9, seed=2), parent="math@1"))
    assert (worse.gate.passed, better.gate.passed) == (False, True)
    assert worse.gate.reference == "math@1"
    with pytest.raises(GateRefusedError, match=r"math@2: refused by the gate to 'best': not met: accuracy 0\.4000"):
        registry.promote("math@2")
    assert registry.aliases("math") == {"best": 1}
    registry.promote("math@3")
    move = registry.promote("math@2", force=True, reason="a demonstration")
    assert (move.forced, move.reason, move.before, move.after) == (True, "a demonstration", 3, 2)
    assert [m.forced for m in registry.history("math")] == [False, False, True]
    assert move.gate["passed"] is False


def test_better_than_the_parent_is_not_better_than_the_best(registry, make_publication, make_metrics):
    registry.publish(make_publication(metrics=make_metrics(0.3)))
    registry.publish(make_publication(metrics=make_metrics(0.9, seed=1), parent="math@1"), alias="best")
    third = registry.publish(make_publication(metrics=make_metrics(0.6, seed=2), parent="math@1"))
    assert third.gate.passed
    with pytest.raises(GateRefusedError, match="of math@2: gain"):
        registry.promote("math@3")
    registry.promote("math@3", "runner-up")


def test_publishing_as_best_asks_first(registry, make_publication, make_metrics):
    with pytest.raises(GateRefusedError, match="there are no metrics"):
        registry.publish(make_publication(), alias="best")
    registry.publish(make_publication(metrics=make_metrics(0.5)), alias="best")
    with pytest.raises(GateRefusedError, match="of math@1"):
        registry.publish(make_publication(metrics=make_metrics(0.5, seed=1), parent="math@1"), alias="best")
    with pytest.raises(GateRefusedError):  # without a parent it still has to beat the best
        registry.publish(make_publication(metrics=make_metrics(0.5, seed=1)), alias="best")
    assert registry.versions("math") == [1]
    registry.publish(make_publication(metrics=make_metrics(0.5, seed=1)), alias="best", force=True)
    assert registry.history("math")[-1].forced


def test_metrics_files(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"schema": 1, "dataset": "d", "figures": {"accuracy": {"value": 0.5}}, "results": {"a": 1}}')
    assert read_metrics(path) == Metrics("d", {"accuracy": Figure(0.5)}, {}, {"a": 1.0})
    for text, kind, message in (
        ('{"schema": 2}', NewerSchemaError, "schema 2"),
        ('{"dataset": "d"}', DataError, "schema: got None"),
        ('{"schema": 1, "dataset": "d"}', DataError, r"metrics\.json\.figures: missing"),
        ('{"schema": 1, "dataset": "", "figures": {}}', DataError, "name the held-out set"),
        ('{"schema": 1, "dataset": "d", "figures": {"a": {"value": NaN}}}', DataError, r"figures\.a: got nan"),
        ('{"schema": 1, "dataset": "d", "figures": {"a": {"value": "x"}}}', DataError, r"figures\.a\.value: got 'x'"),
        ("[]", DataError, "not an object"),
    ):
        path.write_text(text)
        with pytest.raises(kind, match=message):
            read_metrics(path)


def test_metrics_of_a_search(tmp_path):
    """Two problems, two samples each, no PRM truth: hand-worked."""
    import json

    def row(name, *traces):
        return {
            "schema": 1, "problem_id": name, "question": "q", "answer": "1", "level": None, "source": "", "error": None,
            "usage": {}, "greedy": None,
            "traces": [
                {"steps": ["s"], "scores": [score], "answer": str(group), "group": group, "correct": right,
                 "finish": "stop", "tokens": 1}
                for score, group, right in traces
            ],
        }  # fmt: skip

    rows = [row("a", (0.9, 0, True), (0.2, 1, False)), row("b", (0.6, 0, False), (0.4, 1, True))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = {"task": "toy", "data": "/home/ada/x", "split": "test", "offset": 5, "limit": 2, "task_options": {}}
    summary = {
        "method": "best_of_n", "headline": "product_max", "problems": problems, "sampling": {"temperature": 1.0},
        "seed": 0, "figures": {},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = read_metrics(tmp_path)
    assert found.dataset == "toy/test[5:7]"
    assert found.results == {"a": 1.0, "b": 0.0}
    assert found.figures["accuracy"].value == 0.5
    assert (found.figures["accuracy"].low, found.figures["accuracy"].high) == (0.0, 1.0)
    assert found.figures["pass_at_1"].value == 0.5
    # right 0.9 and 0.4, wrong 0.2 and 0.6: three of four pairs in order; bins of 1/15 hold one trace each
    assert found.figures["prm_auroc"].value == 0.75
    assert found.figures["prm_ece"].value == pytest.approx((0.1 + 0.2 + 0.6 + 0.6) / 4)
    assert found.protocol["prm_truth"] == "answers"
    assert "ada" not in str(found)
