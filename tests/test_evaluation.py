"""What a measurement may change, and that its card says what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import tiny

from lowpose.checkpoint import save_weights
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.nn.model import build_model
from lowpose.skeletons import COCO17, MPII16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(head={"name": "heatmap", "target": "continuous", "decode": "argmax"})
    torch.manual_seed(0)
    save_weights(folder / "weights.safetensors", build_model(config, COCO17), config)
    return folder


def test_card_of_the_recipe_itself(run):
    card = evaluate(run, bootstrap=10)
    assert json.loads((run / "card.json").read_text())["metrics"] == card["metrics"]
    found = np.load(run / "predictions.npz")
    assert found["keypoints"].shape == (10, 17, 2)


def test_another_reading_of_the_same_layers(run):
    """`head.decode` changes how the trained maps are read, and gets a card of its own."""
    plain = evaluate(run, bootstrap=0)["metrics"]["EPE"]["value"]
    before = (run / "card.json").read_text()
    card = evaluate(run, overrides=["head.decode=udp"], bootstrap=0)
    assert card["recipe"]["head"]["decode"] == "udp"
    assert card["metrics"]["EPE"]["value"] != plain
    assert (run / "card.json").read_text() == before
    evaluate(run, overrides=["head.decode=argmax", "cache.dir=null"], bootstrap=0)
    names = {path.name.partition("val-")[2] for path in run.glob("card-*.json")}
    assert names == {"head.decode-udp.json", "head.decode-argmax.json"}  # neither takes the other's place


@pytest.mark.parametrize("item", ["model.backbone=resnet50", "train.epochs=999", "input.size=[64,64]", "init=x", "name=y"])
def test_what_was_trained_cannot_be_overridden(run, item):
    with pytest.raises(LowposeError, match="the weights are trained; a measurement can change"):
        evaluate(run, overrides=[item])


def test_unknown_head_settings_are_refused(run):
    with pytest.raises(LowposeError, match="unknown key 'bogus'"):
        evaluate(run, overrides=["head.bogus=1"])


def test_a_skeleton_without_sigmas_still_gives_result_rows(tmp_path):
    """MPII has no OKS, so nothing is suppressed: every box keeps its row, in COCO's pixel indices."""
    config = tiny(data={"skeleton": "mpii16"})
    torch.manual_seed(0)
    save_weights(tmp_path / "weights.safetensors", build_model(config, MPII16), config)
    evaluate(tmp_path, bootstrap=0, results=tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())
    found = np.load(tmp_path / "predictions.npz")
    assert len(rows) == 10
    points = np.array([row["keypoints"] for row in rows]).reshape(10, 16, 3)[..., :2]
    assert np.allclose(points, found["keypoints"] - 0.5, atol=1e-3)
