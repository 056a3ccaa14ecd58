"""Prediction over files: every frame has its own drawing, and no source is overwritten."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import cv2
import numpy as np
import pytest

from lowpose.config import InputConfig
from lowpose.errors import LowposeError
from lowpose.images import read_image, write_image
from lowpose.predict import predict_sources
from lowpose.runtime import PosePredictor
from lowpose.skeletons import LSP14


def centre(crops):
    """A predictor that answers the middle of every crop."""
    k = len(LSP14)
    point = np.array([crops.shape[2] / 2, crops.shape[1] / 2])
    return np.tile(point, (len(crops), k, 1)), np.ones((len(crops), k)), np.ones((len(crops), k))


@pytest.fixture
def predictor():
    return PosePredictor(centre, InputConfig(size=(32, 32)), LSP14)


def picture(path, grey):
    write_image(path, np.full((40, 60, 3), grey, np.uint8))
    return path


def test_same_names_in_different_folders(predictor, tmp_path):
    sources = [picture(tmp_path / "a" / "x.png", 10), picture(tmp_path / "b" / "x.png", 200)]
    before = [p.read_bytes() for p in sources]
    report = predict_sources(predictor, [str(p) for p in sources], draw=tmp_path / "out")
    assert [p.read_bytes() for p in sources] == before
    assert len(set(report.drawn)) == 2
    assert all((tmp_path / "out") in p.parents for p in report.drawn)
    assert {int(np.median(read_image(p))) for p in report.drawn} == {10, 200}


def test_drawings_never_replace_their_source(predictor, tmp_path):
    source = picture(tmp_path / "x.png", 10)
    before = source.read_bytes()
    with pytest.raises(LowposeError, match="would overwrite the picture; give another --out"):
        predict_sources(predictor, [str(source)], draw=tmp_path)
    assert source.read_bytes() == before


def test_results_are_in_cocos_pixels(predictor, tmp_path):
    source = picture(tmp_path / "x.png", 10)
    (tmp_path / "boxes.json").write_text(json.dumps({"x.png": [[10, 20, 8, 12]]}))
    predict_sources(predictor, [str(source)], str(tmp_path / "boxes.json"), results=tmp_path / "r.json")
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert row["keypoints"][:3] == [13.5, 25.5, 1.0]  # the box's centre (14, 26) less half a pixel
    assert row["bbox"] == [10, 20, 8, 12]


def video(path, count=40, size=(48, 64)):
    """Written by OpenCV alone; frame i is of grey 6 i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, size[::-1])
    for i in range(count):
        writer.write(np.full((*size, 3), 6 * i % 256, np.uint8))
    writer.release()
    return path


def greys(path):
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(float(np.median(frame[1])))
    capture.release()
    return found


def tracks(path, count=40):
    """Two persons on each frame who move by a pixel; in MOT's ground truth order, by track, the second one first."""
    rows = [f"{i + 1},{track},{10 + i / 4},{5 * track},8,12,1,-1,-1,-1" for track in (5, 2) for i in range(count)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_video_with_tracks_in_order(predictor, tmp_path):
    """Frames, rows and drawings stay in the order of the video, persons in the order of their tracks."""
    report = predict_sources(
        predictor, [str(video(tmp_path / "v.avi"))], str(tracks(tmp_path / "t.txt")),
        results=tmp_path / "r.json", draw=tmp_path / "out",
    )  # fmt: skip
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [(r["image_id"], r["track_id"]) for r in rows] == [(i, track) for i in range(40) for track in (2, 5)]
    for row in rows:
        x, y = 10 + row["image_id"] / 4 + 4 - 0.5, 5 * row["track_id"] + 6 - 0.5
        np.testing.assert_allclose(row["keypoints"][:2], [x, y], atol=2e-3)
    assert (report.frames, report.persons, report.drawn) == (40, 80, [tmp_path / "out" / "v-poses.mp4"])
    np.testing.assert_allclose(greys(report.drawn[0]), 6 * np.arange(40), atol=4)


def test_boxes_without_tracks_give_rows_without_ids(predictor, tmp_path):
    (tmp_path / "d.txt").write_text("1,-1,10,20,8,12,0.5,-1,-1,-1\n")
    report = predict_sources(predictor, [str(video(tmp_path / "v.avi", 2))], str(tmp_path / "d.txt"))
    assert [sorted(r) for r in report.results] == [["bbox", "category_id", "image_id", "keypoints", "score"]]


def test_ctrl_c_leaves_nothing_half_written(tmp_path, request):
    """The signal comes while the network works on the second batch of frames, and the first is drawn."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes that run tests side by side ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    calls = []

    def infer(crops):
        calls.append(len(crops))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return centre(crops)

    predictor = PosePredictor(infer, InputConfig(size=(32, 32)), LSP14)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        predict_sources(predictor, [str(video(tmp_path / "v.avi"))], results=tmp_path / "r.json", draw=tmp_path / "out")
    assert calls == [16, 16] and threading.active_count() == before
    assert os.listdir(tmp_path) == ["v.avi"]


def test_error_in_drawing_reaches_the_caller(predictor, tmp_path, monkeypatch):
    def full(self, image):
        raise LowposeError("the disk is full")

    monkeypatch.setattr("lowpose.sources.VideoWriter.write", full)
    with pytest.raises(LowposeError, match="the disk is full"):
        predict_sources(predictor, [str(video(tmp_path / "v.avi"))], draw=tmp_path / "out")
    assert os.listdir(tmp_path) == ["v.avi"]


def test_all_drawings_or_none(predictor, tmp_path):
    sources = [str(picture(tmp_path / "in" / name, 10)) for name in ("x.png", "y.png")]
    (tmp_path / "out" / "y.png").mkdir(parents=True)
    (tmp_path / "out" / "z.png").write_bytes(b"old")
    with pytest.raises(LowposeError) as e:
        predict_sources(predictor, sources, results=tmp_path / "out" / "r.json", draw=tmp_path / "out")
    assert str(e.value) == f"{tmp_path / 'out' / 'y.png'}: is a folder, and a drawing would have this name; give another --out"
    assert sorted(os.listdir(tmp_path / "out")) == ["y.png", "z.png"] and (tmp_path / "out" / "z.png").read_bytes() == b"old"
    (tmp_path / "out" / "y.png").rmdir()
    report = predict_sources(predictor, sources, results=tmp_path / "out" / "r.json", draw=tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["r.json", "x.png", "y.png", "z.png"]
    assert report.drawn == [tmp_path / "out" / "x.png", tmp_path / "out" / "y.png"]


def test_results_that_cannot_be_written_are_found_before_the_network_runs(tmp_path):
    def never(crops):
        raise AssertionError

    (tmp_path / "r.json").mkdir()
    source = str(picture(tmp_path / "x.png", 10))
    with pytest.raises(LowposeError, match="r.json: is a folder; give the name of a file"):
        predict_sources(
            PosePredictor(never, InputConfig(size=(32, 32)), LSP14), [source], results=tmp_path / "r.json", draw=tmp_path / "out"
        )
    assert sorted(os.listdir(tmp_path)) == ["r.json", "x.png"]


def test_boxes_outside_the_picture(predictor, tmp_path, caplog):
    """60 x 40 pixels. A box that shows nothing of the picture is an error; of a track it is left out, and said."""
    source = str(picture(tmp_path / "1.png", 10))
    for box in ([60, 0, 5, 5], [0, 40, 5, 5], [-5, 0, 5, 5], [0, -5, 5, 5]):
        (tmp_path / "b.json").write_text(json.dumps({"1.png": [[0, 0, 9, 9], box]}))
        with pytest.raises(LowposeError, match=r"b.json: 1.png: box 1 = .* lies outside its picture of 60 x 40 pixels"):
            predict_sources(predictor, [source], str(tmp_path / "b.json"))
    (tmp_path / "b.json").write_text(json.dumps({"1.png": [[59, 39, 5, 5], [-4, -4, 5, 5]]}))
    assert predict_sources(predictor, [source], str(tmp_path / "b.json")).persons == 2
    (tmp_path / "t.txt").write_text("1,3,10,10,8,8,1\n1,4,62,10,8,8,1\n2,3,10,10,8,8,1\n9,3,10,10,8,8,1\n")
    report = predict_sources(predictor, [str(video(tmp_path / "v.avi", 2))], str(tmp_path / "t.txt"))
    assert [r["track_id"] for r in report.results] == [3, 4, 3] and report.outside == 0  # the video is 64 pixels wide
    report = predict_sources(predictor, [source], str(tmp_path / "t.txt"))
    assert [r["track_id"] for r in report.results] == [3] and report.outside == 1
    said = [record.message.removeprefix(f"{tmp_path}/") for record in caplog.records]
    assert said[-2:] == [
        "t.txt: 1 boxes of tracks that have left the picture are left out",
        "t.txt: has boxes for 2 more pictures or frames that are not there, as '2'",
    ]


def test_frame_numbers_belong_to_one_video(predictor, tmp_path):
    videos = [str(video(tmp_path / name, 2)) for name in ("v.avi", "w.avi")]
    boxes = str(tracks(tmp_path / "t.txt", 2))
    with pytest.raises(LowposeError, match=r"t.txt: numbers the frames of one video \(MOT\), and 2 files are to be predicted"):
        predict_sources(predictor, videos, boxes)
    assert predict_sources(predictor, videos[:1], boxes).persons == 4


def test_least_score_is_a_number(predictor, tmp_path):
    with pytest.raises(LowposeError, match="min_score: boxes need a finite number, not nan"):
        predict_sources(predictor, [str(picture(tmp_path / "x.png", 10))], min_score=float("nan"))


def test_video_that_ends_early_is_drawn_as_far_as_it_goes(predictor, tmp_path):
    path = video(tmp_path / "v.avi")
    os.truncate(path, path.stat().st_size // 2)
    there = len(greys(path))
    report = predict_sources(predictor, [str(path)], draw=tmp_path / "out")
    assert 0 < there < 38 and report.frames == there and len(greys(report.drawn[0])) == there
    assert len(report.problems) == 1 and "the video ends early" in report.problems[0]


def test_few_frames_are_in_memory(tmp_path, monkeypatch):
    """However slow the network is, reading stops: one batch in work, one that waits and one in the reader's hand."""
    read, monkeypatched = [], cv2.VideoCapture

    class Counting:
        def __init__(self, path):
            self._video = monkeypatched(path)

        def __getattr__(self, name):
            return getattr(self._video, name)

        def read(self):
            read.append(1)
            return self._video.read()

    waits = []

    def infer(crops):
        if not waits:
            threading.Event().wait(1.0)  # time to read all of it
            waits.append(len(read))
        return centre(crops)

    path = video(tmp_path / "v.avi", 120)
    monkeypatch.setattr(cv2, "VideoCapture", Counting)
    assert predict_sources(PosePredictor(infer, InputConfig(size=(32, 32)), LSP14), [str(path)]).frames == 120
    assert waits[0] <= 3 * 16 + 1


def test_ctrl_c_is_one_line(monkeypatch, capsys, tmp_path):
    import lowpose.predict
    from lowpose.cli import main

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(lowpose.predict, "predict_sources", interrupted)
    monkeypatch.setattr(sys, "argv", ["lowpose", "predict", str(tmp_path)])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 130 and capsys.readouterr().err == "error: stopped\n"
