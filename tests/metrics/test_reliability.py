"""Whether scores are probabilities: the fit against SciPy, the figures against loops, the rules against PCKh and OKS."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from lowpose.confidence import EDGE, Calibration, calibrated, read_calibration
from lowpose.data import load_data
from lowpose.errors import LowposeError
from lowpose.metrics import evaluate_predictions
from lowpose.metrics.oks import oks
from lowpose.metrics.reliability import BINS, SPREAD, figures, fit, reliability, rule_of
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17, LSP14

BIAS = np.array([2.4, 1.1, 3.0])


def drawn(persons: int, temperature: float = 1.7, bias=BIAS, seed: int = 0):
    """scores, right, counted (N, K): keypoints that are right as often as the formula says."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(1.5, 6, (persons, len(bias)))
    p = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) / temperature + bias)))
    return scores, rng.random(p.shape) < p, rng.random(p.shape) < 0.9


def test_a_known_temperature_and_known_biases_are_found():
    temperature, bias = fit(*drawn(20_000))
    assert temperature == pytest.approx(1.7, rel=0.05)
    np.testing.assert_allclose(bias, BIAS, atol=0.1)
    temperature, bias = fit(*drawn(20_000, bias=np.zeros(3)), bias="none")
    assert temperature == pytest.approx(1.7, rel=0.05) and not bias.any()


@pytest.mark.parametrize("bias", ["keypoint", "one", "none"])
def test_the_minimum_is_that_of_scipy(bias):
    scores, right, counted = drawn(60, temperature=0.8, seed=3)
    x, y = np.log(scores / (1 - scores)), np.where(right, 1, -1)

    def loss(v):
        offset = {"keypoint": v[1] + v[2:], "one": v[1], "none": 0.0}[bias]
        prior = (v[2:] ** 2).sum() / (2 * SPREAD**2) / counted.sum() if bias == "keypoint" else 0
        return np.log1p(np.exp(-y * (v[0] * x + offset)))[counted].mean() + prior

    want = minimize(loss, [1.0, 0, 0, 0, 0], tol=1e-12).x
    temperature, found = fit(scores, right, counted, bias)
    assert 1 / temperature == pytest.approx(want[0], abs=1e-4)
    np.testing.assert_allclose(found, {"keypoint": want[1] + want[2:], "one": [want[1]] * 3, "none": [0] * 3}[bias], atol=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_log_loss_on_what_was_fitted_is_never_worse(seed):
    scores, right, counted = drawn(4 + 3 * seed, temperature=1.0, bias=np.zeros(3), seed=seed)  # already calibrated
    try:
        temperature, bias = fit(scores, right, counted)
    except LowposeError:  # a few persons may rank backwards
        assert seed < 3
        return
    before, after = (figures(p[counted], right[counted])["log_loss"] for p in (scores, calibrated(scores, temperature, bias)))
    assert after <= before


def test_a_keypoint_that_is_always_right_or_never_labelled_gets_a_finite_bias():
    scores, right, counted = drawn(300)
    right[:, 0], counted[:, 1] = True, False
    _, bias = fit(scores, right, counted)
    assert np.isfinite(bias).all() and bias[0] > bias[2] and bias[0] < 12
    common = fit(scores[:, [0, 2]], right[:, [0, 2]], counted[:, [0, 2]])[1]
    assert min(common) < bias[1] < max(common)  # nothing is known of it but the others


def test_scores_of_0_and_1_give_finite_answers():
    scores = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, np.float32(1e-30)]] * 20)
    right = np.arange(120).reshape(40, 3) % 3 > 0
    right[0], right[1] = [False, True, True], [True, False, False]
    temperature, bias = fit(scores, right, np.ones_like(right))
    found = calibrated(scores, temperature, bias)
    assert np.isfinite(found).all() and ((found > 0) & (found < 1)).all()
    assert math.isfinite(figures(scores.ravel(), right.ravel())["log_loss"])
    about = {"temperature": 0.1, "bias": (0.0, 5.0, -5.0), "correct": "a", "kind": "b", "split": "c", "persons": 1, "flip": True}
    probabilities = Calibration(**about)(scores)
    assert probabilities.dtype == np.float32 and ((probabilities >= 0) & (probabilities <= 1)).all()


def test_the_formula():
    about = {"temperature": 2.0, "bias": [0.5, -1.0], "correct": "a", "kind": "b", "split": "c", "persons": 1, "flip": True}
    found = read_calibration({"calibration": about}, 2, "x")(np.array([[0.2, 0.2], [0.9, 0.9]]))
    want = [[1 / (1 + math.exp(-(math.log(s / (1 - s)) / 2 + b))) for b in (0.5, -1.0)] for s in (0.2, 0.9)]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert read_calibration({"config": {}}, 2, "x") is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temperature": 0}, "x: its calibration: 'temperature' = 0"),
        ({"temperature": float("nan")}, "'temperature' = nan"),
        ({"bias": [1.0]}, "is of 1 keypoints and its skeleton has 2"),
        ({"bias": [1.0, float("inf")]}, "'bias.1' = inf"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_damaged_calibrations_are_refused(change, match):
    about = {"temperature": 2.0, "bias": [0.5, 1], "correct": "a", "kind": "b", "split": "c", "persons": 1, "flip": True}
    with pytest.raises(LowposeError, match=match):
        read_calibration({"calibration": about | change}, 2, "x")


def test_figures_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    p = np.concatenate([rng.random(500), [0.0, 1.0, 1 / BINS, 2 / BINS]])
    right = rng.random(504) < p**2
    ece = brier = loss = 0.0
    for i in range(BINS):
        inside = [k for k in range(504) if i / BINS <= p[k] and (p[k] < (i + 1) / BINS or i == BINS - 1)]
        if inside:
            share, mean = sum(right[k] for k in inside) / len(inside), sum(p[k] for k in inside) / len(inside)
            ece += len(inside) / 504 * abs(share - mean)
    for q, r in zip(p, right, strict=True):
        brier += (q - r) ** 2 / 504
        q = min(max(q, EDGE), 1 - EDGE)
        loss -= math.log(q if r else 1 - q) / 504
    found = figures(p, right)
    assert found["ece"] == pytest.approx(ece, abs=1e-12) and found["brier"] == pytest.approx(brier, abs=1e-12)
    assert found["log_loss"] == pytest.approx(loss, abs=1e-10)
    assert (found["mean"], found["right"]) == pytest.approx((p.mean(), right.mean()))


def test_the_diagram_counts_what_counts():
    scores, right, counted = drawn(200)
    rows = reliability(scores, right, counted, bootstrap=200)
    assert sum(r["n"] for r in rows) == counted.sum() and all(r["n"] > 0 for r in rows)
    for r in rows:
        inside = counted & (scores >= r["from"]) & (scores < r["to"])
        assert (r["mean"], r["right"]) == pytest.approx((scores[inside].mean(), right[inside].mean()))
        assert r["low"] <= r["right"] <= r["high"]
    assert reliability(scores, right, counted, bootstrap=0)[0]["low"] is None


@pytest.mark.parametrize(
    ("right", "match"),
    [
        (lambda s: s > -1, "all of 60 keypoints are right"),
        (lambda s: s > 2, "all of 60 keypoints are wrong"),
        (lambda s: s < 0.15, "not more often right: no temperature exists; are the weights trained"),
    ],
)
def test_what_has_no_temperature_is_refused(right, match):
    scores = drawn(20)[0]
    with pytest.raises(LowposeError, match=match):
        fit(scores, right(scores), np.ones(scores.shape, bool))


def test_quite_apart_is_refused():
    scores = np.where(np.arange(3000).reshape(1000, 3) % 2, 0.501, 0.499)
    with pytest.raises(LowposeError, match="are quite apart in 3000 keypoints"):
        fit(scores, scores > 0.5, np.ones(scores.shape, bool), "one")


# What counts as right


def people(skeleton, protocol: str, count: int = 30, areas: bool = True) -> tuple[PoseData, np.ndarray]:
    """Persons with random joints, some not labelled, and predictions near them."""
    rng = np.random.default_rng(4)
    k, samples = len(skeleton), []
    points = rng.uniform(10, 90, (count, k, 2)).astype(np.float32)
    visible = (rng.random((count, k)) < 0.8).astype(np.uint8) * 2
    for i in range(count):
        area = None if areas and i % 7 == 0 else float(rng.uniform(400, 4000))
        box = np.array([10, 10, 80, 80], float)
        samples.append(PersonSample(f"{i}.jpg", box, points[i] * (visible[i] > 0)[:, None], visible[i], i, i, area=area))
    data = PoseData("made", "val", "", skeleton, samples, read=None, protocol=protocol)
    return data, points + rng.normal(0, 12, points.shape)


def test_the_rule_of_lsp_is_pckh():
    data, keypoints = people(LSP14, "lsp", areas=False)
    rule = rule_of(data)
    want = evaluate_predictions(data, keypoints, np.ones((30, 14)), np.ones((30, 14)), bootstrap=0)["metrics"]["PCKh@0.5"]
    assert rule.name == "PCKh@0.5" and rule.radius == 0.5
    assert 100 * rule.right(data, keypoints).sum() / rule.counted.sum() == pytest.approx(want["value"])
    tenth = rule_of(data, 0.1)
    assert tenth.name == "PCKh@0.1" and tenth.right(data, keypoints).sum() < rule.right(data, keypoints).sum()


def test_the_rule_of_coco_is_the_similarity_of_one_keypoint():
    data, keypoints = people(COCO17, "coco")
    rule = rule_of(data)
    assert rule.name == "similarity@0.5"
    right = rule.right(data, keypoints)
    assert 0.1 < right[rule.counted].mean() < 0.9
    for i, sample in enumerate(data.samples):
        for k in range(17):
            counts = sample.labelled[k] and sample.area is not None
            assert rule.counted[i, k] == counts
            if counts:
                only = np.arange(17) == k
                similar = oks(keypoints[i][None], sample.keypoints[None], only[None], np.array([sample.area]), COCO17.sigmas)
                assert right[i, k] == (similar[0, 0] >= 0.5)


def test_what_has_no_rule_is_refused():
    data, _ = people(COCO17, "coco")
    with pytest.raises(LowposeError, match="radius -1: give a positive number"):
        rule_of(data, -1.0)
    with pytest.raises(LowposeError, match="'found.json': boxes of a detector have no labels"):
        rule_of(PoseData("coco", "val", "", COCO17, data.samples, read=None, boxes="found.json"))
    assert rule_of(load_data("synthetic", options={"count": 2, "size": [64, 64], "height": [30, 50]})).counted.any()
