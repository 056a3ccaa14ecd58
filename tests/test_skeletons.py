"""Skeletons: published orders and sigmas, the YAML form, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from pycocotools.cocoeval import Params

from lowpose.errors import LowposeError
from lowpose.skeletons import BUILT_IN, COCO17, CROWDPOSE14, LSP14, MPII16, Skeleton, get_skeleton


@pytest.mark.parametrize("skeleton", BUILT_IN.values(), ids=BUILT_IN)
def test_flip_is_an_involution_by_name(skeleton):
    index = skeleton.flip_index
    assert np.array_equal(index[index], np.arange(len(skeleton)))
    for k, name in enumerate(skeleton.keypoints):
        other = name.replace("left_", "RIGHT_").replace("right_", "left_").replace("RIGHT_", "right_")
        assert skeleton.keypoints[index[k]] == other
    assert skeleton.name == get_skeleton(skeleton.name).name


def test_published_orders():
    assert COCO17.keypoints[:7] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder")
    assert CROWDPOSE14.keypoints[-2:] == ("head", "neck") and CROWDPOSE14.keypoints[0] == "left_shoulder"
    assert MPII16.keypoints[6:10] == ("pelvis", "thorax", "upper_neck", "head_top") and MPII16.keypoints[0] == "right_ankle"
    assert LSP14.keypoints[12:] == ("neck", "head_top") and LSP14.keypoints[5] == "left_ankle"


def test_coco_sigmas_are_pycocotools():
    assert np.allclose(COCO17.sigmas, Params(iouType="keypoints").kpt_oks_sigmas)
    crowd = [0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079]
    assert np.allclose(CROWDPOSE14.sigmas, crowd)  # crowdposetools


@pytest.mark.parametrize("skeleton", BUILT_IN.values(), ids=BUILT_IN)
def test_round_trip_through_yaml(skeleton, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(skeleton.to_dict()))
    assert get_skeleton(path) == skeleton


GOOD = {"name": "hand", "keypoints": ["a", "b", "c"], "pairs": [["a", "b"]]}


@pytest.mark.parametrize(
    "change,answer",
    [
        ({"keypoints": ["a", "a"], "pairs": []}, "all different"),
        ({"keypoints": [], "pairs": []}, "at least one"),
        ({"keypoints": "abc"}, "must be a list of names"),
        ({"keypoint": ["a"]}, "unknown key 'keypoint'; did you mean 'keypoints'"),
        ({"pairs": [["a", "b"], ["b", "c"]]}, "two left/right pairs"),
        ({"pairs": [["a", "a"]]}, "its own pair"),
        ({"pairs": [["a", "bb"]]}, "unknown keypoint 'bb'; did you mean 'b'"),
        ({"pairs": 5}, "list of \\[a, b\\] pairs"),
        ({"pairs": [["a"]]}, "list of \\[a, b\\] pairs"),
        ({"pairs": [[["a"], "b"]]}, "list of keypoint names"),
        ({"sigmas": [0.1]}, "1 sigmas for 3"),
        ({"sigmas": [0.1, -1, 0.1]}, "positive"),
        ({"sigmas": [0.1, float("nan"), 0.1]}, "positive"),
        ({"sigmas": "much"}, "list of numbers"),
        ({"groups": ["a"]}, "'groups' must be a mapping"),
        ({"groups": {"x": "a"}}, "list of keypoint names"),
        ({"upper": 5}, "'upper' must be a list"),
        ({"head": ["a"]}, "'head' must be two keypoint names"),
        ({"torso": "ab"}, "'torso' must be two keypoint names"),
    ],
)
def test_refused_in_one_line(change, answer):
    with pytest.raises(LowposeError, match=answer) as e:
        Skeleton.from_dict(GOOD | change, "own.yaml")
    assert "\n" not in str(e.value)


def test_files(tmp_path):
    with pytest.raises(LowposeError, match="unknown skeleton 'coco18'; did you mean 'coco17'"):
        get_skeleton("coco18")
    with pytest.raises(LowposeError, match="no such skeleton file"):
        get_skeleton(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(LowposeError, match="x.yaml: not YAML"):
        get_skeleton(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(LowposeError, match="x.yaml: not YAML"):
        get_skeleton(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("5")
    with pytest.raises(LowposeError, match="expected a mapping"):
        get_skeleton(tmp_path / "x.yaml")
    with pytest.raises(LowposeError, match="no keypoint 'left_sholder'; did you mean 'left_shoulder'"):
        COCO17.index("left_sholder")
