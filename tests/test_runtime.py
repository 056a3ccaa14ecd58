"""Boxes -> poses without torch: where keypoints land in the picture, batching, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import lowpose
from lowpose.config import InputConfig
from lowpose.errors import LowposeError
from lowpose.runtime import PosePredictor, check_boxes, check_image
from lowpose.skeletons import Skeleton

TWO = Skeleton("two", ("a", "b"))
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
BOXES = np.array([[10, 20, 30, 50], [-15.5, 40, 60, 80.25], [100, 70, 90, 12], [0, 0, 120, 90], [115, 5, 20, 20]], float)


class Fixed:
    """Answers the crop points (7, 5) and (40, 60) for every crop, the crop's mean as score; notes what it was given."""

    def __init__(self):
        self.batches: list[np.ndarray] = []

    def __call__(self, crops):
        self.batches.append(crops)
        mean = crops.mean((1, 2, 3), dtype=np.float64).astype(np.float32)
        points = np.tile(np.array([[7, 5], [40, 60]], np.float32), (len(crops), 1, 1))
        return points, np.stack([mean, mean + 1], 1), np.stack([mean + 2, mean + 3], 1)


def predictor(batch_size=128, **settings):
    return PosePredictor(Fixed(), InputConfig(size=(48, 64), **settings), TWO, batch_size)


def in_picture(box, point, size=(48, 64), padding=1.25):
    """A crop point in the picture: the box, grown to the crop's aspect and by the padding, fills the crop."""
    x, y, w, h = box
    width = max(w, h * size[0] / size[1]) * padding
    height = width * size[1] / size[0]
    return x + w / 2 + (point[0] / size[0] - 0.5) * width, y + h / 2 + (point[1] / size[1] - 0.5) * height


def test_crop_points_come_back_to_picture_pixels():
    result = predictor().predict(IMAGE, BOXES, [0.5, 0.6, 0.7, 0.8, 0.9])
    want = [[in_picture(box, p) for p in ((7, 5), (40, 60))] for box in BOXES]
    np.testing.assert_allclose(result.keypoints, want, atol=1e-4)
    assert result.keypoints.dtype == np.float32 and result.skeleton is TWO
    np.testing.assert_array_equal(result.boxes, BOXES)
    np.testing.assert_array_equal(result.box_scores, [0.5, 0.6, 0.7, 0.8, 0.9])


def test_crops_show_the_box():
    """At one picture pixel per crop pixel, no padding, the crop is the picture's own pixels; black outside."""
    p = PosePredictor(Fixed(), InputConfig(size=(48, 64), padding=1.0), TWO)
    p.predict(IMAGE, [[30, 10, 48, 64], [-8, 40, 48, 64]])
    first, second = p.infer.batches[0]
    np.testing.assert_array_equal(first, IMAGE[10:74, 30:78])
    np.testing.assert_array_equal(second[:50, 8:], IMAGE[40:90, :40])
    assert second[:, :8].max() == 0 and second[50:].max() == 0


def test_without_boxes_one_person_fills_the_picture():
    result = predictor().predict(IMAGE)
    np.testing.assert_array_equal(result.boxes, [[0, 0, 120, 90]])
    np.testing.assert_allclose(result.keypoints[0, 0], in_picture((0, 0, 120, 90), (7, 5)), atol=1e-4)
    np.testing.assert_array_equal(result.box_scores, [1.0])


def test_persons_of_many_pictures_share_batches_and_come_back_in_order():
    other = IMAGE[::-1, ::-1].copy()
    small = predictor(batch_size=2)
    results = small.predict_many([(IMAGE, BOXES[:3], None), (other, [], None), (other, BOXES[3:], None)])
    assert [len(b) for b in small.infer.batches] == [2, 2, 1] and [len(r) for r in results] == [3, 0, 2]
    alone = [
        predictor().predict(image, [box]) for image, box in [*((IMAGE, b) for b in BOXES[:3]), *((other, b) for b in BOXES[3:])]
    ]
    for field in ("keypoints", "scores", "published"):
        together = np.concatenate([getattr(r, field) for r in results])
        np.testing.assert_array_equal(together, np.concatenate([getattr(r, field) for r in alone]))
    assert len({float(r.scores[0, 0]) for r in alone}) == 5  # the crops are different ones


def test_stream_of_any_number_of_pictures_holds_few():
    """Pictures are asked for as they are needed; the answers are those of one picture after the other."""
    asked, p = [], predictor()

    def pictures():
        for i in range(40):
            asked.append(i)
            yield np.roll(IMAGE, 3 * i, 1), BOXES[: i % 4], None

    ahead = [(len(asked) - i, r) for i, r in enumerate(p.predict_stream(pictures()))]
    assert len(ahead) == len(asked) == 40 and max(n for n, _ in ahead) == 16
    assert [len(b) for b in p.infer.batches] == [24, 24, 12]  # over the people of 16 pictures
    for i in (0, 3, 21, 39):
        want = predictor().predict(np.roll(IMAGE, 3 * i, 1), BOXES[: i % 4])
        np.testing.assert_array_equal(ahead[i][1].scores, want.scores)


def test_nothing_to_predict():
    p = predictor()
    empty = p.predict(IMAGE, np.zeros((0, 4)))
    assert p.predict_many([]) == [] and p.infer.batches == []
    assert empty.keypoints.shape == (0, 2, 2) and empty.scores.shape == (0, 2) and empty.to_coco() == []


def test_far_camera_is_the_same_every_time():
    runs = [predictor(resample="camera") for _ in range(2)]
    for p in runs:
        p.predict(IMAGE, BOXES)
    np.testing.assert_array_equal(runs[0].infer.batches[0], runs[1].infer.batches[0])


@pytest.mark.parametrize(
    "image,match",
    [
        ("photo.jpg", "not str"),
        (IMAGE.tolist(), "not list"),
        (IMAGE[..., 0], r"not uint8 \(90, 120\)"),
        (IMAGE[None], r"\(1, 90, 120, 3\)"),
        (np.dstack([IMAGE, IMAGE[..., :1]]), r"\(90, 120, 4\)"),
        (IMAGE / 255.0, "float64"),
        (IMAGE.astype(np.uint16), "uint16"),
        (IMAGE[:0], "must have pixels"),
        (IMAGE[:, :0], "must have pixels"),
    ],
)
def test_bad_pictures(image, match):
    with pytest.raises(LowposeError, match=match) as e:
        check_image(image)
    assert "\n" not in str(e.value)
    with pytest.raises(LowposeError):
        predictor().predict(image, [[0, 0, 5, 5]])


@pytest.mark.parametrize(
    "boxes,match",
    [
        ([1, 2, 3, 4], r"boxes are \(P, 4\).*not shape \(4,\)"),
        ([[1, 2, 3]], r"not shape \(1, 3\)"),
        ([[[1, 2, 3, 4]]], r"\(1, 1, 4\)"),
        ([[1, 2, 3, 4], [5, 6]], r"boxes are \(P, 4\)"),
        ("whole", "'whole'"),
        (7, "not 7"),
        ([["a", "b", "c", "d"]], r"boxes are \(P, 4\)"),
        ([[0, 0, 5, 5], [0, 0, 0, 5]], "box 1 .* above 0"),
        ([[0, 0, 5, -5]], "box 0 .* above 0"),
        ([[0, np.nan, 5, 5]], "box 0 .* finite"),
        ([[0, 0, np.inf, 5]], "box 0 .* finite"),
        ([[0, 0, 5, 5], [0, 0, 1e7, 1e7]], "box 1 .* far larger than its picture of 120 x 90"),
        ([[-1e300, 0, 5, 5]], "box 0 .* or far away"),
    ],
)
def test_bad_boxes(boxes, match):
    with pytest.raises(LowposeError, match=match) as e:
        check_boxes(boxes, None, IMAGE)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("scores", [[1.0], [[1.0, 1.0]], 0.5, ["a", "b"], [1.0, np.nan], [None, 1.0]])
def test_bad_box_scores(scores):
    with pytest.raises(LowposeError, match="2 boxes need as many finite scores"):
        check_boxes([[0, 0, 5, 5], [1, 1, 5, 5]], scores, IMAGE)


def test_good_boxes():
    for boxes in ([[1, 2, 3, 4]], ((1, 2, 3, 4),), np.array([[1, 2, 3, 4]], np.int32)):
        array, scores = check_boxes(boxes, None, IMAGE)
        assert array.dtype == np.float64 and array.tolist() == [[1, 2, 3, 4]] and scores.tolist() == [1.0]
    for none in ([], np.zeros((0, 4)), ()):
        array, scores = check_boxes(none, [], IMAGE)
        assert array.shape == (0, 4) and scores.shape == (0,)
    assert check_boxes([[-359, -359, 360, 360]], [0.25], IMAGE)[1].tolist() == [0.25]  # at the limit, with one pixel inside


@pytest.mark.parametrize(
    "name,match", [("no.onnx", "no such file"), ("no.safetensors", "no such weights"), ("", "a run folder without")]
)
def test_load_of_nothing(tmp_path, name, match):
    with pytest.raises(LowposeError, match=match):
        lowpose.load(tmp_path / name)


def test_weights_without_torch_name_what_is_missing(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import lowpose\n"
        "try:\n    lowpose.load('w.safetensors')\nexcept lowpose.LowposeError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "w.safetensors: weights need torch (torch is missing)" in done.stdout and "lowpose[train]" in done.stdout


# Files that are not ours


def foreign(onnx, path, **about):
    """A graph of somebody else's, with `about` as its metadata."""
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, about)
    onnx.save(model, path)
    return path


def test_foreign_and_damaged_files(tmp_path):
    onnx = pytest.importorskip("onnx")
    skeleton = json.dumps(TWO.to_dict())
    whole = foreign(onnx, tmp_path / "whole.onnx", lowpose=f'{{"input": {{}}, "skeleton": {skeleton}}}').read_bytes()
    cases = {
        foreign(onnx, tmp_path / "foreign.onnx"): "not a file of `lowpose export`",
        foreign(onnx, tmp_path / "words.onnx", lowpose="{x"): "is damaged; export it again",
        foreign(onnx, tmp_path / "list.onnx", lowpose="[1]"): "is damaged",
        foreign(onnx, tmp_path / "no_input.onnx", lowpose=f'{{"skeleton": {skeleton}}}'): "is damaged",
        foreign(
            onnx, tmp_path / "size.onnx", lowpose=f'{{"input": {{"size": [1, 1]}}, "skeleton": {skeleton}}}'
        ): "8 to 4096 pixels",
        foreign(
            onnx, tmp_path / "names.onnx", lowpose='{"input": {}, "skeleton": {"keypoints": 3}}'
        ): "'keypoints' must be a list",
        foreign(onnx, tmp_path / "other.onnx", lowpose=f'{{"input": {{}}, "skeleton": {skeleton}}}'): "has no 'images'",
    }
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello " * 40), ("end", whole[:-10])):
        cases[tmp_path / f"{name}.onnx"] = "onnxruntime cannot open it"
        (tmp_path / f"{name}.onnx").write_bytes(content)
    (tmp_path / "folder.onnx").mkdir()
    cases[tmp_path / "folder.onnx"] = "no such file"
    for path, match in cases.items():
        with pytest.raises(LowposeError, match=match) as e:
            lowpose.load(path)
        assert path.name in str(e.value) and "\n" not in str(e.value)
