"""CrowdPose reader: hand-made files and the shared photographs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from lowpose.data import load_data
from lowpose.errors import LowposeError
from lowpose.skeletons import CROWDPOSE14


def write(root, folder="json", **changes):
    (root / folder).mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "images" / "5.png"), np.zeros((80, 100, 3), np.uint8))
    values = {
        "images": [{"id": 5, "file_name": "5.png", "width": 100, "height": 80, "crowdIndex": 0.25}],
        "categories": [{"id": 1, "name": "person", "keypoints": list(CROWDPOSE14.keypoints), "skeleton": [[16, 14]]}],
        "annotations": [
            {
                "id": 3,
                "image_id": 5,
                "category_id": 1,
                "iscrowd": 0,
                "num_keypoints": 14,
                "bbox": [10, 20, 30, 40],
                "keypoints": [20, 30, 2] * 14,
            }
        ],
    }
    (root / folder / "crowdpose_test.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize("folder", ["json", "annotations"])
def test_values_by_hand(tmp_path, folder):
    write(tmp_path, folder)
    data = load_data("crowdpose", tmp_path, "test")
    (sample,) = data.samples
    assert sample.crowd == 0.25 and sample.area == pytest.approx(0.53 * 30 * 40)
    assert np.array_equal(sample.keypoints, np.full((14, 2), [20.5, 30.5]))
    assert data.skeleton == CROWDPOSE14 and data.protocol == "crowdpose" and data.boxes == "gt"


def test_detector_boxes_keep_the_crowd_index(tmp_path):
    write(tmp_path)
    (tmp_path / "det.json").write_text(json.dumps([{"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    (sample,) = load_data("crowdpose", tmp_path, "test", boxes="det.json").samples
    assert sample.crowd == 0.25 and sample.score == 0.5 and not sample.labelled.any()


@pytest.mark.parametrize(
    "index, expected", [(None, "picture 5: 'crowdIndex' holds NaN"), ("high", "picture 5: 'crowdIndex' must be numbers")]
)
def test_bad_crowd_index(tmp_path, index, expected):
    write(tmp_path, images=[{"id": 5, "file_name": "5.png", "crowdIndex": index}])
    with pytest.raises(LowposeError, match=expected):
        load_data("crowdpose", tmp_path, "test")


def test_without_crowd_index(tmp_path):
    write(tmp_path, images=[{"id": 5, "file_name": "5.png"}])
    with pytest.raises(LowposeError, match="picture 5 has no 'crowdIndex'"):
        load_data("crowdpose", tmp_path, "test")


@pytest.mark.photographs
def test_shared_photographs(shared):
    root = shared / "crowdpose-2"
    data = load_data("crowdpose", root, "test_crowdpose.json")
    assert len(data) == 4 and {s.crowd for s in data.samples} == {0.33, 0.39}
    first = data.samples[0]
    assert first.id == 123803 and first.area == pytest.approx(0.53 * 273.15 * 352.42)
    assert first.keypoints[1].tolist() == [208.5, 108.5] and first.keypoints[0].tolist() == [0, 0]
    boxes = json.loads((root / "test_crowdpose_det_AP_40.json").read_text())
    detected = load_data("crowdpose", root, "test_crowdpose.json", boxes=str(root / "test_crowdpose_det_AP_40.json"))
    wanted = [b for b in boxes if b["image_id"] in (103319, 106848) and b["category_id"] == 1]
    assert [s.score for s in detected.samples] == [b["score"] for b in wanted]
