"""COCO reader: hand-made files, published crops computed another way, and the shared photographs."""

from __future__ import annotations

import copy
import json

import cv2
import numpy as np
import pytest

from lowpose.data import load_data
from lowpose.data._coco_format import from_category
from lowpose.errors import LowposeError
from lowpose.geometry import crop_matrix, transform
from lowpose.skeletons import COCO17

HAND = {"id": 7, "name": "hand", "keypoints": ["left_tip", "right_tip", "palm"], "skeleton": [[1, 3], [2, 3]]}


def annotation(i=1, image=10, **changes):
    row = {"id": i, "image_id": image, "category_id": 7, "iscrowd": 0, "num_keypoints": 2, "area": 300.0}
    return row | {"bbox": [10, 20, 30, 40], "keypoints": [12, 25, 2, 0, 0, 0, 30, 50, 1]} | changes


@pytest.fixture
def root(tmp_path):
    """A COCO-format folder with one 100 x 80 picture and one person of three keypoints; `root.write` replaces the file."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((80, 100, 3), np.uint8))

    def write(**changes):
        values = {
            "images": [{"id": 10, "file_name": "a.png", "width": 100, "height": 80}],
            "categories": [copy.deepcopy(HAND)],
            "annotations": [annotation()],
        }
        (tmp_path / "hands.json").write_text(json.dumps(values | changes))
        return tmp_path

    write()
    write.root = tmp_path
    return write


def test_values_by_hand(root):
    data = load_data("coco", root.root, "hands.json")
    (sample,) = data.samples
    assert sample.keypoints.tolist() == [[12.5, 25.5], [0, 0], [30.5, 50.5]]
    assert sample.visibility.tolist() == [2, 0, 1]
    assert sample.box.tolist() == [10, 20, 30, 40]
    assert (sample.image, sample.id, sample.image_id, sample.area, sample.score) == ("images/a.png", 1, 10, 300.0, 1.0)
    assert (data.protocol, data.boxes, data.annotations) == ("coco", "gt", root.root / "hands.json")
    assert data.sources == (root.root / "hands.json",)
    assert data.read(sample.image).shape == (80, 100, 3)


def test_skeleton_from_the_category(root):
    skeleton = load_data("coco", root.root, "hands.json").skeleton
    assert skeleton.keypoints == ("left_tip", "right_tip", "palm")
    assert skeleton.pairs == ((0, 1),) and skeleton.edges == ((0, 2), (1, 2)) and skeleton.sigmas is None


def test_own_skeleton_file(root):
    own = root.root / "own.yaml"
    own.write_text("name: own\nkeypoints: [left_tip, right_tip, palm]\npairs: [[left_tip, right_tip]]\nsigmas: [0.1, 0.1, 0.2]\n")
    data = load_data("coco", root.root, "hands.json", skeleton=str(own))
    assert data.skeleton.name == "own" and data.skeleton.sigmas == (0.1, 0.1, 0.2)


def test_what_published_code_leaves_out(root):
    rows = [
        annotation(1),
        annotation(2, iscrowd=1),
        annotation(3, num_keypoints=0, keypoints=[0] * 9),
        annotation(4, bbox=[10, 20, 0, 40]),
        annotation(5, area=0),
        annotation(6, category_id=8),
        annotation(7, bbox=[-5, 70, 30, 40]),
        annotation(8, bbox=[100, 20, 30, 40]),
    ]
    data = load_data("coco", root(annotations=rows), "hands.json")
    assert [s.id for s in data.samples] == [1, 7]
    assert data.samples[1].box.tolist() == [0, 70, 30, 10]  # the corner moves in, then the far sides are cut at 100 x 80


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "."])
def test_places_of_pictures(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "annotations").mkdir()
    cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((80, 100, 3), np.uint8))
    values = {"images": [{"id": 10, "file_name": "a.png"}], "categories": [HAND], "annotations": [annotation()]}
    (tmp_path / "annotations" / "person_keypoints_train2017.json").write_text(json.dumps(values))
    data = load_data("coco", tmp_path, "train")
    assert data.read(data.samples[0].image).shape == (80, 100, 3)


def test_detector_boxes(root):
    rows = [
        {"image_id": 10, "category_id": 7, "bbox": [1, 2, 30, 40], "score": 0.75},
        {"image_id": 10, "category_id": 7, "bbox": [1, 2, 30, 0], "score": 0.7},
        {"image_id": 10, "category_id": 7, "bbox": [1, 2, 30, 40], "score": -0.1},
        {"image_id": 10, "category_id": 8, "bbox": [1, 2, 30, 40], "score": 0.6},
        {"image_id": 11, "category_id": 7, "bbox": [1, 2, 30, 40], "score": 0.6},
        {"image_id": 10, "category_id": 7, "bbox": [-3, 2, 130, 40], "score": 0.0},
    ]
    (root.root / "det.json").write_text(json.dumps(rows))
    data = load_data("coco", root.root, "hands.json", boxes=str(root.root / "det.json"))
    assert [s.score for s in data.samples] == [0.75, 0.0] and [s.id for s in data.samples] == [1, 2]
    assert data.samples[1].box.tolist() == [-3, 2, 130, 40]  # published code does not clip detections
    assert not any(s.labelled.any() for s in data.samples)
    assert data.boxes == "det.json" and data.sources == (root.root / "hands.json", root.root / "det.json")


NAN = float("nan")
BAD = {
    "nan joint": ({"annotations": [annotation(5, keypoints=[NAN, 25, 2, 0, 0, 0, 30, 50, 1])]}, "annotation 5.*NaN"),
    "infinite box": ({"annotations": [annotation(5, bbox=[10, 20, float("inf"), 40])]}, "annotation 5.*infinity"),
    "text joint": ({"annotations": [annotation(5, keypoints=["x"] * 9)]}, "annotation 5.*must be numbers"),
    "wrong length": ({"annotations": [annotation(5, keypoints=[1, 2, 2] * 4)]}, "annotation 5 has 12 .* 3 x 3 = 9"),
    "box of three": ({"annotations": [annotation(5, bbox=[1, 2, 3])]}, "annotation 5: 'bbox' must be 4 numbers"),
    "visibility": ({"annotations": [annotation(5, keypoints=[12, 25, 3, 0, 0, 0, 30, 50, 1])]}, "annotation 5.*0, 1 or 2, not 3"),
    "no area": ({"annotations": [{k: v for k, v in annotation(5).items() if k != "area"}]}, "annotation 5 has no 'area'"),
    "no box": ({"annotations": [{k: v for k, v in annotation(5).items() if k != "bbox"}]}, "annotation 5 has no 'bbox'"),
    "no keypoints": ({"annotations": [{k: v for k, v in annotation(5).items() if k != "keypoints"}]}, "5 has no 'keypoints'"),
    "unknown picture": ({"annotations": [annotation(5, image=99)]}, "annotation 5 is in picture 99"),
    "same id": ({"annotations": [annotation(5), annotation(5)]}, "annotation 5.*ids must differ"),
    "same picture id": ({"images": [{"id": 10, "file_name": "a.png"}] * 2}, "two pictures have id 10"),
    "picture without name": ({"images": [{"id": 10}]}, "picture 0 of 'images' needs"),
    "no pictures": ({"images": []}, "'images' must be"),
    "other pictures": ({"images": [{"id": 10, "file_name": "b.png"}]}, "none of its first pictures"),
    "no category": ({"categories": []}, "no category has 'keypoints'"),
    "two categories": ({"categories": [HAND, HAND | {"id": 8, "name": "foot"}]}, "2 categories .*hand, foot"),
    "edge": ({"categories": [HAND | {"skeleton": [[0, 1]]}]}, r"\[0, 1\]; edges are two keypoint numbers from 1 to 3"),
    "one side": ({"categories": [HAND | {"keypoints": ["left_tip", "tip", "palm"]}]}, "'left_tip' has no 'right_tip'"),
    "all unlabelled": ({"annotations": [annotation(5, keypoints=[0] * 9)]}, "no persons"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(root, case):
    changes, expected = BAD[case]
    with pytest.raises(LowposeError, match=expected) as e:
        load_data("coco", root(**changes), "hands.json")
    assert "\n" not in str(e.value) and str(root.root) in str(e.value)


@pytest.mark.parametrize(
    "text, expected", [("", "not JSON"), ('{"images": [1, 2', "cut short"), ("[]", "no 'images'"), ("\x80", "not JSON")]
)
def test_files_that_are_not_coco(root, text, expected):
    (root.root / "hands.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LowposeError, match=expected):
        load_data("coco", root.root, "hands.json")


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"image_id": 10, "category_id": 7, "score": 1}, "entry 0 has no 'bbox'"),
        ({"image_id": 10, "category_id": 7, "bbox": [1, 2, NAN, 4], "score": 1}, "entry 0.*NaN"),
        ({"image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4], "score": "high"}, "entry 0: 'score' must be numbers"),
        ({"image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 1}, "none of its 1 boxes"),
    ],
)
def test_bad_detections(root, row, expected):
    (root.root / "det.json").write_text(json.dumps([row]))
    with pytest.raises(LowposeError, match=expected):
        load_data("coco", root.root, "hands.json", boxes=str(root.root / "det.json"))


def test_missing_split_names_what_is_there(root):
    (root.root / "annotations").mkdir()
    (root.root / "annotations" / "person_keypoints_val2017.json").write_text("{}")
    with pytest.raises(LowposeError, match="there are: person_keypoints_val2017.json"):
        load_data("coco", root.root, "train")


def test_skeleton_that_does_not_fit(root):
    with pytest.raises(LowposeError, match="has 3 keypoints, skeleton 'coco17' has 17"):
        load_data("coco", root.root, "hands.json", skeleton="coco17")
    own = root.root / "own.yaml"
    own.write_text("name: own\nkeypoints: [right_tip, left_tip, palm]\n")
    with pytest.raises(LowposeError, match="in another order"):
        load_data("coco", root.root, "hands.json", skeleton=str(own))


def published_affine(centre, side, size):
    """Index map of published code from three points: the centre, one half a side above it, and the third at a right angle."""
    centre = np.asarray(centre, np.float32)
    up = np.array([0, -side / 2], np.float32)
    middle = np.array([size / 2, size / 2], np.float32)
    lift = np.array([0, -size / 2], np.float32)
    turn = np.array([[0, 1], [-1, 0]], np.float32)
    source = np.stack([centre, centre + up, centre + up + turn @ up])
    target = np.stack([middle, middle + lift, middle + lift + turn @ lift])
    return cv2.getAffineTransform(source, target)


@pytest.mark.photographs
@pytest.mark.parametrize("size", [32, 64, 256])
def test_published_crops(shared, size):
    """Published code maps pixel index p to s (p - c) + W / 2. With P = p + 1/2 and U = u + 1/2 that is
    U = s (P - 1/2 - c) + W / 2 + 1/2.

    For detections its c is x + w / 2, as ours: U lies (1 - s) / 2 beyond ours. For ground truth it takes the last pixel minus the
    first for a side, w - 1, and c is x + (w - 1) / 2: that is our crop of the box without half a pixel on each side, the
    same centre, and U lies half a crop pixel beyond it.
    """
    raw = json.loads((shared / "coco-4" / "test_coco.json").read_text())
    boxes = {row["id"]: row["bbox"] for row in raw["annotations"]}
    points = np.array([[0.0, 0.0], [100.0, 30.0], [17.0, 250.0]])
    for sample in load_data("coco", shared / "coco-4", "test_coco.json").samples:
        x, y, w, h = boxes[sample.id]
        published = published_affine([x + (w - 1) / 2, y + (h - 1) / 2], 1.25 * max(w - 1, h - 1), size)
        ours = transform(crop_matrix(sample.box + [0.5, 0.5, -1, -1], (size, size)), points + 0.5)
        assert np.allclose(transform(published, points) + 0.5, ours + 0.5, atol=2e-3)
    detected = load_data("coco", shared / "coco-4", "test_coco.json", boxes="test_coco_det_AP_H_56.json")
    for sample in detected.samples[:20]:
        x, y, w, h = sample.box
        published = published_affine([x + w / 2, y + h / 2], 1.25 * max(w, h), size)
        ours = transform(crop_matrix(sample.box, (size, size)), points + 0.5)
        s = size / (1.25 * max(w, h))
        assert np.allclose(transform(published, points) + 0.5, ours + (1 - s) / 2, atol=5e-3)


@pytest.mark.photographs
def test_shared_photographs(shared):
    from pycocotools.coco import COCO

    path = shared / "coco-mini" / "annotations" / "person_keypoints_train2017.json"
    oracle = COCO(str(path))
    data = load_data("coco", shared / "coco-mini", "train")
    wanted = {i: a for i, a in oracle.anns.items() if a["num_keypoints"] > 0 and not a["iscrowd"]}
    assert len(data) == len(wanted) == 86 and data.skeleton == COCO17
    for sample in data.samples:
        row = wanted[sample.id]
        rows = np.array(row["keypoints"], float).reshape(17, 3)
        assert np.array_equal(sample.visibility, rows[:, 2])
        assert np.allclose(sample.keypoints[sample.labelled] - 0.5, rows[sample.labelled, :2])
        assert sample.area == row["area"] and np.allclose(sample.box, row["bbox"], atol=0.02)
    picture = data.read(data.samples[0].image)
    assert picture.shape[:2] == (oracle.imgs[data.samples[0].image_id]["height"], oracle.imgs[data.samples[0].image_id]["width"])
    split = load_data("coco", shared / "coco-mini", "annotations/person_keypoints_train2017.json")
    assert [s.image for s in split.samples] == [s.image for s in data.samples]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["l_wrist", "tail", "r_wrist"], ((0, 2),)),
        (["wrist_R", "wrist_L"], ((1, 0),)),
        (["left_eye", "right_eye", "leftover"], None),
        (["nose", "right_ear"], None),
        (["nail", "roll"], ()),
    ],
)
def test_pairs_from_the_names_of_a_category(names, pairs):
    category = {"name": "dog", "keypoints": names}
    if pairs is None:
        with pytest.raises(LowposeError, match="has no '.*'; give skeleton=FILE.yaml"):
            from_category(category, "file")
    else:
        assert from_category(category, "file").pairs == pairs
