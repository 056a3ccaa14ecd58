"""Whole frames: detectors of other libraries with made-up weights, functions of the user's, and where weights cannot be had."""

from __future__ import annotations

import json
import sys
import urllib.error

import numpy as np
import pytest

import lowpose
from lowpose.config import InputConfig
from lowpose.detectors import TORCHVISION, load_detector
from lowpose.errors import LowposeError
from lowpose.predict import predict_sources
from lowpose.runtime import PosePredictor
from lowpose.skeletons import LSP14

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
SSD = TORCHVISION[0]


def centre(crops):
    """Answers the middle of every crop."""
    point = np.array([crops.shape[2] / 2, crops.shape[1] / 2])
    return np.tile(point, (len(crops), 14, 1)), np.ones((len(crops), 14)), np.ones((len(crops), 14))


@pytest.fixture
def predictor():
    return PosePredictor(centre, InputConfig(size=(32, 32)), LSP14)


@pytest.fixture(scope="module")
def state():
    """A network of random numbers: as a detector without skill, whose boxes and scores are many."""
    import torch
    from torchvision.models import detection

    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    for block in model.head.classification_head.module_list:
        last = block[-1]
        torch.nn.init.normal_(last.weight, std=0.5)
        last.bias.data.view(-1, 91)[:, [1, 3]] += 3  # persons and cars
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("detector")
    torch.save(state, folder / "d.pth")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "d.safetensors")
    return folder


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvision_gives_the_persons_among_its_boxes(files, state, suffix):
    """Against torchvision itself: label 1, corners to x, y, width, height, pictures in 0 to 1 with channels first."""
    import torch
    from torchvision.models import detection

    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        (want,) = model(torch.tensor(IMAGE.transpose(2, 0, 1) / np.float32(255))[None])
    mine = (want["labels"] == 1).numpy()
    assert 0 < mine.sum() < len(mine)  # of several classes
    corners = want["boxes"].numpy()[mine]
    boxes, scores = load_detector(weights=files / f"d.{suffix}", device="cpu")(IMAGE)
    assert boxes.shape == (mine.sum(), 4) and boxes.dtype == scores.dtype == np.float64
    np.testing.assert_allclose(boxes[:, :2], corners[:, :2], atol=1e-4)
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], corners[:, 2:], atol=1e-4)
    np.testing.assert_allclose(scores, want["scores"].numpy()[mine], atol=1e-6)


def test_prediction_with_a_detector_of_torchvision(predictor, files, tmp_path):
    lowpose.write_image(tmp_path / "a.png", IMAGE)
    boxes, scores = load_detector(weights=files / "d.pth", device="cpu")(IMAGE)
    limit = float(np.sort(scores)[-3])
    for spec in ("detector", f"detector:{SSD}"):
        report = predict_sources(
            predictor, [str(tmp_path / "a.png")], spec, min_score=limit, detector_weights=files / "d.safetensors"
        )
        chosen = scores >= limit
        np.testing.assert_allclose([r["bbox"] for r in report.results], boxes[chosen], atol=2e-3)
    none = predict_sources(predictor, [str(tmp_path / "a.png")], "detector", detector_weights=files / "d.pth")
    assert none.persons == (scores >= 0.5).sum() and none.frames == 1


def test_function_of_the_users(predictor, tmp_path):
    """It sees every frame as it is; its scores are those of the boxes; nobody is found in the second picture."""
    for i in range(3):
        lowpose.write_image(tmp_path / f"{i}.png", np.full((40, 60, 3), 10 * i, np.uint8))
    seen = []

    def detector(image):
        seen.append(int(image[0, 0, 0]))
        if seen[-1] == 10:
            return np.zeros((0, 4)), np.zeros(0)
        return [[10, 20, 8, 12], [1, 2, 3, 4]], [0.9, 0.1]

    report = predict_sources(predictor, [str(tmp_path)], detector, min_score=0.5)
    assert seen == [0, 10, 20]
    assert [(r["image_id"], r["bbox"], r["score"]) for r in report.results] == [(i, [10, 20, 8, 12], 0.9) for i in (0, 2)]
    assert predict_sources(predictor, [str(tmp_path)], detector).persons == 4


@pytest.mark.parametrize(
    "answer, match",
    [
        ([[1, 2, 3, 4]], "a detector answers with boxes"),
        (([[1, 2, 3]], [1.0]), r"boxes are \(P, 4\)"),
        (([[1, 2, 3, 4]], [1.0, 2.0]), "1 boxes need as many finite scores"),
        (([[1, 2, 0, 4]], [1.0]), "above 0"),
    ],
)
def test_function_that_answers_in_another_form(predictor, tmp_path, answer, match):
    lowpose.write_image(tmp_path / "a.png", IMAGE)
    with pytest.raises(LowposeError, match=f"^detector: a.png: .*{match}"):
        predict_sources(predictor, [str(tmp_path / "a.png")], lambda image: answer, min_score=0.0)


def test_weights_that_cannot_be_had(monkeypatch, tmp_path):
    import torch

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no address")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in TORCHVISION:
        with pytest.raises(LowposeError, match=f"detector '{name}': .* not in torchvision's cache and cannot be downloaded") as e:
            load_detector(name)
        assert "no address" in str(e.value) and "https://" in str(e.value) and "--detector-weights" in str(e.value)
        assert "\n" not in str(e.value)


def test_weights_in_the_cache_are_taken(monkeypatch, tmp_path, state):
    """Where torchvision keeps its downloads, under their name, whose hash is only looked at in downloading."""
    from pathlib import Path

    import torch
    from torchvision.models import get_model_weights

    weights = get_model_weights(SSD).DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    boxes, _ = load_detector(device="cpu")(IMAGE)
    assert len(boxes) > 0


def test_files_that_are_no_weights(files, tmp_path):
    import torch

    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pth")
    cases = {
        "none.pth": "no such file",
        "text.pth": "not readable as weights|more than tensors, or is damaged",
        "text.safetensors": "not readable as weights",
        "other.pth": r"weights of another detector \(without ",
        "list.pth": "not a state dict",
        "module.pth": "more than tensors",
    }
    for name, match in cases.items():
        with pytest.raises(LowposeError, match=match) as e:
            load_detector(weights=tmp_path / name)
        assert name in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(LowposeError, match="d.pth: weights of another detector"):
        load_detector("fasterrcnn_mobilenet_v3_large_320_fpn", files / "d.pth")


def test_names_that_are_not_there(predictor, tmp_path):
    with pytest.raises(LowposeError, match="unknown detector 'ssdlite320', and no such folder; did you mean 'ssdlite320_mob"):
        load_detector("ssdlite320")
    with pytest.raises(LowposeError, match="has its weights in its folder"):
        load_detector(str(tmp_path), "w.pth")
    with pytest.raises(LowposeError, match="w.pth: weights of a detector go with --boxes detector, not with --boxes whole"):
        predict_sources(predictor, [str(tmp_path)], detector_weights="w.pth")


@pytest.mark.parametrize("package", ["torch", "torchvision", "transformers"])
def test_packages_that_are_not_installed(monkeypatch, tmp_path, package):
    for name in (package, f"{package}.models"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lowpose.nn.detection", raising=False)
    with pytest.raises(LowposeError, match=rf"needs {package}, which is not installed: pip install 'lowpose\[detect\]'"):
        load_detector(str(tmp_path) if package == "transformers" else SSD)


def test_model_folder_of_transformers(tmp_path):
    """An RT-DETR of random numbers, saved and read, against a decoding of its own answers: boxes are cx, cy, w, h."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone, use_timm_backbone=False, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=32, decoder_in_channels=[32, 32, 32], d_model=32, num_queries=20, decoder_layers=2,
        decoder_ffn_dim=32, decoder_attention_heads=4, encoder_attention_heads=4, feat_strides=[8, 16, 32],
        id2label={0: "person", 1: "dog", 2: "tree"}, label2id={"person": 0, "dog": 1, "tree": 2},
    )  # fmt: skip
    model = transformers.RTDetrForObjectDetection(config).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    boxes, scores = load_detector(str(folder), device="cpu")(IMAGE)

    pixels = torch.nn.functional.interpolate(
        torch.tensor(IMAGE.transpose(2, 0, 1))[None].float(), (64, 64), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        out = model(pixel_values=pixels.round() / 255)
    cx, cy, w, h = out.pred_boxes[0].numpy().T * np.array([[128], [96], [128], [96]])
    persons = out.logits[0, :, 0].sigmoid().numpy()
    assert 0 < len(boxes) <= 20
    want = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, [[128], [96], [128], [96]]).T
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    far = np.abs(corners[:, None] - want).max(2) / 0.7 + np.abs(scores[:, None] - persons) / 5e-3
    assert (far.min(1) < 1).all(), far.min(1)  # each box is a query's, with its place and its score

    settings = json.loads((folder / "config.json").read_text())
    settings |= {"id2label": {"0": "cat", "1": "dog", "2": "tree"}, "label2id": {}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(LowposeError, match="has no class 'person'"):
        load_detector(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(LowposeError, match="no model for object detection that transformers can load") as e:
        load_detector(str(folder))
    assert "\n" not in str(e.value)
