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
