"""Helpers of the AP tests: pycocotools as the oracle, and made-up COCO files and detections."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lowpose.metrics.average_precision import NAMES
from lowpose.samples import PersonSample, PoseData


def pycoco(gt_dict, rows, sigmas, images=None):
    """COCO's ten figures by pycocotools; -1 where there is no person."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(gt_dict))
        gt.createIndex()
        dt = gt.loadRes(json.loads(json.dumps(rows)))
        e = COCOeval(gt, dt, "keypoints")
        e.params.kpt_oks_sigmas = np.array(sigmas)
        if images is not None:
            e.params.imgIds = images
        e.evaluate()
        e.accumulate()
        e.summarize()
    return e.stats


def same(ours, stats):
    for name, want in zip(NAMES, stats, strict=True):
        if want == -1:
            assert math.isnan(ours[name]), name
        else:
            assert ours[name] == pytest.approx(want, abs=1e-9), name


def synthetic(skeleton, images=60, seed=0):
    """A COCO dict with small to large persons, crowds, persons without labels; and jittered detections."""
    rng = np.random.default_rng(seed)
    k = len(skeleton)
    annotations, predictions = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 8)):
            w = float(np.exp(rng.uniform(np.log(12), np.log(200))))
            h = w * rng.uniform(1, 3)
            x, y = rng.uniform(0, 400, 2)
            flags = rng.choice([0, 1, 2], k, p=[0.3, 0.2, 0.5])
            kind = rng.choice(["person", "crowd", "unlabelled"], p=[0.8, 0.1, 0.1])
            flags = flags * (kind == "person")
            points = np.round(rng.uniform([x, y], [x + w, y + h], (k, 2)))
            flat = np.column_stack([points * (flags > 0)[:, None], flags]).ravel().tolist()
            box = [x, y, w, h]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": 7 * image + 3, "category_id": 1, "bbox": box, "keypoints": flat,
                    "num_keypoints": int((flags > 0).sum()), "iscrowd": int(kind == "crowd"), "area": 0.53 * w * h,
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                off = rng.normal(0, rng.choice([0.005, 0.03, 0.1]) * math.sqrt(w * h), (k, 2))
                predictions.append((7 * image + 3, box, points + off, round(rng.uniform(0.1, 1), 1)))
        for _ in range(rng.integers(0, 3)):
            corner, side = rng.uniform(0, 400, 2), rng.uniform(20, 150)
            box = [*corner.tolist(), side, side]
            predictions.append((7 * image + 3, box, rng.uniform(corner, corner + side, (k, 2)), round(rng.uniform(0.1, 0.6), 1)))
    crowd = [float(rng.choice([0.0, 0.1, 0.2, 0.5, 0.79, 0.8, 1.0])) for _ in range(images)]
    pictures = [{"id": 7 * i + 3, "file_name": f"{i}.jpg", "crowdIndex": crowd[i]} for i in range(images)]
    content = {"images": pictures, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    return content, predictions


def detected(skeleton, predictions, path, protocol="coco", boxes="detector.json"):
    """PoseData of detector boxes, and the arrays of their predictions in continuous pixels."""
    k = len(skeleton)
    samples = [
        PersonSample("", np.array(box, float), np.zeros((k, 2), np.float32), np.zeros(k, np.uint8), i + 1, image, score=score)
        for i, (image, box, _, score) in enumerate(predictions)
    ]
    data = PoseData("t", "val", "", skeleton, samples, lambda key: None, boxes=boxes, protocol=protocol, annotations=path)
    keypoints = np.array([p for _, _, p, _ in predictions]).reshape(-1, k, 2) + 0.5
    return data, keypoints


def written(tmp_path, content, name="gt.json"):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def labelled_data(content, skeleton, path, protocol="coco"):
    """PoseData with ground-truth boxes, as a reader makes it."""
    samples = []
    for a in content["annotations"]:
        if a["iscrowd"] or not a["num_keypoints"]:
            continue
        p = np.array(a["keypoints"], float).reshape(-1, 3)
        points = np.where(p[:, 2:] > 0, p[:, :2] + 0.5, 0).astype(np.float32)
        flags = p[:, 2].astype(np.uint8)
        samples.append(PersonSample("", np.array(a["bbox"]), points, flags, a["id"], a["image_id"], area=a["area"]))
    return PoseData("t", "val", "r", skeleton, samples, lambda key: None, protocol=protocol, annotations=path)
