"""OKS, its suppression, and AP/AR against pycocotools."""

import json
import math
import sys

import numpy as np
import pytest
from coco_oracle import detected, labelled_data, pycoco, same, synthetic, written

from lowpose.errors import LowposeError
from lowpose.metrics import evaluate_predictions
from lowpose.metrics.average_precision import NAMES, evaluate_rows, ground_truth, table_stats
from lowpose.metrics.oks import coco_rows, instance_score, oks, oks_nms
from lowpose.skeletons import COCO17, LSP14, Skeleton


def test_oks_against_a_loop():
    rng = np.random.default_rng(1)
    pred, gt = rng.uniform(0, 50, (4, 17, 2)), rng.uniform(0, 50, (3, 17, 2))
    labelled = rng.random((3, 17)) < 0.6
    labelled[2] = False
    area, sigmas = rng.uniform(100, 5000, 3), COCO17.sigmas
    got = oks(pred, gt, labelled, area, sigmas)
    for p in range(4):
        for g in range(2):
            terms = [
                math.exp(-math.dist(pred[p, i], gt[g, i]) ** 2 / (2 * area[g] * (2 * sigmas[i]) ** 2))
                for i in range(17) if labelled[g, i]
            ]  # fmt: skip
            assert got[p, g] == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert (got[:, 2] == 0).all()
    # worked by hand: one joint at distance 2 sigma sqrt(area) has exp(-1/2), the other is right
    one = oks(
        np.array([[[0.2 * 30, 0], [5, 5]]]), np.array([[[0.0, 0], [5, 5]]]), np.ones((1, 2), bool), np.array([900.0]), [0.1, 0.1]
    )
    assert one[0, 0] == pytest.approx((math.exp(-0.5) + 1) / 2, rel=1e-12)


def brute_nms(points, scores, areas, sigmas, threshold):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        free = True
        for j in kept:
            scale = (areas[i] + areas[j]) / 2
            s = [
                math.exp(-(math.dist(points[i][n], points[j][n]) ** 2) / (2 * scale * (2 * sigmas[n]) ** 2))
                for n in range(len(sigmas))
            ]
            free &= sum(s) / len(s) <= threshold
        if free:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_nms_against_brute_force(threshold):
    rng = np.random.default_rng(5)
    dropped = 0
    for _ in range(30):
        n = int(rng.integers(1, 15))
        centres = rng.uniform(0, 60, (4, 17, 2))
        points = centres[rng.integers(0, 4, n)] + rng.normal(0, 1, (n, 17, 2)) * rng.choice([0.3, 1, 3], (n, 1, 1))
        scores, areas = np.round(rng.uniform(0, 1, n), 1), rng.uniform(500, 3000, n)
        want = brute_nms(points, scores, areas, COCO17.sigmas, threshold)
        assert oks_nms(points, scores, areas, COCO17.sigmas, threshold).tolist() == want
        dropped += n - len(want)
    assert dropped > 20
    assert oks_nms(np.zeros((0, 17, 2)), np.zeros(0), np.zeros(0), COCO17.sigmas).tolist() == []


def test_instance_score_takes_the_mean_above_the_threshold():
    scores = np.array([[0.9, 0.2, 0.5], [0.2, 0.1, 0.0], [0.3, 0.3, 0.3]])
    got = instance_score(np.array([1.0, 1.0, 0.5]), scores, 0.2)
    np.testing.assert_allclose(got, [0.7, 0.0, 0.15], rtol=0, atol=1e-15)


def test_rows_are_in_coco_form_and_suppressed_on_the_area_of_the_crop():
    """Two predictions whose OKS is 0.85 on the area of the box and 0.901 on that of the crop, 1.25 times as wide and high."""
    area = 100.0 * 200
    apart = np.sqrt(-2 * math.log(0.85) * area) * 2 * np.array(LSP14.sigmas)
    points = np.zeros((14, 2)) + 50
    people = [("p", [0.0, 0.0, 100.0, 200.0], points + [s, 0] * apart[:, None], 1.0) for s in (0, 1)]
    data, keypoints = detected(LSP14, people, None)
    assert oks(keypoints[:1], keypoints[1:], np.ones((1, 14), bool), np.array([area]), LSP14.sigmas)[0, 0] == pytest.approx(0.85)
    assert math.exp(math.log(0.85) / 1.25**2) > 0.9
    published = np.full((2, 14), 0.3) + np.array([[0.0], [1e-9]])
    rows = coco_rows(data, keypoints, np.full((2, 14), 0.5), published, 0.2, 0.9)
    assert len(rows) == 1 and len(coco_rows(data, keypoints, published, published, 0.2, 0.91)) == 2
    assert set(rows[0]) == {"image_id", "category_id", "keypoints", "score"}
    assert rows[0]["image_id"] == "p" and rows[0]["score"] == pytest.approx(0.3 + 1e-9, abs=1e-12)
    assert rows[0]["keypoints"][1:3] == [50.0, 0.5]  # COCO's pixels
    twins = np.stack([points, points])
    assert len(oks_nms(twins, np.ones(2), np.full(2, area), LSP14.sigmas, 1.0)) == 2  # not above 1


@pytest.mark.parametrize(("skeleton", "seed"), [(COCO17, 0), (COCO17, 1), (LSP14, 2)])
def test_ten_figures_equal_pycocotools_on_synthetic_persons(tmp_path, skeleton, seed):
    content, predictions = synthetic(skeleton, seed=seed)
    assert len(predictions) > 250
    data, keypoints = detected(skeleton, predictions, written(tmp_path, content))
    rng = np.random.default_rng(seed)
    scores = np.round(rng.uniform(0, 1, keypoints.shape[:2]), 1)
    rows = coco_rows(data, keypoints, scores, scores, 0.2, 0.9)
    assert 0 < len(rows) < len(predictions)  # some were suppressed
    stats = pycoco(content, rows, skeleton.sigmas)
    assert 0.05 < stats[0] < 0.95
    assert (np.asarray(stats) > -1).all()
    ours, table = evaluate_rows(ground_truth(data), rows, np.array(skeleton.sigmas))
    same(ours, stats)
    again = table_stats(table)
    for name in NAMES:
        assert again[name] == pytest.approx(ours[name], abs=1e-12), name
    report = evaluate_predictions(data, keypoints, scores, scores, keypoint_threshold=0.2, nms=0.9, bootstrap=0)
    assert set(report["metrics"]) == set(NAMES)
    for name, want in zip(NAMES, stats, strict=True):
        assert report["metrics"][name]["value"] == pytest.approx(100 * want, abs=1e-7)


def test_more_than_twenty_predictions_in_a_picture(tmp_path):
    content, _ = synthetic(COCO17, images=4, seed=9)
    rng = np.random.default_rng(9)
    people = [a for a in content["annotations"] if a["num_keypoints"]]
    predictions = []
    for a in people:
        points = np.array(a["keypoints"]).reshape(-1, 3)[:, :2]
        spread = 0.1 * math.sqrt(a["area"])
        predictions += [
            (a["image_id"], a["bbox"], points + rng.normal(0, spread, (17, 2)), rng.uniform(0.1, 1)) for _ in range(30)
        ]
    data, keypoints = detected(COCO17, predictions, written(tmp_path, content))
    ones = np.ones(keypoints.shape[:2])
    rows = coco_rows(data, keypoints, ones, ones, 0.2, 1.0)
    assert len(rows) == len(predictions)
    ours, table = evaluate_rows(ground_truth(data), rows, np.array(COCO17.sigmas))
    same(ours, pycoco(content, rows, COCO17.sigmas))
    assert table_stats(table) == pytest.approx(ours, abs=1e-12, nan_ok=True)


def test_weights_equal_pycocotools_on_repeated_pictures(tmp_path):
    """A resample that draws a picture three times is the data set that holds it three times."""
    content, predictions = synthetic(COCO17, images=25, seed=4)
    data, keypoints = detected(COCO17, predictions, written(tmp_path, content))
    ones = np.random.default_rng(0).uniform(0.3, 1, keypoints.shape[:2])
    rows = coco_rows(data, keypoints, ones, ones, 0.2, 0.9)
    _, table = evaluate_rows(ground_truth(data), rows, np.array(COCO17.sigmas))
    times = np.random.default_rng(8).multinomial(25, np.ones(25) / 25)
    assert times.max() >= 3 and times.min() == 0
    repeated = {"images": [], "annotations": [], "categories": content["categories"]}
    more_rows = []
    for n, picture in enumerate(content["images"]):
        for _ in range(times[n]):
            new = len(repeated["images"]) + 1
            repeated["images"].append({"id": new})
            own = [a for a in content["annotations"] if a["image_id"] == picture["id"]]
            repeated["annotations"] += [
                {**a, "image_id": new, "id": len(repeated["annotations"]) + i + 1} for i, a in enumerate(own)
            ]
            more_rows += [{**r, "image_id": new} for r in rows if r["image_id"] == picture["id"]]
    same(table_stats(table, times), pycoco(repeated, more_rows, COCO17.sigmas))


def test_half_a_pixel_is_taken_off_both_sides(tmp_path):
    """Predicting the labels gives 100 from the file and from the samples; so do the same errors the same figures."""
    content, _ = synthetic(COCO17, seed=11)
    filed = labelled_data(content, COCO17, written(tmp_path, content))
    in_memory = labelled_data(content, COCO17, None)
    right = np.array([s.keypoints for s in filed.samples], float)
    ones = np.ones(right.shape[:2])
    for data in (filed, in_memory):
        report = evaluate_predictions(data, right, ones, ones, bootstrap=10)
        assert report["metrics"]["AP"] == {"value": 100.0, "low": 100.0, "high": 100.0, "n": len(data)}
        assert report["metrics"]["EPE"]["value"] == 0
        # one pixel right of tiny noses must cost something: the grid is not shifted by luck
        moved = evaluate_predictions(data, right + [3.0, 0], ones, ones, bootstrap=0)
        assert moved["metrics"]["APM"]["value"] < 100
    noisy = right + np.random.default_rng(0).normal(0, 4, right.shape)
    a, b = (evaluate_predictions(d, noisy, ones, ones, bootstrap=0, nms=1.0)["metrics"] for d in (filed, in_memory))
    clean = {**content, "annotations": [x for x in content["annotations"] if x["num_keypoints"]]}
    stats = pycoco(clean, coco_rows(in_memory, noisy, ones, ones, 0.2, 1.0), COCO17.sigmas)
    for name, want in zip(NAMES, stats, strict=True):
        assert b[name]["value"] == pytest.approx(100 * want, abs=1e-7)
    stats = pycoco(content, coco_rows(filed, noisy, ones, ones, 0.2, 1.0), COCO17.sigmas)
    for name, want in zip(NAMES, stats, strict=True):
        assert a[name]["value"] == pytest.approx(100 * want, abs=1e-7)


def test_persons_outside_a_subset_are_not_missed(tmp_path):
    content, _ = synthetic(COCO17, seed=12)
    data = labelled_data(content, COCO17, written(tmp_path, content))
    half = data.subset(range(0, len(data), 2))
    points = np.array([s.keypoints for s in half.samples], float)
    ones = np.ones(points.shape[:2])
    report = evaluate_predictions(half, points, ones, ones, bootstrap=0)
    assert report["metrics"]["AR"] == {"value": 100.0, "low": None, "high": None, "n": len(half)}


def test_lsp_has_ap_too_and_skeletons_without_sigmas_have_none():
    content, _ = synthetic(LSP14, seed=13)
    data = labelled_data(content, LSP14, None, protocol="lsp")
    points = np.array([s.keypoints for s in data.samples], float)
    ones = np.ones(points.shape[:2])
    metrics = evaluate_predictions(data, points, ones, ones, bootstrap=0)["metrics"]
    assert metrics["AP"]["value"] == 100.0 and next(iter(metrics)) == "PCKh@0.5"
    bare = labelled_data(content, Skeleton("bare", LSP14.keypoints), None)
    report = evaluate_predictions(bare, points, ones, ones, bootstrap=0)
    assert "AP" not in report["metrics"] and report["not_measured"]["AP"] == "skeleton 'bare' has no sigmas"
    with pytest.raises(LowposeError, match="skeleton 'bare' has no 'sigmas'"):
        coco_rows(bare, points, ones, ones, 0.2, 0.9)


def test_nothing_predicted_and_one_person_have_values(tmp_path):
    content, _ = synthetic(COCO17, seed=14)
    path = written(tmp_path, content)
    data, keypoints = detected(COCO17, [], path)
    report = evaluate_predictions(data, keypoints, np.zeros((0, 17)), np.zeros((0, 17)), bootstrap=10)
    assert {m["value"] for m in report["metrics"].values()} == {0.0} and set(report["metrics"]) == set(NAMES)
    one = labelled_data(content, COCO17, None).subset([0])
    points = one.samples[0].keypoints[None]
    report = evaluate_predictions(one, points, np.ones((1, 17)), np.ones((1, 17)), bootstrap=10)
    size = [n for n in ("M", "L") if f"AP{n}" in report["metrics"]]
    assert len(size) <= 1 and {f"AP{n}" for n in ("M", "L") if n not in size} <= set(report["not_measured"])
    assert report["metrics"]["AP"] == {"value": 100.0, "low": 100.0, "high": 100.0, "n": 1}
    none = one.subset([])
    report = evaluate_predictions(none, np.zeros((0, 17, 2)), np.zeros((0, 17)), np.zeros((0, 17)), bootstrap=10)
    assert report["metrics"] == {} and report["persons"] == 0
    json.dumps(report, allow_nan=False)


def test_wrong_input_is_one_line(tmp_path, monkeypatch):
    content, predictions = synthetic(COCO17, images=10, seed=15)
    truth = ground_truth(detected(COCO17, predictions, written(tmp_path, content))[0])
    sigmas = np.array(COCO17.sigmas)
    with pytest.raises(LowposeError, match="prediction for picture 999, which is not among the 10 annotated"):
        evaluate_rows(truth, [{"image_id": 999, "keypoints": [0.0] * 51, "score": 1.0}], sigmas)
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.coco", None)
    with pytest.raises(LowposeError, match=r"needs faster-coco-eval; pip install 'lowpose\[train\]'"):
        evaluate_rows(truth, [], sigmas)
    for name, text in (("list.json", "[]"), ("cut.json", '{"images": ['), ("keys.json", '{"images": []}')):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(LowposeError, match=f"{name}: not a COCO annotation file"):
            ground_truth(detected(COCO17, predictions, path)[0])
    with pytest.raises(LowposeError, match="gone.json: no such annotation file"):
        ground_truth(detected(COCO17, predictions, tmp_path / "gone.json")[0])
    del content["annotations"][0]["area"]
    with pytest.raises(LowposeError, match="annotation 1 has no 'area'"):
        ground_truth(detected(COCO17, predictions, written(tmp_path, content, "area.json"))[0])
    for p in content["images"]:
        p.pop("crowdIndex")
    crowd = detected(COCO17, predictions, written(tmp_path, content, "crowd.json"), protocol="crowdpose")[0]
    with pytest.raises(LowposeError, match="picture 3 has no 'crowdIndex'"):
        ground_truth(crowd)
