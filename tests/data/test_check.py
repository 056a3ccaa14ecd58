"""`data check`: every kind of problem is found in a data set that has it, and left/right exchanges are found."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from rich.console import Console
from scipy.io import savemat

from lowpose.data import load_data
from lowpose.data._sides import agreement, crossed
from lowpose.data.check import check_data, print_report
from lowpose.errors import LowposeError
from lowpose.skeletons import COCO17, LSP14

STANDING = {  # a person who stands and faces the camera, 100 wide and 200 high: their left is on the right of the picture
    "nose": (50, 30), "left_eye": (55, 20), "right_eye": (45, 20), "left_ear": (62, 24), "right_ear": (38, 24),
    "left_shoulder": (70, 50), "right_shoulder": (30, 50), "left_elbow": (82, 80), "right_elbow": (18, 80),
    "left_wrist": (88, 110), "right_wrist": (12, 110), "left_hip": (62, 110), "right_hip": (38, 110),
    "left_knee": (64, 150), "right_knee": (36, 150), "left_ankle": (66, 190), "right_ankle": (34, 190),
    "neck": (50, 45), "head_top": (50, 10),
}  # fmt: skip


def standing(skeleton) -> np.ndarray:
    return np.array([STANDING[name] for name in skeleton.keypoints], float)


def annotation(i, image=1, points=None, **changes):
    points = standing(COCO17) + 20 if points is None else points
    row = {
        "id": i,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": 17,
        "area": 9000.0,
        "bbox": [25, 20, 90, 200],
    }
    return row | {"keypoints": [float(v) for p in points for v in (*p, 2)]} | changes


def coco(root, rows, pictures=1):
    root.mkdir(exist_ok=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 150, "height": 240} for i in range(1, pictures + 1)]
    noise = np.random.default_rng(0).integers(0, 255, (240, 150, 3), np.uint8)
    for image in images:
        cv2.imwrite(str(root / image["file_name"]), noise)
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoints)}
    (root / "all.json").write_text(json.dumps({"images": images, "categories": [category], "annotations": rows}))
    return root


def test_a_good_data_set(tmp_path):
    root = coco(tmp_path, [annotation(1), annotation(2, 2, num_keypoints=0, keypoints=[0] * 51)], 2)
    report = check_data("coco", root, "all.json")
    assert report.ok and report.counts == {"no-joints": 1}
    assert (report.pictures, report.persons, report.skeleton) == (1, 1, "coco17")
    assert report.joints["nose"] == (1, 1)
    assert dict(report.histogram())["192-256"] == 1 and report.quantiles()[50] == 200
    json.dumps(report.to_dict())


PROBLEMS = {
    "missing-picture": lambda root: (root / "2.jpg").unlink(),
    "broken-picture": lambda root: (root / "2.jpg").write_bytes((root / "2.jpg").read_bytes()[:3000]),
    "picture-size": lambda root: cv2.imwrite(str(root / "2.jpg"), np.zeros((150, 240, 3), np.uint8)),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_pictures(tmp_path, kind):
    root = coco(tmp_path, [annotation(i, i) for i in (1, 2, 3)], 3)
    PROBLEMS[kind](root)
    report = check_data("coco", root, "all.json")
    (problem,) = [p for p in report.problems if p.kind == kind]
    assert problem.image == "2.jpg" and "2.jpg" in problem.message and not report.ok
    assert ("missing-picture" in check_data("coco", root, "all.json", decode=False).counts) == (kind == "missing-picture")


ROWS = {
    "bad-value": annotation(9, keypoints=[float("nan")] * 51),
    "length": annotation(9, keypoints=[1, 1, 2] * 16),
    "missing-key": {"id": 9, "image_id": 1},
    "duplicate-id": annotation(1),
    "missing-picture": annotation(9, 77),
    "no-area": annotation(9, bbox=[25, 20, 0, 200]),
    "box-outside": annotation(9, bbox=[25, 100, 90, 200]),
    "joint-outside": annotation(9, points=standing(COCO17) + [70, 20]),
    "duplicate-person": annotation(9),
    "swapped": annotation(9, points=(standing(COCO17) + 20)[[0, 1, 2, 3, 4, 6, 5, *range(7, 17)]]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_annotations_are_reported_and_the_rest_is_read(tmp_path, kind):
    report = check_data("coco", coco(tmp_path, [annotation(1), ROWS[kind]]), "all.json")
    found = [p for p in report.problems if p.kind == kind]
    assert len(found) == 1 and "\n" not in found[0].message
    assert found[0].annotation == (1 if kind == "duplicate-id" else 9)
    assert report.persons >= 1
    assert check_data("coco", coco(tmp_path, [annotation(1)]), "all.json").ok


def test_nan_of_another_reader(tmp_path):
    joints = np.zeros((14, 3, 3))
    joints[:, :2] = standing(LSP14)[..., None]
    joints[:, 2] = 1
    joints[3, 0, 1] = np.nan
    savemat(tmp_path / "joints.mat", {"joints": joints})
    report = check_data("lsp", tmp_path, "all", decode=False)
    assert report.counts == {"missing-picture": 2, "bad-value": 1} and report.persons == 2
    assert report.problems[-1].annotation == 2


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(LowposeError, match="no such folder"):
        check_data("coco", tmp_path / "none", "train")
    (tmp_path / "a.json").write_text('{"images": ')
    with pytest.raises(LowposeError, match="not JSON"):
        check_data("coco", tmp_path, "a.json")


def test_after_a_check_loading_is_strict_again(tmp_path):
    root = coco(tmp_path, [annotation(1), ROWS["bad-value"]])
    assert check_data("coco", root, "all.json").counts["bad-value"] == 1
    with pytest.raises(LowposeError, match="annotation 9.*NaN"):
        load_data("coco", root, "all.json")


def test_printed_report(tmp_path):
    root = coco(tmp_path, [annotation(1), ROWS["swapped"], ROWS["joint-outside"] | {"id": 10}])
    out = io.StringIO()
    console = Console(file=out, width=100)
    print_report(check_data("coco", root, "all.json", console=console), console, examples=1)
    text = out.getvalue()
    assert "3 persons in 1" in text and "left_shoulder" in text and "192-256" in text and "50% 200" in text
    assert "1 persons whose left and right look exchanged" in text and "annotation 9" in text


def exchanged(points, labelled, pair):
    points, labelled = points.copy(), labelled.copy()
    points[:, pair] = points[:, pair[::-1]]
    labelled[:, pair] = labelled[:, pair[::-1]]
    return points, labelled


def crowd(skeleton, n=60):
    """Standing people, each turned, scaled, mirrored (seen from behind) and shaken."""
    rng = np.random.default_rng(5)
    people = []
    for i in range(n):
        p = standing(skeleton) - [50, 100]
        if i % 3 == 0 and "nose" not in skeleton.keypoints:
            p[:, 0] *= -1
        angle, size = rng.uniform(-3, 3), rng.uniform(0.5, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        people.append(size * (p + rng.normal(0, 1.0, p.shape)) @ turn.T + 300)
    return np.array(people), np.ones((n, len(skeleton)), bool)


@pytest.mark.parametrize("skeleton", [COCO17, LSP14], ids=lambda s: s.name)
def test_every_exchanged_pair_is_found(skeleton):
    points, labelled = crowd(skeleton)
    assert crossed(points, labelled, skeleton) == [] and agreement(points, labelled, skeleton).exchanged == []
    for pair in map(list, skeleton.pairs):
        part = skeleton.keypoints[pair[0]].split("_")[1]
        wrong = exchanged(points, labelled, pair)
        (line,) = agreement(*wrong, skeleton).exchanged
        assert part in line
        found = {i for i, _ in crossed(*wrong, skeleton)}
        if part not in ("knee", "ankle"):  # standing legs are parallel and close: crossing them lengthens them too little
            assert len(found) > 0.9 * len(points), part


def test_limbs_by_hand():
    """Hips 24 apart, knees 40 below, ankles 40 below these. Exchanged knees, legs 16 apart: thighs hypot(20, 40) instead of
    hypot(4, 40), shins hypot(16, 40) instead of 40: 1.09 times as long. Legs 80 apart: hypot(52, 40) and hypot(80, 40) instead
    of hypot(28, 40) and 40: 1.75 times."""
    points = standing(LSP14)[None].repeat(2, 0)
    knees = [LSP14.index("left_knee"), LSP14.index("right_knee")]
    ankles = [LSP14.index("left_ankle"), LSP14.index("right_ankle")]
    points[0, knees, 0] = points[0, ankles, 0] = [58, 42]
    points[1, knees, 0] = points[1, ankles, 0] = [90, 10]
    found = crossed(*exchanged(points, np.ones((2, 14), bool), knees), LSP14)
    assert found == [(1, "left and right knee look exchanged: limbs 1.7 times as long as otherwise")]


def test_a_body_exchanged_under_a_right_face():
    """Shoulders seen broadly cannot face away from eyes that are seen; a body in profile (a fifth as wide) can."""
    body = [i for i, name in enumerate(COCO17.keypoints) if name.split("_")[-1] not in ("nose", "eye", "ear")]
    points = standing(COCO17)[None].repeat(2, 0)
    points[:, body] = points[:, COCO17.flip_index][:, body]
    points[1][body] = (points[1][body] - [50, 0]) * [0.2, 1] + [50, 0]
    (found,) = crossed(points, np.ones((2, 17), bool), COCO17)
    assert found[0] == 0 and "eyes and shoulders" in found[1]


def test_a_whole_data_set_exchanged():
    points, labelled = crowd(LSP14)
    share, n = agreement(points, labelled, LSP14).facing
    assert (share, n) == (pytest.approx(40 / 60), 60)
    flip = LSP14.flip_index
    (line,) = agreement(points[:, flip], labelled[:, flip], LSP14).exchanged
    assert "33% of 60 people" in line


@pytest.mark.photographs
def test_lspet_with_exchanged_labels(shared):
    """On noisy labels of very varied poses few persons are named, and most of those exchanged on purpose."""
    data = load_data("lsp", shared / "lspet", "val")
    points = np.stack([s.keypoints for s in data.samples])
    labelled = np.stack([s.labelled for s in data.samples])
    before = {i for i, _ in crossed(points, labelled, LSP14)}
    assert len(before) < 0.05 * len(data)
    least = {"shoulder": 0.8, "elbow": 0.8, "hip": 0.75, "wrist": 0.7, "knee": 0.5, "ankle": 0.45}
    for pair in map(list, LSP14.pairs):
        part = LSP14.keypoints[pair[0]].split("_")[1]
        wrong = exchanged(points, labelled, pair)
        both = {i for i in np.flatnonzero(labelled[:, pair].all(1)) if i not in before}
        found = {i for i, _ in crossed(*wrong, LSP14)} & both
        assert len(found) > least[part] * len(both), part
        (line,) = agreement(*wrong, LSP14).exchanged
        assert part in line


@pytest.mark.photographs
def test_shared_photographs(shared):
    report = check_data("coco", shared / "coco-mini", "train")
    assert (report.persons, report.pictures) == (86, 28)
    assert set(report.counts) <= {"swapped", "no-joints"} and report.counts["no-joints"] > 50
    assert sum(n for _, n in report.histogram()) == 86
    data = load_data("crowdpose", shared / "crowdpose-2", "test_crowdpose.json")
    assert check_data(data).ok
    shifted = replace(data, samples=[replace(s, box=s.box + [5000, 0, 0, 0]) for s in data.samples])
    assert check_data(shifted).counts == {"box-outside": 4}
    detected = check_data("coco", shared / "coco-4", "test_coco.json", boxes="test_coco_det_AP_H_56.json")
    assert detected.ok and detected.persons == 118 and detected.joints["nose"] == (0, 0)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"bbox": [0, 0, 150, 240]}, "the same joints"),
        ({"points": standing(COCO17) + [23, 20]}, "nearly the same box .IoU 1.00."),
        ({"bbox": [0, 0, 150, 240], "points": standing(COCO17) + [23, 20]}, None),
    ],
)
def test_duplicates_by_joints_or_by_box(tmp_path, changes, expected):
    report = check_data("coco", coco(tmp_path, [annotation(1), annotation(9, **changes)]), "all.json")
    found = [p.message for p in report.problems if p.kind == "duplicate-person"]
    assert len(found) == (expected is not None)
    assert all(re.search(expected, message) for message in found)
