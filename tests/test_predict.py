"""Prediction over files: every frame has its own drawing, and no source is overwritten."""

from __future__ import annotations

import json

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
