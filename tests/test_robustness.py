"""`lowpose robustness`: its figures against those of `lowpose eval` and sums in NumPy, its files whole or not at all."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from tiny import tiny

import lowpose
from lowpose.checkpoint import load_model, save_weights
from lowpose.cli import main
from lowpose.data.degradations import OPERATORS
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.metrics import per_person
from lowpose.nn.model import build_model
from lowpose.robustness import FILES, Measure, predict_degraded, summary
from lowpose.robustness_page import markdown, mean_rows, severity_rows
from lowpose.skeletons import COCO17
from lowpose.tasks.pose import validation_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(data={"options": {"count": 12, "size": [96, 96], "height": [30, 80]}})
    torch.manual_seed(0)
    model = build_model(config, COCO17)
    with torch.no_grad():  # answers near the middle, where some joints are
        for axis in (model.head.to_x, model.head.to_y):
            axis.bias.copy_(-0.2 * torch.linspace(-2, 2, len(axis.bias)).square())
    save_weights(folder / "weights.safetensors", model, config)
    return folder


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    return lowpose.measure_robustness(run, out=tmp_path_factory.mktemp("first"), bootstrap=30)


def test_plain_figures_are_those_of_eval(run, report, tmp_path):
    card = evaluate(run, out=tmp_path, bootstrap=30)
    assert report["metrics"] == ["AP", "PCK@0.2", "EPE_crop"]
    for name, figure in report["clean"].items():
        assert figure == pytest.approx(card["metrics"][name]), name


def test_relative_figures_are_those_of_numpy(run, report):
    model, config = load_model(run)
    data = validation_data(config)
    found = predict_degraded(model, data, config)
    sums = [per_person(data, f.keypoints, found[0].crop_scale)["PCK@0.2"] for f in found]
    hits, joints = (np.array(part) for part in zip(*sums, strict=True))
    plain = hits[0].sum() / joints[0].sum()
    assert plain > 0 and len(set(hits.sum(1))) > 5, "operators must change something"
    drawn = np.random.default_rng(0).integers(0, 12, (30, 12))
    resampled = np.array([hits[:, d].sum(1) / joints[:, d].sum(1) for d in drawn])
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without a hit has no relative accuracy
        share = np.where(resampled[:, :1] > 0, 100 * resampled / resampled[:, :1], np.nan)
    for i, operator in enumerate(OPERATORS):
        own = report["operators"][operator.name]
        columns = slice(1 + 5 * i, 6 + 5 * i)
        for row, value in zip(own["severities"], hits[columns].sum(1) / joints[columns].sum(1), strict=True):
            assert row["figures"]["PCK@0.2"]["value"] == pytest.approx(value)
            assert row["figures"]["PCK@0.2"]["relative"]["value"] == pytest.approx(100 * value / plain)
            assert "relative" not in row["figures"]["EPE_crop"]
        mean = own["mean"]["PCK@0.2"]
        assert [mean["low"], mean["high"]] == pytest.approx(np.nanpercentile(share[:, columns].mean(1), [2.5, 97.5]))
    every = hits[1:].sum(1) / joints[1:].sum(1) / plain
    assert report["overall"]["PCK@0.2"]["value"] == pytest.approx(100 * every.mean())


def test_errors_count_in_pixels_of_the_plain_crop(run):
    model, config = load_model(run)
    found = predict_degraded(model, validation_data(config), config)
    assert len(found) == 1 + 5 * len(OPERATORS)
    assert all(np.array_equal(f.crop_scale, found[0].crop_scale) for f in found)


def test_summary_of_made_up_values():
    rng = np.random.default_rng(0)
    values = np.concatenate([[50.0], rng.uniform(0, 50, 45)])
    report = summary({"PCK@0.2": Measure(values, np.zeros((0, 46)), np.full(46, 7))})
    blur = report["operators"]["blur"]
    at = 1 + 5 * [o.name for o in OPERATORS].index("blur")
    assert [r["figures"]["PCK@0.2"]["relative"]["value"] for r in blur["severities"]] == pytest.approx(2 * values[at : at + 5])
    assert blur["mean"]["PCK@0.2"] == {"value": pytest.approx(2 * values[at : at + 5].mean()), "low": None, "high": None}
    assert report["overall"]["PCK@0.2"]["value"] == pytest.approx(2 * values[1:].mean()) and report["not_defined"] == {}


def test_no_accuracy_to_be_relative_to(report):
    zero = summary({"AP": Measure(np.zeros(46), np.zeros((9, 46)), np.full(46, 7))})
    assert zero["not_defined"] == {"AP": "the accuracy on plain crops is 0"}
    assert zero["overall"]["AP"] == {"value": None, "low": None, "high": None}
    page = markdown(report | zero, "x.png")
    assert "Relative AP is not defined: the accuracy on plain crops is 0" in page and "| all | not defined |" in page
    assert severity_rows(zero, "AP")[0] == ["area", *["0.0"] * 5]


def test_files_and_the_same_bits_twice(run, report, tmp_path):
    for name in ("a", "b"):
        again = lowpose.measure_robustness(run, out=tmp_path / name, bootstrap=30)
    assert {p.name for p in (tmp_path / "a").iterdir()} == set(FILES)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a/robustness.json").read_text()) == again == report
    picture = cv2.imread(str(tmp_path / "a/robustness.png"))
    assert min(picture.shape[:2]) > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    page = (tmp_path / "a/robustness.md").read_text()
    assert all(f"| {o.name} | " in page for o in OPERATORS) and "![relative accuracy over severity](robustness.png)" in page
    assert mean_rows(report)[-1][0] == "all" and len(mean_rows(report)) == len(OPERATORS) + 1


def test_nothing_half_written(run, tmp_path, monkeypatch):
    (tmp_path / "robustness.png").mkdir()
    with pytest.raises(LowposeError, match="robustness.png: is a folder"):
        lowpose.measure_robustness(run, out=tmp_path, bootstrap=2, persons=2)
    assert [p.name for p in tmp_path.iterdir()] == ["robustness.png"]


def test_command(run, tmp_path, monkeypatch, capsys):
    command = ["lowpose", "robustness", str(run), "eval.flip=false", "--persons", "3", "--bootstrap", "5", "--out"]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "new")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "jpeg" in out and str(tmp_path / "new/robustness.json") in out
    report = json.loads((tmp_path / "new/robustness.json").read_text())
    assert report["measured_on"]["persons"] == 3 and report["flip_test"] is False
    assert report["command"].startswith("lowpose robustness ") and report["overrides"] == ["eval.flip=false"]
