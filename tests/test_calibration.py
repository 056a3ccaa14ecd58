"""`lowpose calibrate`: probabilities stored with the weights, the same through weights, packed weights and exported files."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import cv2  # noqa: E402
from tiny import tiny  # noqa: E402

import lowpose  # noqa: E402
from lowpose import calibration as module  # noqa: E402
from lowpose.calibration import FILES, calibrate, first_half  # noqa: E402
from lowpose.checkpoint import describe_weights, pack_weights, read_weights, save_weights, store_facts  # noqa: E402
from lowpose.cli import main  # noqa: E402
from lowpose.data import load_data  # noqa: E402
from lowpose.errors import LowposeError  # noqa: E402
from lowpose.metrics.epe import labels  # noqa: E402
from lowpose.nn.model import build_model  # noqa: E402
from lowpose.skeletons import COCO17  # noqa: E402
from lowpose.tasks.pose import Predictions  # noqa: E402

OPTIONS = {"count": 160, "size": [64, 64], "height": [30, 60]}
TRUE = 1.6, 2.0
ABOUT = {"temperature": 0.7, "correct": "similarity@0.5", "kind": "synthetic", "split": "val", "persons": 9, "flip": True}
BIAS = [k / 10 for k in range(14)]


@pytest.fixture
def run(tmp_path):
    config = tiny(data={"options": OPTIONS})
    torch.manual_seed(0)
    model = build_model(config, COCO17)
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run/weights.safetensors", model, config, step=7)
    return tmp_path / "run"


@pytest.fixture
def sure(monkeypatch):
    """A network that is right as often as its scores say under the formula with temperature 1.6 and bias 2."""

    def predict(model, data, config):
        rng = np.random.default_rng(5)
        points, labelled = labels(data)
        scores = rng.beta(1.5, 6, labelled.shape)
        p = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) / TRUE[0] + TRUE[1])))
        far = np.where(rng.random(p.shape) < p, 0.0, 1e4)
        return Predictions(points + far[..., None], scores.astype(np.float32), scores, np.ones(len(data)), ["a.jpg: broken"])

    monkeypatch.setattr(module, "predict_split", predict)


def test_it_finds_the_formula_and_writes_all(run, sure, tmp_path):
    before = (run / "weights.safetensors").read_bytes()
    report = calibrate(run, to=tmp_path / "new.safetensors", out=tmp_path / "out", bootstrap=50, command="lowpose calibrate")
    assert (run / "weights.safetensors").read_bytes() == before
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(FILES)
    assert json.loads((tmp_path / "out/calibration.json").read_text()) == report
    assert report["calibration"]["temperature"] == pytest.approx(TRUE[0], rel=0.25)
    assert np.mean(report["calibration"]["bias"]) == pytest.approx(TRUE[1], abs=0.4)
    halves = report["figures"]
    assert halves["calibrated"]["held out"]["ece"] < 0.06 < 0.2 < halves["as they are"]["held out"]["ece"]
    assert halves["calibrated"]["fitted"]["log_loss"] <= halves["as they are"]["fitted"]["log_loss"]
    data = load_data("synthetic", split="val", options=OPTIONS)
    labelled = np.array([s.labelled.any() for s in data.samples])
    assert report["persons"] == {"fitted": (first_half(data) & labelled).sum(), "held out": (~first_half(data) & labelled).sum()}
    text = (tmp_path / "out/calibration.md").read_text()
    assert "similarity at least 0.5" in text and "lowpose calibrate" in text and "could not be read: 1" in text
    picture = cv2.imread(str(tmp_path / "out/calibration.png"))
    assert min(picture.shape[:2]) > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    found = describe_weights(tmp_path / "new.safetensors")["calibration"]
    assert found["temperature"] == report["calibration"]["temperature"] and found["bias"] == report["calibration"]["bias"]
    assert (found["correct"], found["kind"], found["split"]) == ("similarity@0.5", "synthetic", "val")


def test_by_default_the_weights_themselves_are_changed_in_their_description_only(run, sure):
    tensors, about = read_weights(run)
    calibrate(run, bootstrap=0)
    after, now = read_weights(run)
    assert {k: v for k, v in now.items() if k != "calibration"} == about and now["step"] == 7 and "calibration" in now
    assert all(torch.equal(tensors[name], after[name]) and tensors[name].dtype == after[name].dtype for name in tensors)
    calibrate(run, bootstrap=0)  # of scores as the network gives them, not of calibrated ones
    assert describe_weights(run)["calibration"] == now["calibration"]
    assert {p.name for p in run.iterdir()} == {"weights.safetensors", *FILES}


def test_halves_are_a_function_of_the_picture():
    data = load_data("synthetic", split="val", options=OPTIONS)
    half = first_half(data)
    assert 50 < half.sum() < 110
    some = np.random.default_rng(0).permutation(160)[:40]
    np.testing.assert_array_equal(first_half(data.subset(some)), half[some])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with plain.safetensors and calibrated.safetensors, each with its exported file."""
    pytest.importorskip("onnxscript")
    from test_export import RESNET, make_weights, noisy

    folder = tmp_path_factory.mktemp("exported")
    make_weights(folder / "plain.safetensors", "simcc", RESNET, (48, 64), True)
    store_facts(folder / "plain.safetensors", folder / "calibrated.safetensors", calibration=ABOUT | {"bias": BIAS})
    for name in ("plain", "calibrated"):
        lowpose.export_onnx(folder / f"{name}.safetensors", crops=noisy(3, (48, 64)))
    return folder


def test_weights_packed_weights_and_exported_files_give_the_same_probabilities(exported, tmp_path):
    pack_weights(exported / "calibrated.safetensors", tmp_path / "packed.safetensors")
    assert describe_weights(tmp_path / "packed.safetensors")["calibration"] == ABOUT | {"bias": BIAS}
    image, boxes = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), [[0, 0, 64, 64], [10, 5, 40, 50]]
    raw = lowpose.load(exported / "plain.safetensors").predict(image, boxes)
    want = 1 / (1 + np.exp(-(np.log(raw.scores / (1 - raw.scores.astype(float))) / ABOUT["temperature"] + BIAS)))
    assert np.abs(want - raw.scores).max() > 0.1
    for path, atol in (
        (exported / "calibrated.safetensors", 1e-5),
        (exported / "calibrated.onnx", 5e-3),
        (tmp_path / "packed.safetensors", 0.05),
    ):
        found = lowpose.load(path).predict(image, boxes)
        np.testing.assert_allclose(found.scores, want, atol=atol)
        assert found.scores.dtype == np.float32
        np.testing.assert_allclose(found.published, raw.published, atol=atol)
    plain = lowpose.load(exported / "plain.onnx").predict(image, boxes)
    np.testing.assert_allclose(plain.scores, raw.scores, atol=1e-3)
    row = lowpose.load(exported / "calibrated.safetensors").predict(image, boxes).to_coco()[0]
    np.testing.assert_allclose(row["keypoints"][2::3], want[0], atol=1e-3)


def test_files_with_a_damaged_calibration_are_refused(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    store_facts(exported / "plain.safetensors", tmp_path / "w.safetensors", calibration=ABOUT | {"bias": [1.0]})
    with pytest.raises(LowposeError, match=r"w.safetensors: its calibration is of 1 keypoints and its skeleton has 14"):
        lowpose.load(tmp_path / "w.safetensors")
    graph = onnx.load(exported / "plain.onnx")
    (facts,) = (p for p in graph.metadata_props if p.key == "lowpose")
    facts.value = json.dumps(json.loads(facts.value) | {"calibration": ABOUT | {"temperature": -1}})
    onnx.save(graph, tmp_path / "a.onnx")
    with pytest.raises(LowposeError, match="a.onnx: its calibration: 'temperature' = -1"):
        lowpose.load(tmp_path / "a.onnx")


def test_nothing_is_written_where_nothing_can_be_fitted(run, monkeypatch):
    def wrong(model, data, config):
        points, labelled = labels(data)
        return Predictions(points + 1e4, np.full(labelled.shape, 0.5), np.full(labelled.shape, 0.5), np.ones(len(data)), [])

    monkeypatch.setattr(module, "predict_split", wrong)
    before = (run / "weights.safetensors").read_bytes()
    with pytest.raises(LowposeError, match=r"run: nothing to calibrate on: all of \d+ keypoints are wrong"):
        calibrate(run)
    assert [p.name for p in run.iterdir()] == ["weights.safetensors"] and (run / "weights.safetensors").read_bytes() == before


def test_the_verb(run, sure, tmp_path, monkeypatch, capsys):
    words = ["lowpose", "calibrate", str(run), "--radius", "2", "--to", str(tmp_path / "a.safetensors"), "--bootstrap", "0"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as e:
        main()
    said = capsys.readouterr()
    assert e.value.code == 0 and "temperature 1." in said.out and "calibration error" in said.out
    assert said.err.splitlines() == ["warning: 1 pictures could not be read; calibration.json names them"]
    assert describe_weights(tmp_path / "a.safetensors")["calibration"]["correct"] == "similarity@0.14"


@pytest.mark.photographs
def test_shipped_weights_become_probabilities(shared, tmp_path):
    """Of photographs: on the half that nothing was fitted on, a tenth of the calibration error is left."""
    from pathlib import Path

    weights = Path(__file__).parents[1] / "weights/lspet_simcc_hrnet-w18-small_64.safetensors"
    report = calibrate(weights, f"lsp:{shared / 'lspet'}", "val", to=tmp_path / "a.safetensors", out=tmp_path, bootstrap=0)
    before, after = (report["figures"][way]["held out"] for way in ("as they are", "calibrated"))
    assert after["ece"] < 0.1 * before["ece"] and after["log_loss"] < before["log_loss"]
    assert report["correct"]["name"] == "PCKh@0.5" and sum(report["persons"].values()) == 786
