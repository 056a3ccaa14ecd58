"""PCK and end-point error against plain loops and cases worked out by hand."""

import math

import numpy as np
import pytest

from lowpose.errors import LowposeError
from lowpose.metrics import evaluate_predictions, per_person
from lowpose.metrics.epe import distances, epe_report
from lowpose.metrics.pck import pck_hits, pck_metrics, pck_report
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17, LSP14, MPII16, Skeleton


def make_data(skeleton, protocol, points, visibility, heads=None, **more):
    samples = [
        PersonSample(
            f"{i}.jpg", np.array([0.0, 0, 100, 200]), p.astype(np.float32), v.astype(np.uint8), i + 1, i + 1, area=20000.0,
            head_size=None if heads is None else heads[i],
        )
        for i, (p, v) in enumerate(zip(points, visibility, strict=True))
    ]  # fmt: skip
    return PoseData("test", "val", "", skeleton, samples, lambda key: None, protocol=protocol, **more)


def random_case(skeleton, n=40, seed=3):
    rng = np.random.default_rng(seed)
    k = len(skeleton)
    points = rng.uniform(0, 200, (n, k, 2)).astype(np.float32)
    visibility = rng.choice([0, 1, 2], (n, k), p=[0.2, 0.2, 0.6])
    points[visibility == 0] = 0
    pred = points + rng.normal(0, 15, points.shape)
    return points, visibility, pred


def loop_pck(pred, gt, counts, norms, threshold):
    """-> per joint (right, total), over persons whose norm is a positive number."""
    k = gt.shape[1]
    right, total = [0] * k, [0] * k
    for n in range(len(gt)):
        if norms[n] is None or norms[n] <= 0:
            continue
        for j in range(k):
            if counts[n][j]:
                d = math.sqrt((float(pred[n, j, 0]) - float(gt[n, j, 0])) ** 2 + (float(pred[n, j, 1]) - float(gt[n, j, 1])) ** 2)
                total[j] += 1
                right[j] += d / norms[n] <= threshold
    return right, total


def loop_link(gt, visibility, a, b):
    return [
        math.dist(gt[n, a].astype(float), gt[n, b].astype(float)) if visibility[n, a] and visibility[n, b] else None
        for n in range(len(gt))
    ]


def test_threshold_is_inclusive_and_exact():
    gt = np.zeros((5, 1, 2))
    norm = np.array([10.0, 30.0, 70.0, 3.0, 10.0])
    pred = np.zeros((5, 1, 2))
    pred[:, 0, 0] = [1.0, 3.0, 7.0, 0.3, np.nextafter(1.0, 2)]
    mask = np.ones((5, 1), bool)
    assert pck_hits(pred, gt, mask, norm, 0.1)[:, 0].tolist() == [True, True, True, True, False]
    # 0.105 of the length is wrong at 0.10 and would be right at 0.11
    assert not pck_hits(np.full((1, 1, 2), [1.05, 0]), gt[:1], mask[:1], norm[:1], 0.1).any()


def test_unlabelled_joints_and_unknown_lengths_never_hit():
    gt = np.zeros((4, 2, 2))
    mask = np.array([[True, False]] * 4)
    hits = pck_hits(gt, gt, mask, np.array([1.0, 0.0, np.nan, -2.0]), 0.5)
    assert hits.tolist() == [[True, False], [False, False], [False, False], [False, False]]


def test_mpii_leaves_out_pelvis_and_thorax_and_counts_upper_neck():
    k = len(MPII16)
    points = np.zeros((3, k, 2)) + 50
    visibility = np.full((3, k), 2)
    visibility[2, 0] = 0
    data = make_data(MPII16, "mpii", points, visibility, heads=[10.0, 20.0, None])
    pred = points.copy()
    pred[:, [6, 7]] += 1000  # pelvis, thorax: must not matter
    pred[0, 8] += [0, 5.0]  # upper neck, on the threshold of 0.5
    pred[1, 9] += [11.0, 0]  # head top, wrong at 0.5
    pred[0, 10] += [1.0, 0]  # right wrist, on the threshold of 0.1
    report = evaluate_predictions(data, pred, np.ones((3, k)), np.ones((3, k)), bootstrap=20)
    assert report["metrics"]["PCKh@0.5"]["value"] == pytest.approx(100 * 27 / 28, abs=1e-12)
    assert report["metrics"]["PCKh@0.1"]["value"] == pytest.approx(100 * 26 / 28, abs=1e-12)
    assert report["groups"]["PCKh@0.5"]["Head"] == 50.0
    assert report["groups"]["PCKh@0.5"]["Wrist"] == 100.0
    assert report["persons_left_out"] == {"PCKh@0.5": 1, "PCKh@0.1": 1}
    assert report["metrics"]["PCKh@0.5"]["n"] == 2
    assert report["metrics"]["EPE"]["n"] == 3
    assert report["joints"] == 3 * k - 1
    assert set(report["metrics"]) == {"PCKh@0.5", "PCKh@0.1", "EPE"}


def test_mpii_without_head_boxes_has_another_name_and_length():
    points, visibility, pred = random_case(MPII16)
    data = make_data(MPII16, "mpii", points, visibility)
    a, b = MPII16.index("upper_neck"), MPII16.index("head_top")
    counts = visibility > 0
    counts[:, [MPII16.index("pelvis"), MPII16.index("thorax")]] = False
    norms = loop_link(points, visibility, a, b)
    figures = evaluate_predictions(data, pred, np.ones(visibility.shape), np.ones(visibility.shape), bootstrap=0)
    assert set(figures["metrics"]) == {"pck_neck_head@0.5", "pck_neck_head@0.1", "EPE"}
    for t in (0.5, 0.1):
        right, total = loop_pck(pred, points, counts, norms, t)
        assert 0 < sum(right) < sum(total)
        assert figures["metrics"][f"pck_neck_head@{t}"]["value"] == pytest.approx(100 * sum(right) / sum(total), abs=1e-12)
        assert figures["persons_left_out"][f"pck_neck_head@{t}"] == sum(x is None for x in norms)


@pytest.mark.parametrize("protocol", ["lsp", "coco"])
def test_lsp_and_torso_against_loops(protocol):
    skeleton = LSP14 if protocol == "lsp" else COCO17
    points, visibility, pred = random_case(skeleton)
    data = make_data(skeleton, protocol, points, visibility)
    links = {"PCK@0.2": (0.2, skeleton.index("left_shoulder"), skeleton.index("right_hip"))}
    if protocol == "lsp":
        links["PCKh@0.5"] = (0.5, skeleton.index("neck"), skeleton.index("head_top"))
        links["PCKh@0.1"] = (0.1, skeleton.index("neck"), skeleton.index("head_top"))
    sums = per_person(data, pred)
    assert set(sums) == {*links, "EPE"}
    reports = {
        m.name: pck_report(pck_hits(pred, points, m.mask, m.norm, m.threshold), m.counted, skeleton) for m in pck_metrics(data)
    }
    for name, (t, a, b) in links.items():
        right, total = loop_pck(pred, points, visibility > 0, loop_link(points, visibility, a, b), t)
        assert 0 < sum(right) < sum(total)
        numerator, denominator = sums[name]
        assert numerator.sum() / denominator.sum() == pytest.approx(100 * sum(right) / sum(total), abs=1e-12)
        assert reports[name]["mean"] == pytest.approx(100 * sum(right) / sum(total), abs=1e-12)
        for group, joints in skeleton.groups.items():
            want = sum(100 * right[j] / total[j] for j in joints) / len(joints)
            assert reports[name][group] == pytest.approx(want, abs=1e-12)


def test_skeleton_without_head_link_is_named():
    bare = Skeleton("bare", ("a", "b"))
    data = make_data(bare, "lsp", np.zeros((1, 2, 2)), np.full((1, 2), 2))
    with pytest.raises(LowposeError, match="'bare' has no 'head' link"):
        pck_metrics(data)


def test_epe_against_a_loop():
    points, visibility, pred = random_case(LSP14)
    mask = visibility > 0
    distance = distances(pred, points, mask)
    report = epe_report(distance, mask, LSP14)
    every = {(n, j): math.dist(pred[n, j], points[n, j].astype(float)) for n, j in zip(*np.nonzero(mask), strict=True)}
    assert report["mean"] == pytest.approx(sum(every.values()) / len(every), abs=1e-9)
    for group, joints in LSP14.groups.items():
        inside = [d for (_, j), d in every.items() if j in joints]
        assert report[group] == pytest.approx(sum(inside) / len(inside), abs=1e-9)
    assert (distance[~mask] == 0).all()


def test_epe_in_crop_pixels_weighs_persons_by_their_scale():
    points = np.zeros((2, 14, 2))
    visibility = np.full((2, 14), 2)
    visibility[1, 1:] = 0  # one labelled joint only
    pred = points + [3.0, 4.0]
    data = make_data(LSP14, "lsp", points, visibility)
    report = evaluate_predictions(data, pred, np.ones((2, 14)), np.ones((2, 14)), bootstrap=10, crop_scale=np.array([5.0, 0.5]))
    assert report["metrics"]["EPE"]["value"] == pytest.approx(5.0, abs=1e-12)
    assert report["metrics"]["EPE_crop"]["value"] == pytest.approx((14 * 1.0 + 10.0) / 15, abs=1e-12)
    assert report["groups"]["EPE_crop"]["Ankle"] == pytest.approx((2 * 1.0 + 10.0) / 3, abs=1e-12)
    for bad in (np.ones(3), np.array([1.0, 0.0]), np.array([1.0, np.nan])):
        with pytest.raises(LowposeError, match="crop_scale must be 2 positive numbers"):
            per_person(data, pred, bad)


def test_group_without_labels_and_metric_without_persons_are_left_out():
    points = np.full((1, 14, 2), 5.0)
    visibility = np.zeros((1, 14))
    visibility[0, LSP14.index("left_knee")] = 2
    data = make_data(LSP14, "lsp", points, visibility)
    report = evaluate_predictions(data, points, np.ones((1, 14)), np.ones((1, 14)), bootstrap=30)
    assert report["groups"]["EPE"] == {"Knee": 0.0, "mean": 0.0}
    assert report["groups"]["PCKh@0.5"] == {}
    assert {"PCKh@0.5", "PCKh@0.1", "PCK@0.2"} <= set(report["not_measured"])
    assert report["persons_left_out"]["PCKh@0.5"] == 1
    assert report["metrics"]["EPE"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1}


def test_turning_the_picture_upside_down_changes_nothing():
    points, visibility, pred = random_case(LSP14)
    turned = make_data(LSP14, "lsp", np.where((visibility > 0)[..., None], 300 - points, 0), visibility)
    data = make_data(LSP14, "lsp", points, visibility)
    a, b = per_person(data, pred), per_person(turned, 300 - pred)
    for name in a:
        np.testing.assert_allclose(a[name][0], b[name][0], rtol=0, atol=1e-3)
        np.testing.assert_array_equal(a[name][1], b[name][1])


def test_wrong_arrays_are_named():
    points, visibility, pred = random_case(LSP14, n=3)
    data = make_data(LSP14, "lsp", points, visibility)
    ones = np.ones((3, 14))
    with pytest.raises(LowposeError, match=r"predicted keypoints have shape \(2, 14, 2\); \(3, 14, 2\) fits"):
        evaluate_predictions(data, pred[:2], ones, ones)
    with pytest.raises(LowposeError, match="predicted scores have shape"):
        evaluate_predictions(data, pred, np.ones((3, 13)), ones)
    pred[1, 2, 0] = np.nan
    with pytest.raises(LowposeError, match="predicted keypoints hold values that are not finite"):
        evaluate_predictions(data, pred, ones, ones)
    with pytest.raises(LowposeError, match="unknown protocol 'posetrack'; known: coco, crowdpose, mpii, lsp"):
        evaluate_predictions(make_data(LSP14, "posetrack", points, visibility), points, ones, ones)
