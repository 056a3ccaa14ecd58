"""The wheel in an empty environment: core dependencies only, no torch, prediction from an exported file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lowpose"
OFFLINE = ("No matching distribution", "Could not find a version", "Connection", "Temporary failure", "Network is unreachable")
pytestmark = pytest.mark.timeout(900)


def installer(*words: str) -> None:
    """Runs a command that fetches packages; skips the test where there is no registry to fetch them from."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=800)
    said = done.stdout + done.stderr
    if done.returncode and any(sign in said for sign in OFFLINE):
        pytest.skip(f"no package registry: {said.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    installer(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment that holds the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    installer(bin_folder / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    return bin_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """weights.safetensors of a network with random weights, and model.onnx."""
    import torch

    from lowpose.checkpoint import save_weights
    from lowpose.export import export_onnx
    from lowpose.nn.model import build_model
    from lowpose.recipe_files import load_config
    from lowpose.skeletons import COCO17

    folder = tmp_path_factory.mktemp("model")
    config = load_config("synthetic/simcc_hrnet-w18-small_32")
    torch.manual_seed(0)
    net = build_model(config, COCO17)
    torch.nn.init.normal_(net.head.final.weight, std=1.0)
    save_weights(folder / "weights.safetensors", net, config, step=0)
    export_onnx(folder / "weights.safetensors", folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def picture(model):
    """(H, W, 3) with one person, beside the model as picture.png with boxes.json, and three boxes."""
    import lowpose
    from lowpose.images import write_image

    data = lowpose.load_data("synthetic", split="val", options={"count": 1})
    image, box = data.read(data.samples[0].image), data.samples[0].box
    boxes = np.stack([box, box * [1, 1, 0.5, 1], [40, 30, 60, 90]])
    write_image(model / "picture.png", image)
    (model / "boxes.json").write_text(json.dumps({"picture.png": boxes.tolist()}))
    return image, boxes


def run(cwd: Path, *words) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run([str(w) for w in words], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    there = {p.relative_to(ROOT / "src").as_posix() for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {n for n in names if n.startswith("lowpose/")} == there
    assert sum(n.endswith(".yaml") for n in names) > 10 and any(n.endswith("LICENSE") for n in names)
    assert all(n.startswith(("lowpose/", "lowpose-")) for n in names)
    core = [line for line in about.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert 5 <= len(core) <= 10 and not any(word in line for line in core for word in ("torch", "timm", "accelerate", "scipy"))


def test_imports_without_torch(empty, tmp_path):
    code = (
        "import sys, importlib.util, lowpose, lowpose.metrics, lowpose.draw, lowpose.data\n"
        "missing = [n for n in ('torch', 'timm', 'accelerate', 'scipy', 'safetensors') if importlib.util.find_spec(n) is None]\n"
        "print(lowpose.__file__, len(missing), lowpose.load_data('synthetic', options={'count': 2}).skeleton.name)"
    )
    done = run(tmp_path, empty / "python", "-c", code)
    assert done.returncode == 0, done.stderr
    file, missing, skeleton = done.stdout.split()
    assert Path(file).is_relative_to(empty.parent) and missing == "5" and skeleton == "coco17"


def test_command_line(empty, tmp_path):
    helped = run(tmp_path, empty / "lowpose", "--help")
    assert helped.returncode == 0 and "predict" in helped.stdout and helped.stderr == ""
    listed = run(tmp_path, empty / "lowpose", "recipes", "--json")
    recipes = SOURCE / "recipes"
    files = {p.relative_to(recipes).with_suffix("").as_posix() for p in recipes.rglob("*.yaml")}
    assert {r["name"] for r in json.loads(listed.stdout)} == {f for f in files if not f.startswith("_")}


def test_predicts_what_torch_predicts(empty, model, picture, tmp_path):
    from lowpose.nn.predictor import load_torch

    image, boxes = picture
    want = load_torch(model / "weights.safetensors", device="cpu").predict(image, boxes)
    words = ["--weights", model / "model.onnx", "--boxes", model / "boxes.json", "--out", tmp_path / "poses"]
    done = run(tmp_path, empty / "lowpose", "predict", model / "picture.png", *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "poses" / "results.json").read_text())
    got = np.array([row["keypoints"] for row in rows]).reshape(3, 17, 3)
    np.testing.assert_allclose(got[..., :2] + 0.5, want.keypoints, rtol=0, atol=0.05)
    np.testing.assert_allclose(got[..., 2], want.scores, rtol=0, atol=2e-3)
    assert np.ptp(want.keypoints, axis=(0, 1)).min() > 20  # different answers, not one point
    assert (tmp_path / "poses" / "picture.png").is_file()


@pytest.mark.parametrize(
    "words", [("predict", "picture.png", "--weights", "weights.safetensors"), ("train", "lspet/simcc_resnet-18_64")]
)
def test_what_needs_torch_says_so_in_one_line(empty, model, picture, words):
    done = run(model, empty / "lowpose", *words)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "torch" in line and "pip install 'lowpose[train]'" in line
    assert not (model / "poses").exists() and not (model / "runs").exists()
