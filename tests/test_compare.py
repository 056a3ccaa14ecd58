"""`lowpose compare`: same budget, seeds and views; differences as computed by hand from the runs' predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from taught import save_teacher

from lowpose.checkpoint import STATE
from lowpose.comparison import compare
from lowpose.data import load_data
from lowpose.errors import LowposeError

RECIPE = """
name: {name}
data: {{kind: synthetic, options: {{count: 10, size: [64, 64], height: [30, 50]}}}}
input: {{size: [32, 32]}}
model: {{backbone: resnet18, pretrained: none, deconv: [16, 16, 16]}}
head: {{name: {head}}}
train: {{epochs: {epochs}, batch_size: 4, schedule: constant}}
"""


def write(folder, name, head, epochs=2):
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, head=head, epochs=epochs))
    return str(path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    recipes = [write(folder, "a", "simcc"), write(folder, "b", "heatmap")]
    return folder, recipes, compare(recipes, (0, 1), folder / "out", bootstrap=200)


def test_differences_equal_a_direct_computation(compared):
    folder, recipes, result = compared
    data = load_data("synthetic", None, "val", options={"count": 10, "size": [64, 64], "height": [30, 50]})
    truth = np.stack([s.keypoints for s in data.samples]).astype(float)
    seen = np.stack([s.visibility > 0 for s in data.samples])
    means = {}
    for recipe in recipes:
        per_seed = []
        for run in sorted((folder / "out").glob(f"*{recipe.split('/')[-1][0]}/seed-*")):
            points = np.load(run / "predictions.npz")["keypoints"].astype(float)
            per_seed.append(np.sqrt(((points - truth) ** 2).sum(-1))[seen].mean())
        assert len(per_seed) == 2
        means[recipe] = np.mean(per_seed)
    first, second = (row["metrics"]["EPE"] for row in result["rows"])
    assert first["mean"] == pytest.approx(means[recipes[0]], abs=1e-4)
    assert second["difference"] == pytest.approx(means[recipes[1]] - means[recipes[0]], abs=1e-4)
    assert second["low"] <= second["difference"] <= second["high"]
    assert {"AP", "PCK@0.2"} <= set(result["rows"][0]["metrics"])
    assert "difference" not in first


def test_a_second_call_trains_nothing_and_gives_the_same(compared):
    folder, recipes, result = compared
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob(STATE)}
    assert len(stamps) == 4
    assert compare(recipes, (0, 1), folder / "out", bootstrap=200) == result
    assert {p: p.stat().st_mtime_ns for p in (folder / "out").rglob(STATE)} == stamps
    assert json.loads((folder / "out" / "compare.json").read_text())["rows"] == result["rows"]


def test_different_budgets_are_refused(tmp_path):
    recipes = [write(tmp_path, "a", "simcc"), write(tmp_path, "b", "heatmap", epochs=3)]
    with pytest.raises(LowposeError, match="epochs 2, .* has 3; give one budget, as train.epochs=2"):
        compare(recipes, (0,), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_views_that_differ_are_refused(tmp_path):
    recipes = [write(tmp_path, "a", "simcc"), write(tmp_path, "b", "heatmap")]
    text = Path(recipes[1]).read_text()
    Path(recipes[1]).write_text(text + "augment: {views: 4}\n")
    with pytest.raises(LowposeError, match="augment.views None, .* has 4; give one budget, as augment.views=4"):
        compare(recipes, (0,), tmp_path / "out")


def test_a_teacher_is_given_to_those_that_learn_and_must_be_the_same(tmp_path):
    one, two = (save_teacher(tmp_path / f"teacher{seed}.safetensors", seed=seed) for seed in (1, 2))
    recipes = [write(tmp_path, "a", "simcc"), write(tmp_path, "b", "simcc")]
    Path(recipes[1]).write_text(Path(recipes[1]).read_text() + f"teacher: {one}\ndistill: {{cca: {{}}}}\n")
    learns = [f"teacher.weights={one}", "train.epochs=1"]
    result = compare(recipes, (0,), tmp_path / "out", learns, bootstrap=100)
    assert len(result["rows"]) == 2
    with pytest.raises(LowposeError, match=r"b/seed-0: learned from another teacher than .*teacher2.safetensors"):
        compare(recipes, (0,), tmp_path / "out", [f"teacher.weights={two}", "train.epochs=1"], bootstrap=100)
