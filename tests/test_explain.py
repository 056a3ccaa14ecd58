"""The pictures of attention and predictions: who is shown, where the marks are, and wrong input of the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny

import lowpose.explain
from lowpose.checkpoint import save_weights
from lowpose.cli import main
from lowpose.data.crops import Crop
from lowpose.errors import LowposeError
from lowpose.explain import FOUND, TILE, Side, choose, explain, overlay, share_near
from lowpose.images import read_image
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, LSP14, Skeleton

STEP = TILE + max(6, TILE // 24)  # from tile to tile of a sheet


def run(folder: Path, skeleton: Skeleton = COCO17, **sections) -> Path:
    torch.manual_seed(len(str(folder)))
    config = tiny(**sections)
    save_weights(folder / "weights.safetensors", build_model(config, skeleton), config)
    return folder


def test_persons_are_taken_by_rank():
    errors = np.random.default_rng(0).permutation(40) / 40
    before = np.random.default_rng(1).random(40)
    order = np.argsort(errors)[:37]  # the others are not labelled
    sides = [Side(name, None, None, None, None, e, {}) for name, e in (("baseline", before), ("student", errors))]
    chosen = choose(order, sides, persons=9)
    assert {name: len(set(ids)) for name, ids in chosen.items()} == dict.fromkeys(chosen, 3)
    known = {int(i): errors[i] for i in order}
    by_error = sorted(known, key=known.get)
    by_gain = sorted(known, key=lambda i: errors[i] - before[i])
    assert chosen["best"] == by_error[:3] and chosen["worst"] == by_error[-3:]
    assert np.median(list(known.values())) in errors[chosen["median"]]
    assert chosen["most gained"] == by_gain[:3] and chosen["most lost"] == by_gain[:-4:-1]
    assert list(choose(order, sides[1:], 9)) == ["best", "median", "worst"]


def test_share_near_a_joint():
    even = np.ones((64, 64), np.float32)
    assert share_near(even, np.array([32.0, 32.0])) == pytest.approx(np.pi / 64, rel=0.05)
    assert share_near(even, np.array([0.0, 32.0])) == pytest.approx(np.pi / 128, rel=0.05), "half of it lies outside"
    spot = np.zeros((64, 48), np.float32)
    spot[10, 40] = 0.3
    assert share_near(spot, np.array([40.5, 10.5])) == 1 and share_near(spot, np.array([10.5, 40.5])) == 0
    assert share_near(0 * spot, np.array([1.0, 1.0])) is None


def test_marks_stand_where_the_joints_are():
    keypoints = np.full((17, 2), 5.0, np.float32)
    keypoints[3] = 20.5, 44.5
    crop = Crop(np.full((64, 64, 3), 90, np.uint8), keypoints, np.ones(17, np.float32), np.eye(3)[:2], 0)
    heat = np.zeros((64, 64), np.float32)
    heat[44, 50] = 1
    picture = overlay(crop, heat, 3, np.array([30.5, 10.5]), COCO17).astype(float)
    factor = TILE / 64

    def centre(colour):
        y, x = np.nonzero((np.abs(picture - colour).max(-1)) < 40)
        return np.array([x.mean(), y.mean()]) + 0.5

    assert np.abs(centre((255, 255, 255)) - factor * keypoints[3]).max() < 0.5
    assert np.abs(centre(FOUND) - factor * np.array([30.5, 10.5])).max() < 0.5
    crop.weight[3] = 0
    plain = overlay(crop, None, 3, None, COCO17)
    assert (plain == 90).all(), "no ring where the joint is not labelled"
    colourful = np.ptp(overlay(crop, heat, 3, None, COCO17).astype(float), axis=-1)
    y, x = np.unravel_index(colourful.argmax(), colourful.shape)
    assert abs(x + 0.5 - factor * 50.5) < factor and abs(y + 0.5 - factor * 44.5) < factor


def test_pictures_of_one_run(tmp_path):
    paths = explain(run(tmp_path), persons=3)
    assert paths == [tmp_path / "attention.png", tmp_path / "grid.png"]
    attention, grid = (read_image(p).shape for p in paths)
    # 3 persons x 3 joints; the crop and three layers; three groups of one
    assert 9 * STEP < attention[0] < 12 * STEP + 200 and 4 * STEP < attention[1] < 5 * STEP
    assert 3 * STEP < grid[0] < 6 * STEP and STEP < grid[1] < 2 * STEP


def test_pictures_beside_a_baseline_of_another_size_and_head(tmp_path):
    """The baseline has no stages with convolutions; the pictures go into another folder."""
    student = run(tmp_path / "student")
    other = {"input": {"size": [32, 48]}, "head": {"name": "heatmap"}}
    baseline = run(tmp_path / "baseline", model={"backbone": "vit_tiny_patch16_224"}, **other)
    paths = explain(student, baseline, ["nose"], persons=3, out=tmp_path / "out", method="hires-cam")
    attention, grid = (read_image(p).shape for p in paths)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["attention.png", "grid.png"]
    # the crop, then both sides of three layers: places of the baseline's missing ones stay empty
    assert 3 * STEP < attention[0] < 6 * STEP and 7 * STEP < attention[1] < 8 * STEP
    assert 5 * STEP < grid[0] < 9 * STEP and 2 * STEP < grid[1] < 3 * STEP
    with pytest.raises(LowposeError, match="baseline: no layer 'layer4'; known: head and paths of modules"):
        explain(student, baseline, layers=["layer4"])


TOKENS = {"width": 16, "depth": 1, "mixer": {"name": "attention", "heads": 2}}


def test_pictures_of_token_models(tmp_path, monkeypatch):
    """A regression of patches beside token classes of a backbone: their visual tokens stand for what a head reads."""
    captions = []
    sheet = lowpose.explain.contact_sheet
    monkeypatch.setattr("lowpose.explain.contact_sheet", lambda *a, **kw: (captions.append(a[3]), sheet(*a, **kw))[1])
    bare = {"backbone": "none", "tokens": {**TOKENS, "patch": [8, 8]}}
    student = run(tmp_path / "student", model=bare, head={"name": "regression"})
    paths = explain(student, joints=["nose"], persons=3)
    attention, grid = (read_image(p).shape for p in paths)
    assert 3 * STEP < attention[0] < 6 * STEP and 2 * STEP < attention[1] < 3 * STEP, "the crop and the visual tokens"
    assert 3 * STEP < grid[0] < 6 * STEP
    assert "head: the visual tokens before their first layer; else" in captions[0]
    other = run(tmp_path / "other", model={"backbone": "resnet18", "tokens": {**TOKENS, "patch": [2, 2]}})
    paths = explain(student, other, ["nose"], persons=3, out=tmp_path / "both", method="hires-cam")
    width = read_image(paths[0]).shape[1]
    assert 7 * STEP < width < 8 * STEP, "the crop, then both sides of three layers"
    assert "head: the visual tokens before their first layer; else" in captions[2]
    maps = run(tmp_path / "maps", head={"name": "regression"})
    explain(student, maps, ["nose"], ["head"], persons=3, out=tmp_path / "mixed")
    said = "head: what the prediction head reads (baseline) and the visual tokens before their first layer (student); else"
    assert said in captions[4]
    with pytest.raises(LowposeError, match="student: no layer 'layer4'; did you mean 'tokens.layers'"):
        explain(student, layers=["layer4"])


def test_too_few_persons(tmp_path):
    run(tmp_path, data={"options": {"count": 2, "size": [64, 64], "height": [30, 50]}})
    with pytest.raises(LowposeError, match="at least three labelled persons; split 'val' has 2"):
        explain(tmp_path)


def test_wrong_input_of_the_command_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(Path("a"))
    run(Path("b"), LSP14)
    cases = {
        "a --joints nose,left_kne": "skeleton 'coco17' has no keypoint 'left_kne'; did you mean 'left_knee'?",
        "a --joints ,": "no joints: name some of skeleton 'coco17', as nose, left_eye, right_eye",
        "a --layers layr4": "a: no layer 'layr4'; did you mean 'layer4'?",
        "a --method cam": "unknown method 'cam'; did you mean 'grad-cam'?",
        "a --beside b": "b: predicts skeleton 'lsp14' (14 keypoints), which cannot stand beside 'coco17' (17 keypoints); "
        "give a baseline of the same skeleton",
        "a --beside c": "c: no such weights file or run folder",
        "a --data coco:nowhere": "nowhere: no such folder (root of the coco data; see: lowpose data get)",
    }
    for words, said in cases.items():
        monkeypatch.setattr(sys, "argv", ["lowpose", "explain", *words.split()])
        with pytest.raises(SystemExit) as e:
            main()
        answer = capsys.readouterr()
        assert (e.value.code, answer.err.strip(), answer.out) == (2, f"error: {said}", ""), words
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["weights.safetensors"] * 2, "nothing is left behind"


def test_command_without_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    monkeypatch.setattr(sys, "argv", ["lowpose", "explain", str(run(tmp_path))])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2
    said = "error: this needs 'pytorch_grad_cam', which is not installed: pip install 'lowpose[explain]'"
    assert capsys.readouterr().err.strip() == said


def test_the_command_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run(tmp_path))
    words = "explain . --joints nose --layers head --persons 3 --out pictures"
    monkeypatch.setattr(sys, "argv", ["lowpose", *words.split()])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 0 and capsys.readouterr().out.split() == ["pictures/attention.png", "pictures/grid.png"]
    assert read_image(tmp_path / "pictures" / "attention.png").any()
