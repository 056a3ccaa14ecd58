"""Each example runs as a user runs it, in a process of its own, with small settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import lowpose
from lowpose.draw import LEFT, MIDDLE, RIGHT

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(cwd: Path, *words: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def example(number: int) -> str:
    return str(EXAMPLES[number - 1])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_short_and_say_what_they_show(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith('"""') and any(f"python examples/{path.name}" in line for line in lines[:8])


def test_there_are_five():
    assert [p.name[:3] for p in EXAMPLES] == ["01_", "02_", "03_", "04_", "05_"]


def test_predict(tmp_path):
    said = run(tmp_path, example(1), "--people", "16", "--epochs", "1", "--out", "o")
    assert said.count("surest joint") == 4
    data = lowpose.load_data("synthetic", split="val", options={"count": 4})
    street = np.hstack([data.read(s.image) for s in data.samples])
    drawn = pixels(tmp_path / "o" / "poses.png")
    assert drawn.shape == (2 * street.shape[0], 2 * street.shape[1], 3)
    for i, (sample, at) in enumerate(zip(data.samples, re.findall(r"at \[ *([\d.]+) +([\d.]+)\]", said), strict=True)):
        point = np.array(at, float)
        centre = sample.box[:2] + sample.box[2:] / 2 + [256 * i, 0]
        assert (np.abs(point - centre) <= 1.25 * sample.box[2:].max() / 2 + 0.1).all()  # inside that person's crop
        column, row = (2 * point).astype(int)
        ink = drawn[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3).astype(int)
        assert min(np.abs(ink - colour).max(1).min() for colour in (LEFT, RIGHT, MIDDLE)) < 40  # a joint is drawn there
    # the same model again, on a picture of one's own
    Image.fromarray(street[:, :256]).save(tmp_path / "one.png")
    words = ["--weights", "o/run", "--picture", "one.png", "--out", "p", "--box", *map(str, data.samples[0].box)]
    again = run(tmp_path, example(1), *words)
    assert again.splitlines()[0] == said.splitlines()[0] and pixels(tmp_path / "p" / "poses.png").shape == (512, 512, 3)


def test_custom_keypoints(tmp_path):
    said = run(tmp_path, example(2), "--people", "16", "--epochs", "1", "--out", "o")
    assert "AP " in said and "EPE_crop " in said
    names = ["head_top", "left_wrist", "right_wrist", "left_ankle", "right_ankle"]
    card = json.loads((tmp_path / "o" / "run" / "card.json").read_text())
    assert card["measured_on"]["kind"] == "coco" and card["metrics"]["EPE"]["n"] == 16
    lsp = lowpose.load_data("synthetic", split="val", skeleton="lsp14", options={"count": 16})
    truth = [[s.keypoints[lsp.skeleton.index("left_wrist")], s.labelled[lsp.skeleton.index("left_wrist")]] for s in lsp.samples]
    coco = json.loads((tmp_path / "o" / "annotations" / "val.json").read_text())
    assert coco["categories"][0]["keypoints"] == names and len(coco["annotations"]) == len(coco["images"]) == 16
    for one, (point, labelled) in zip(coco["annotations"], truth, strict=True):
        x, y, flag = one["keypoints"][3:6]
        assert (flag > 0) == labelled
        if labelled:
            np.testing.assert_allclose([x, y], point - 0.5, atol=1e-3)
    skeleton = lowpose.get_skeleton(tmp_path / "o" / "star5.yaml")
    assert list(skeleton.keypoints) == names and skeleton.flip_index.tolist() == [0, 2, 1, 4, 3]


def test_new_head(tmp_path):
    said = run(tmp_path, example(3), "o", "data.options.count=16", "train.epochs=1", "train.batch_size=8")
    card = json.loads((tmp_path / "o" / "run" / "card.json").read_text())
    assert f"{card['metrics']['EPE_crop']['value']:.1f}" in said
    assert yaml.safe_load((tmp_path / "o" / "run" / "recipe.yaml").read_text())["head"] == {"name": "laplace"}
    steps = [json.loads(line) for line in (tmp_path / "o" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(steps[-1]["laplace"])


def test_new_head_keeps_every_promise():
    """The contract tests run over a head outside the package, as docs/extending.md says."""
    words = ["-m", "pytest", "-p", EXAMPLES[2].stem, "-p", "no:cacheprovider", "tests/contracts", "-k", "laplace"]
    said = run(ROOT, *words, PYTHONPATH=str(ROOT / "examples"))
    assert int(said.split(" passed")[0].split()[-1]) >= 15 and "skipped" not in said


def test_compare(tmp_path):
    said = run(tmp_path, example(4), "--people", "12", "--epochs", "1", "--seeds", "0", "--out", "o")
    first, second = json.loads((tmp_path / "o" / "compare.json").read_text())["rows"]
    a, b = (row["metrics"]["EPE_crop"] for row in (first, second))
    assert "difference" not in a and b["difference"] == pytest.approx(b["mean"] - a["mean"])
    assert b["low"] <= b["difference"] <= b["high"]
    assert f"difference {b['difference']:+.2f}" in said and (tmp_path / "o" / "compare.md").is_file()


def test_crops_and_resampling_without_torch(tmp_path):
    words = ["--people", "3", "--out", "s.png"]
    code = f"import sys, runpy; sys.modules['torch'] = None; sys.argv[1:] = {words}; runpy.run_path({example(5)!r})"
    said = run(tmp_path, "-c", code)
    assert "paper differs from area by" in said and "camera differs from area by" in said
    sheet = pixels(tmp_path / "s.png")
    assert sheet.shape[0] > 4 * 192 and sheet.shape[1] > 3 * 192
