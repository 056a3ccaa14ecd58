"""MPII reader: hand-made files, the published crop and PCKh values computed another way, the shared photographs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from lowpose.data import load_data
from lowpose.errors import LowposeError
from lowpose.geometry import crop_matrix, transform


def person(**changes):
    joints = [[40 + k, 50 + k] for k in range(16)]
    return {"image": "a.png", "center": [50.0, 60.0], "scale": 0.4, "joints": joints, "joints_vis": [1] * 16} | changes


def write(root, rows, split="valid"):
    (root / "annot").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "images" / "a.png"), np.zeros((120, 100, 3), np.uint8))
    (root / "annot" / f"{split}.json").write_text(json.dumps(rows))
    return root


def test_values_by_hand(tmp_path):
    row = person(joints_vis=[0] + [1] * 15)
    row["joints"][3] = [-1, -1]
    data = load_data("mpii", write(tmp_path, [row]), "val")
    (sample,) = data.samples
    assert sample.keypoints[1].tolist() == [40.5, 50.5]  # 41, 51, counted from 1
    assert sample.visibility.tolist() == [0, 2, 2, 0] + [2] * 12
    assert sample.keypoints[0].tolist() == sample.keypoints[3].tolist() == [0, 0]
    assert np.allclose(sample.box, [49.5 - 40, 59.5 + 6 - 40, 80, 80])
    assert sample.area == pytest.approx(14 * 14)
    assert sample.head_size is None and data.protocol == "mpii"
    assert data.sources == (tmp_path / "annot" / "valid.json",)


def test_head_boxes_and_missing_joints(tmp_path):
    write(tmp_path, [person(), person()])
    heads = np.zeros((2, 2, 2))
    heads[:, :, 0] = [[10, 10], [13, 14]]
    heads[:, :, 1] = [[20, 10], [28, 25]]
    missing = np.zeros((16, 2))
    missing[9, 1] = 1
    savemat(tmp_path / "annot" / "gt_valid.mat", {"headboxes_src": heads, "jnt_missing": missing})
    data = load_data("mpii", tmp_path, "valid")
    assert [s.head_size for s in data.samples] == pytest.approx([0.6 * 5, 0.6 * 17])
    assert data.samples[0].labelled.all() and np.flatnonzero(~data.samples[1].labelled).tolist() == [9]
    assert len(data.sources) == 2
    write(tmp_path, [person()], "train")
    assert load_data("mpii", tmp_path, "train").samples[0].head_size is None
    write(tmp_path, [person()])
    with pytest.raises(LowposeError, match="gt_valid.mat: expected 'headboxes_src' 2 x 2 x 1"):
        load_data("mpii", tmp_path, "valid")


BAD = {
    "no joints": ([{k: v for k, v in person().items() if k != "joints"}], "entry 0 has no 'joints'.*not public"),
    "15 joints": ([person(joints=[[1, 1]] * 15)], "entry 0 has 15 joints, skeleton 'mpii16' has 16"),
    "nan": ([person(), person(joints=[[float("nan"), 1]] * 16)], "entry 1: 'joints' holds NaN"),
    "three numbers": ([person(joints=[[1, 1, 1]] * 16)], "entry 0: 'joints' must be 2 numbers"),
    "scale": ([person(scale=-1)], "entry 0 has scale -1"),
    "text": ([person(center="middle")], "entry 0: 'center and scale' must be numbers"),
    "nothing labelled": ([person(joints_vis=[0] * 16)], "no persons"),
    "no list": ({"images": []}, "not an MPII file"),
    "no picture": ([person(image="b.png")], "none of its first pictures"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(tmp_path, case):
    rows, expected = BAD[case]
    with pytest.raises(LowposeError, match=expected) as e:
        load_data("mpii", write(tmp_path, rows), "valid")
    assert "\n" not in str(e.value)


def test_no_detector_boxes(tmp_path):
    with pytest.raises(LowposeError, match="must be 'gt'"):
        load_data("mpii", write(tmp_path, [person()]), "valid", boxes="x.json")


@pytest.mark.photographs
@pytest.mark.parametrize("size", [32, 64, 256])
def test_published_crop(shared, size):
    """Published code moves the 1-based centre c1 down by 15 scale, grows the scale by 1.25, subtracts 1 from centre and joints
    and maps index p to s (p - c) + W / 2 with s = W / (1.25 * 200 scale). In continuous pixels, P = p + 1/2 and
    C = c1 + (0, 15 scale) - 1/2 = c + 1/2, that is U = u + 1/2 = s (P - C) + W / 2 + 1/2: half a crop pixel beyond ours.
    """
    raw = json.loads((shared / "mpii-5" / "test_mpii.json").read_text())
    data = load_data("mpii", shared / "mpii-5", "test_mpii.json")
    assert len(data) == len(raw) == 5
    for row, sample in zip(raw, data.samples, strict=True):
        centre, scale = np.array(row["center"]) + [0, 15 * row["scale"]] - 1, row["scale"] * 1.25
        top = centre - [0, 200 * scale / 2]
        left = top - [200 * scale / 2, 0]
        source = np.array([centre, top, left], np.float32)
        target = np.array([[size / 2, size / 2], [size / 2, 0], [0, 0]], np.float32)
        published = cv2.getAffineTransform(source, target)
        index = np.array(row["joints"]) - 1  # published: 0-based
        seen = sample.labelled
        ours = transform(crop_matrix(sample.box, (size, size), padding=1.25), sample.keypoints)
        assert np.allclose((transform(published, index) + 0.5)[seen], (ours + 0.5)[seen], atol=2e-3)


@pytest.mark.photographs
def test_shared_photographs(shared):
    data = load_data("mpii", shared / "mpii-5", "test_mpii.json")
    assert [int(s.labelled.sum()) for s in data.samples] == [16, 16, 14, 14, 16]
    assert data.samples[0].keypoints[0].tolist() == [803.5, 710.5]
    assert data.read(data.samples[0].image).shape == (720, 1280, 3)
