"""AP on real annotations and on CrowdPose's splits against pycocotools."""

import json
import math

import numpy as np
import pytest
from coco_oracle import detected, pycoco, synthetic, written

from lowpose.metrics import evaluate_predictions
from lowpose.metrics.average_precision import NAMES, evaluate_rows, ground_truth
from lowpose.metrics.crowdpose import crowd_stats
from lowpose.metrics.oks import coco_rows
from lowpose.skeletons import COCO17, CROWDPOSE14


def test_crowdpose_equals_pycocotools_split_by_split(tmp_path):
    content, predictions = synthetic(CROWDPOSE14, images=80, seed=6)
    wide = json.loads(json.dumps(content))
    for a in content["annotations"]:
        del a["area"]  # CrowdPose has none; the oracle gets 0.53 w h
    data, keypoints = detected(CROWDPOSE14, predictions, written(tmp_path, content), protocol="crowdpose")
    scores = np.random.default_rng(2).uniform(0.2, 1, keypoints.shape[:2])
    report = evaluate_predictions(data, keypoints, scores, scores, bootstrap=20)
    rows = coco_rows(data, keypoints, scores, scores, 0.2, 0.9)
    stats = pycoco(wide, rows, CROWDPOSE14.sigmas)
    want = {"AP": stats[0], "AP50": stats[1], "AP75": stats[2], "AR": stats[5]}
    low = [p["id"] for p in wide["images"] if p["crowdIndex"] < 0.2]
    high = [p["id"] for p in wide["images"] if p["crowdIndex"] >= 0.8]
    middle = [p["id"] for p in wide["images"] if p["id"] not in low + high]
    assert {p["crowdIndex"] for p in wide["images"] if p["id"] in middle} == {0.2, 0.5, 0.79}
    for name, ids in (("AP_easy", low), ("AP_medium", middle), ("AP_hard", high)):
        want[name] = pycoco(wide, rows, CROWDPOSE14.sigmas, ids)[0]
    assert set(report["metrics"]) == set(want)
    for name, value in want.items():
        assert report["metrics"][name]["value"] == pytest.approx(100 * value, abs=1e-7), name
        assert report["metrics"][name]["low"] < report["metrics"][name]["value"] < report["metrics"][name]["high"]
    assert len({round(want[f"AP_{n}"], 6) for n in ("easy", "medium", "hard")}) == 3
    counted = {
        p["id"]: sum(a["image_id"] == p["id"] and a["num_keypoints"] > 0 for a in wide["annotations"]) for p in wide["images"]
    }
    assert report["metrics"]["AP_hard"]["n"] == sum(counted[i] for i in high)
    truth = ground_truth(data)
    _, table = evaluate_rows(truth, rows, np.array(CROWDPOSE14.sigmas))
    assert crowd_stats(table, truth.crowd) == pytest.approx(want, abs=1e-9)


def noisy_poses(content, boxes, k, rng):
    """Made-up predictions for a detector's boxes: the labels of the best overlapping person plus noise."""
    out = []
    for row in boxes:
        x, y, w, h = row["bbox"]
        points = rng.uniform([x, y], [x + w, y + h], (k, 2))
        for a in content["annotations"]:
            ax, ay, aw, ah = a["bbox"]
            inter = max(0, min(x + w, ax + aw) - max(x, ax)) * max(0, min(y + h, ay + ah) - max(y, ay))
            if a["image_id"] == row["image_id"] and inter / (w * h + aw * ah - inter) > 0.4:
                known = np.array(a["keypoints"], float).reshape(k, 3)
                points = np.where(known[:, 2:] > 0, known[:, :2], points) + rng.normal(0, 0.03 * math.sqrt(w * h), (k, 2))
        out.append((row["image_id"], row["bbox"], points, row["score"]))
    return out


@pytest.mark.photographs
@pytest.mark.parametrize(
    ("folder", "gt_name", "box_name", "skeleton"),
    [
        ("coco-4", "test_coco.json", "test_coco_det_AP_H_56.json", COCO17),
        ("crowdpose-2", "test_crowdpose.json", "test_crowdpose_det_AP_40.json", CROWDPOSE14),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_real_annotations_equal_pycocotools(shared, folder, gt_name, box_name, skeleton, seed):
    path = shared / folder / gt_name
    content = json.loads(path.read_text())
    rng = np.random.default_rng(seed)
    boxes = [r for r in json.loads((shared / folder / box_name).read_text()) if r["category_id"] == 1]
    protocol = "crowdpose" if "crowd" in folder else "coco"
    predictions = noisy_poses(content, boxes, len(skeleton), rng)
    data, keypoints = detected(skeleton, predictions, path, protocol, box_name)
    scores = rng.uniform(0, 1, keypoints.shape[:2])
    report = evaluate_predictions(data, keypoints, scores, scores, keypoint_threshold=0.2, nms=0.9, bootstrap=20)
    rows = json.loads(json.dumps(coco_rows(data, keypoints, scores, scores, 0.2, 0.9)))
    for a in content["annotations"]:
        a.setdefault("area", 0.53 * a["bbox"][2] * a["bbox"][3])
    stats = dict(zip(NAMES, pycoco(content, rows, skeleton.sigmas), strict=True))
    assert 0.05 < stats["AP"] < 0.95
    shown = [n for n in NAMES if n in report["metrics"]]
    assert shown == (list(NAMES) if protocol == "coco" else ["AP", "AP50", "AP75", "AR"])
    for name in shown:
        assert report["metrics"][name]["value"] == pytest.approx(100 * stats[name], abs=1e-7)
    assert report["boxes"] == box_name and report["groups"] == {}
