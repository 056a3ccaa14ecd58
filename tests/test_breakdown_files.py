"""`lowpose eval --breakdown`: what it writes, and that persons are rendered as high as it says."""

from __future__ import annotations

import errno
import json
import os
import sys

import cv2
import numpy as np
import pytest
import torch
from tiny import tiny

import lowpose
from lowpose.breakdown_page import cross_tables, height_tables, label, markdown, tables, write_breakdown
from lowpose.cards import interval
from lowpose.checkpoint import load_model, save_weights
from lowpose.cli import main
from lowpose.data import load_data, resample
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.nn.model import build_model
from lowpose.samples import PersonSample, PoseData
from lowpose.skeletons import COCO17
from lowpose.tasks.pose import at_height, break_down, predict_split

NAMES = {f"breakdown.{suffix}" for suffix in ("json", "md", "png")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(data={"options": {"count": 16, "size": [96, 96], "height": [16, 90]}})
    torch.manual_seed(0)
    save_weights(folder / "weights.safetensors", build_model(config, COCO17), config)
    return folder


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    return evaluate(run, out=tmp_path_factory.mktemp("first"), bootstrap=20, breakdown=True, heights=(16, 24, 40), sizes="box")[
        "breakdown"
    ]


def test_three_files_and_the_same_bits_twice(run, report, tmp_path):
    for name in ("a", "b"):
        card = evaluate(run, out=tmp_path / name, bootstrap=20, breakdown=True, heights=(16, 24, 40), sizes="box")
    assert {p.name for p in (tmp_path / "a").iterdir()} == NAMES | {"card.json", "card.md", "predictions.npz"}
    for name in NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a/breakdown.json").read_text()) == card["breakdown"] == report
    assert "breakdown" not in json.loads((tmp_path / "a/card.json").read_text())
    picture = cv2.imread(str(tmp_path / "a/breakdown.png"))
    assert min(picture.shape[:2]) > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_the_figures_are_those_of_the_card_and_the_saved_predictions(run, report, tmp_path):
    card = evaluate(run, out=tmp_path, bootstrap=20)
    assert {"card.json", "card.md", "predictions.npz"} == {p.name for p in tmp_path.iterdir()}
    for name, figure in report["all"]["figures"].items():
        if name in card["metrics"]:
            assert figure == card["metrics"][name]
    saved = np.load(tmp_path / "predictions.npz")
    data = load_data("synthetic", split="val", options={"count": 16, "size": [96, 96], "height": [16, 90]})
    again = lowpose.breakdown(data, saved["keypoints"], saved["crop_scale"], sizes="box", bootstrap=0)
    for group, bins in report["by"].items():
        for name, cell in bins.items():
            for metric, figure in cell["figures"].items():
                assert again["by"][group][name]["figures"][metric]["value"] == pytest.approx(figure["value"], rel=1e-5)


def test_a_height_does_not_depend_on_the_others(run, report, tmp_path):
    alone = evaluate(run, out=tmp_path, bootstrap=20, breakdown=True, heights=(24,), sizes="box")["breakdown"]["heights"]
    assert alone["rows"][0]["enough"] == report["heights"]["rows"][1]["enough"]
    assert alone["rows"][0]["smaller"] == report["heights"]["rows"][1]["smaller"]


def test_the_rows_are_what_the_camera_policy_measures(run, report, tmp_path):
    """A row is the measurement of the same persons with `input.resample=camera` on the command line."""
    settings = ["input.resample=camera", "input.camera.height=[24,24]"]
    card = evaluate(run, out=tmp_path, overrides=settings, bootstrap=0, breakdown=True, sizes="box")
    saved = np.load(next(tmp_path.glob("predictions-*.npz")))
    data = load_data("synthetic", split="val", options={"count": 16, "size": [96, 96], "height": [16, 90]})
    errors = []
    for i, s in enumerate(data.samples):
        if s.box[3] >= 24:
            errors += [np.hypot(*(saved["keypoints"][i, j] - s.keypoints[j])) for j in np.flatnonzero(s.visibility)]
    row = report["heights"]["rows"][1]["enough"]
    assert 0 < row["persons"] < 16
    assert row["figures"]["EPE"]["value"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert card["breakdown"]["input"]["resample"] == "camera" and "heights" not in card["breakdown"]


BOXES = [(20, 20, 30, 100), (10, 30, 120, 60), (40, 10, 50, 130), (60, 60, 40, 28), (30, 30, 90, 20)]


def bright_persons():
    """Persons who are white boxes on black, tall and lying; their pictures, and data without labelled occlusion."""
    pictures, samples = {}, []
    for i, (x, y, w, h) in enumerate(BOXES):
        pictures[f"{i}"] = np.zeros((160, 160, 3), np.uint8)
        pictures[f"{i}"][y : y + h, x : x + w] = 255
        points = np.full((17, 2), (x + w / 2, y + h / 2), np.float32)
        samples.append(
            PersonSample(f"{i}", np.array([x, y, w, h], float), points, np.full(17, 2, np.uint8), i + 1, i + 1, area=float(w * h))
        )
    return PoseData("test", "val", "", COCO17, samples, pictures.__getitem__)


def clear(config):
    """A camera that adds no blur and no noise."""
    camera = config.input.camera.model_copy(update={"blur": (0.0, 0.0), "noise": (0.0, 0.0), "jpeg": (100, 100)})
    return config.model_copy(update={"input": config.input.model_copy(update={"camera": camera})})


def test_persons_are_as_high_as_asked_in_the_far_picture(run, monkeypatch):
    """Rows of white in the picture that the far camera took: the height asked for, or a smaller person's own."""
    model, config = load_model(run)
    data, config = bright_persons(), clear(config)
    seen = []
    degrade = resample.degrade

    def watched(image, *args):
        seen.append(image[..., 0].astype(float).sum(0).max() / 255)
        return degrade(image, *args)

    monkeypatch.setattr(resample, "degrade", watched)
    found = predict_split(model, data, config)
    assert not seen, "the crops as they are have no camera"
    heights = (10, 16, 24, 48, 100, 4000)
    report = break_down(model, config, data, found, heights, bootstrap=0)
    assert len(seen) == len(BOXES) * 5, "where nobody is as high, nothing is rendered"
    for height, measured in zip(heights, np.reshape(seen, (5, -1)), strict=False):
        wanted = [min(height, h) for _, _, _, h in BOXES]
        assert np.abs(measured - wanted).max() < 0.35, (height, measured)
    assert [row["smaller"] for row in report["heights"]["rows"]] == [0, 0, 1, 2, 3, 5]
    assert [row["enough"]["persons"] for row in report["heights"]["rows"]] == [5, 5, 4, 3, 2, 0]
    assert report["heights"]["plain"]["same"] == {"persons": 0, "figures": {}}
    assert "occlusion" in report["not_measured"]


def test_a_reduced_cache_is_not_used_for_heights():
    config = tiny(cache={"dir": "nowhere", "reduced": True}, input={"padding": 1.1, "camera": {"blur": [0.1, 0.2]}})
    there = at_height(config, 32)
    assert there.cache.dir is None and there.input.resample == "camera" and there.input.camera.height == (32, 32)
    assert there.input.padding == 1.1 and there.input.camera.blur == (0.1, 0.2) and there.train == config.train


def test_every_figure_stands_in_the_tables(report):
    for part in [*tables(report), *height_tables(report), *cross_tables(report, "EPE_crop")]:
        assert all(len(row) == len(part.columns) for row in part.rows)
    by_height = next(part for part in tables(report) if part.columns[0] == "height")
    for row, (name, cell) in zip(by_height.rows, report["by"]["height"].items(), strict=True):
        assert row[:2] == [name, str(cell["persons"])]
        assert row[2:] == [interval(cell["figures"][m]) if m in cell["figures"] else "-" for m in report["metrics"]]
    page = markdown(report, "picture.png")
    assert "![curves](picture.png)" in page
    for row in report["heights"]["rows"]:
        assert f"| {row['height']} px | {row['enough']['persons']} | " in page
    for metric in report["metrics"]:
        assert interval(report["all"]["figures"][metric]) in page


def test_what_the_command_prints(run, report, tmp_path, monkeypatch, capsys):
    command = ["lowpose", "eval", str(run), "--breakdown", "--heights", "16,24,40", "--sizes", "box", "--bootstrap", "20"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for group, title in (("joints", "By labelled joints of 17"), ("height", "By height of the box in pixels")):
        first = lines.index(title)
        for name, cell in report["by"][group].items():
            assert any(line.startswith(f"{label(name, cell)} {cell['persons']} ") for line in lines[first : first + 14])
    for row in report["heights"]["rows"]:
        shown = interval(row["enough"]["figures"]["EPE_crop"], 1)
        assert any(line.startswith(f"{row['height']} px {row['enough']['persons']} ") and shown in line for line in lines)
    assert max(map(len, printed.splitlines())) <= 80 and printed.count("EPE_crop by") == 2


def test_cross_tables_are_laid_out_as_the_papers(report):
    occlusion, size = cross_tables(report, "EPE", intervals=False)
    joints = [label(name, cell) for name, cell in report["by"]["joints"].items()]
    assert occlusion.columns == ["occlusion / joints", *joints, "all"] and size.columns[1:] == occlusion.columns[1:]
    assert [row[0] for row in size.rows] == ["M: <96", "L: 96-144", "XL: 144-192", "XXL: >=192", "all"]
    cell = report["cross"]["size x joints"]["M"]["many"]
    assert size.rows[0][3] == f"{cell['figures']['EPE']['value']:.2f} ({cell['persons']})"
    assert size.rows[3][1] == "- (0)"
    assert size.rows[-1][-1] == f"{report['all']['figures']['EPE']['value']:.2f} ({report['all']['persons']})"
    assert occlusion.rows[-1][2].endswith(f"({report['by']['joints']['some']['persons']})")


def test_all_files_or_none(report, tmp_path, monkeypatch):
    write_breakdown(tmp_path, "old", report)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for where in ("lowpose.breakdown_page.breakdown_plot", "lowpose.breakdown_page.markdown", "lowpose.files._sync"):
        with monkeypatch.context() as patched:
            patched.setattr(where, full)
            with pytest.raises(LowposeError, match="no space left on device"):
                write_breakdown(tmp_path, "old", report | {"name": "another"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_plots_of_little(tmp_path):
    """One person, no sigmas, no torso, no heights; and nobody with labels."""
    data = bright_persons()
    for samples in (data.samples[:1], []):
        few = PoseData("test", "val", "", COCO17, samples, data.read)
        little = lowpose.breakdown(few, np.zeros((len(samples), 17, 2)), bootstrap=0)
        about = {"name": "little", "input": {"size": [8, 8], "resample": "area"}, "flip_test": False}
        about["measured_on"] = {"kind": "test", "split": "val", "persons": len(samples), "boxes": "gt", "protocol": "coco"}
        write_breakdown(tmp_path, f"little-{len(samples)}", little | about)
        assert cv2.imread(str(tmp_path / f"little-{len(samples)}.png")) is not None


def test_asked_for_wrongly(run):
    for wrong, answer in (
        ({"heights": (16,)}, "parts of a breakdown"),
        ({"sizes": "box"}, "parts of a breakdown"),
        ({"breakdown": True, "sizes": "boxes"}, "sizes must be one of area, box"),
        ({"breakdown": True, "heights": (32, 16)}, "heights must rise"),
    ):
        with pytest.raises(LowposeError, match=answer):
            evaluate(run, **wrong)
    assert not {p.name for p in run.iterdir()} & NAMES


@pytest.mark.photographs
def test_real_data_sets_say_what_they_do_not_label(shared):
    """Which of occlusion and area the annotations hold, counted here from the files themselves."""
    for kind, folder, split, areas, occluded in (
        ("lsp", "lspet", "val", "joints", False),
        ("coco", "coco-mini", "train", "labelled", True),
        ("mpii", "mpii-5", "test_mpii.json", "joints", False),
        ("crowdpose", "crowdpose-2", "test_crowdpose.json", "boxes", True),
    ):
        data = load_data(kind, shared / folder, split)
        assert data.areas == areas
        found = lowpose.breakdown(data, np.stack([s.keypoints for s in data.samples]), bootstrap=0)
        assert ("occlusion" in found["by"]) == occluded and ("size" in found["by"]) == (areas == "labelled")
        assert found["all"]["figures"]["EPE"]["value"] == 0
        if kind == "coco":
            rows = json.loads(next((shared / folder / "annotations").glob("person_keypoints*.json")).read_text())["annotations"]
            rows = [row for row in rows if row["num_keypoints"] and not row["iscrowd"]]
            assert found["all"]["persons"] == len(rows)
            large = sum(row["area"] >= 128**2 and row["num_keypoints"] > 10 for row in rows)
            assert found["cross"]["size x joints"]["XXL"]["many"]["persons"] == large > 0
            hidden = sum(2 * row["keypoints"][2::3].count(1) >= row["num_keypoints"] for row in rows)
            assert found["by"]["occlusion"]["many"]["persons"] == hidden > 0
