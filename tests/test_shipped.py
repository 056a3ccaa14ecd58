"""Weights that come with the package: files, names, cards, and prediction from them with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowpose
from lowpose import shipped
from lowpose.data import load_data
from lowpose.errors import LowposeError
from lowpose.runtime import load_onnx

NAMES = ("lowpose-32", "lowpose-64", "lowpose-32-light")


def test_what_comes_with_the_package():
    assert tuple(shipped.names()) == NAMES and shipped.DEFAULT in NAMES
    for name in NAMES:
        for suffix in (".onnx", ".safetensors"):
            assert 100_000 < shipped.find(name, suffix).stat().st_size <= 8_000_000
        assert (shipped.FOLDER / f"{name}.md").read_text().startswith(f"# {name}")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_of_these_files_and_says_how_good_and_on_which_terms(name):
    cards = pytest.importorskip("lowpose.cards")
    card = shipped.card_of(name)
    assert card["weights"]["sha256"] == cards.sha256(shipped.find(name, ".safetensors"))
    assert card["onnx"]["sha256"] == cards.sha256(shipped.find(name, ".onnx"))
    facts = load_onnx(shipped.find(name, ".onnx"))
    assert list(facts.settings.size) == card["input"]["size"] == [int(name.split("-")[1])] * 2
    assert "LSPET" in card["terms"] and card["trained_on"]["kind"] == "lsp" and card["measured_on"]["persons"] == 1000
    rows = card["heights"]["rows"]
    assert [r["height"] for r in rows] == [16, 24, 32, 48, 64, 96, 128]
    text = (shipped.FOLDER / f"{name}.md").read_text()
    assert card["terms"] in text and "32 px" in text and f"{card['metrics']['PCKh@0.5']['value']:.2f}" in text


def test_the_list_is_what_the_cards_say():
    rows = lowpose.list_weights()
    assert [r["name"] for r in rows] == list(NAMES)
    assert all(r["metrics"] == shipped.card_of(r["name"])["metrics"] and r["bytes"]["onnx"] > 0 for r in rows)


def test_torch_and_the_file_agree():
    pytest.importorskip("torch")
    from lowpose.nn.predictor import load_torch

    data = load_data("synthetic", split="test", options={"count": 12})
    items = [(data.read(s.image), [s.box], None) for s in data.samples]
    for name in NAMES:
        by_file, by_torch = (loaded.predict_many(items) for loaded in (lowpose.load(name), load_torch(name)))
        moved = [np.linalg.norm(a.keypoints - b.keypoints, axis=-1) for a, b in zip(by_file, by_torch, strict=True)]
        assert np.mean(np.concatenate(moved) < 0.05) > 0.9  # both hold the same fp16 numbers; a tie may go either way


def test_a_picture_is_enough(tmp_path):
    data = load_data("synthetic", split="test", options={"count": 1})
    lowpose.write_image(tmp_path / "photo.png", data.read(data.samples[0].image))
    code = "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['predict', 'photo.png']; import lowpose.cli as c; c.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "poses" / "results.json").read_text())
    assert len(row["keypoints"]) == 3 * 14 and (tmp_path / "poses" / "photo.png").is_file()


def test_names(tmp_path, monkeypatch):
    with pytest.raises(
        LowposeError, match="lowpose-46: no weights of this name come with the package; did you mean 'lowpose-64'"
    ):
        lowpose.load("lowpose-46")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lowpose-64").mkdir()  # what lies there comes first
    with pytest.raises(LowposeError, match="run folder without weights.safetensors"):
        pytest.importorskip("lowpose.checkpoint").weights_path("lowpose-64")


def test_nothing_is_written_beside_them(tmp_path, monkeypatch):
    """What is made of them goes to runs/NAME of the current folder, and they stay as they are."""
    pytest.importorskip("torch")
    from lowpose.calibration import calibrate
    from lowpose.export import onnx_path

    monkeypatch.chdir(tmp_path)
    before = {p.name: p.read_bytes() for p in shipped.FOLDER.iterdir()}
    assert onnx_path(None, shipped.find("lowpose-32", ".safetensors")) == Path("runs/lowpose-32/lowpose-32.onnx")
    assert onnx_path(None, tmp_path / "own.safetensors") == tmp_path / "own.onnx"
    with pytest.raises(
        LowposeError, match="lowpose-32: comes with the package and stays as it is; name the file to write with --to"
    ):
        calibrate("lowpose-32")
    assert shipped.home(shipped.find("lowpose-32", ".safetensors")) == Path("runs/lowpose-32")
    assert shipped.home(tmp_path / "own" / "weights.safetensors") == tmp_path / "own"
    assert {p.name: p.read_bytes() for p in shipped.FOLDER.iterdir()} == before
