"""Runs of head `integral`: training, one network read as detection and as regression, a heatmap's network read as regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny

from lowpose.checkpoint import load_model
from lowpose.data.crops import CropReader
from lowpose.errors import LowposeError
from lowpose.evaluation import evaluate
from lowpose.geometry import invert, transform
from lowpose.tasks.pose import predict_split, training_data, validation_data
from lowpose.training import train

INTEGRAL = {"name": "integral", "beta": 8.0}
HEATMAP = {"name": "heatmap", "target": "continuous", "decode": "quarter"}


def config_of(head: dict, epochs: int = 12):
    return tiny(head=head, train={"epochs": epochs, "lr": 2e-3, "save_every": 1000}, eval={"flip": False})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, head in {"integral": INTEGRAL, "heatmap": HEATMAP}.items():
        train(config_of(head), folder / name)
    return folder


@pytest.fixture
def run(runs):
    return runs / "integral"


def read(maps: np.ndarray, decode: str, beta: float) -> np.ndarray:
    """(N, K, 2) crop pixels (32 x 32, cells of 4), of maps (N, K, 8, 8) float64, in plain NumPy."""
    if decode == "argmax":
        index = maps.reshape(*maps.shape[:2], -1).argmax(-1)
        return 4 * np.stack([index % 8 + 0.5, index // 8 + 0.5], -1)
    s = beta * np.maximum(maps, 0)
    mass = np.exp(s) if decode == "plain" else np.expm1(s)
    centres = np.arange(8) + 0.5
    total = mass.sum((-2, -1))
    return 4 * np.stack([(mass.sum(-2) * centres).sum(-1) / total, (mass.sum(-1) * centres).sum(-1) / total], -1)


def expected(folder, decode: str, beta: float) -> np.ndarray:
    """(N, K, 2) picture pixels: the network's maps for the validation crops, read by NumPy."""
    model, config = load_model(folder)
    crops = [CropReader(validation_data(config), config.input).crop(i) for i in range(10)]
    with torch.no_grad():
        maps = model(torch.from_numpy(np.stack([c.image for c in crops])).permute(0, 3, 1, 2))["map"]
    return transform(invert(np.stack([c.matrix for c in crops])), read(maps.double().numpy(), decode, beta))


def measured(folder, *overrides: str, out) -> tuple[np.ndarray, dict]:
    card = evaluate(folder, overrides=overrides, bootstrap=0, out=out)
    (found,) = out.glob("predictions*.npz")
    return np.load(found)["keypoints"], card


@pytest.mark.parametrize("decode", ["compensated", "closed", "plain", "argmax"])
def test_one_network_is_read_as_regression_and_as_detection(run, decode, tmp_path):
    found, card = measured(run, f"head.decode={decode}", out=tmp_path)
    np.testing.assert_allclose(found, expected(run, decode, 8.0), atol=0.05)
    assert card["recipe"]["head"] == INTEGRAL | {"decode": decode}


def test_readings_differ_and_dark_is_one_of_them(run, tmp_path):
    dark, _ = measured(run, "head.decode=dark", out=tmp_path / "dark")
    argmax, plain = expected(run, "argmax", 8.0), expected(run, "plain", 8.0)
    assert 0 < np.abs(dark - argmax).max() < 12 and np.abs(plain - argmax).max() > 1


def test_beta_is_a_reading_too(run, tmp_path):
    found, _ = measured(run, "head.decode=plain", "head.beta=2", out=tmp_path)
    np.testing.assert_allclose(found, expected(run, "plain", 2.0), atol=0.05)


def test_a_heatmap_network_is_read_as_regression(runs, tmp_path):
    """Settings that both heads have carry over, `decode` too; what only the integral has takes its default."""
    folder = runs / "heatmap"
    found, card = measured(folder, "head.name=integral", "head.decode=compensated", out=tmp_path / "a")
    np.testing.assert_allclose(found, expected(folder, "compensated", 10.0), atol=0.05)
    assert card["recipe"]["head"] == {"name": "integral", "target": "continuous", "decode": "compensated"}
    quarter, _ = measured(folder, "head.name=integral", out=tmp_path / "b")
    np.testing.assert_allclose(quarter, measured(folder, out=tmp_path / "c")[0], atol=1e-4)
    assert np.abs(quarter - found).max() > 0.5


def test_settings_of_one_head_are_no_settings_of_another(runs, tmp_path):
    with pytest.raises(LowposeError, match="head: unknown key 'beta'"):
        evaluate(runs / "integral", overrides=["head.name=heatmap"], out=tmp_path)
    with pytest.raises(LowposeError, match="head: unknown key 'beta'"):
        evaluate(runs / "heatmap", overrides=["head.beta=3"], out=tmp_path)
    with pytest.raises(LowposeError, match="needs other layers than the weights have"):
        evaluate(runs / "integral", overrides=["head.learn_beta=true"], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_without_zero_is_not_compensated_unless_asked_to(tmp_path):
    head = {"name": "integral", "train": "plain", "beta": 1.0, "prior": 0, "rectify": False}
    run = train(config_of(head, epochs=1), tmp_path / "run")
    with pytest.raises(LowposeError, match="decode: compensated takes out an empty background.*rectify: true"):
        evaluate(run, overrides=["head.decode=compensated"])
    found, _ = measured(run, "head.decode=compensated", "head.rectify=true", out=tmp_path / "out")
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "head",
    [
        INTEGRAL,
        INTEGRAL | {"prior": 0},
        INTEGRAL | {"learn_beta": True, "train": "closed"},
        {"name": "integral", "train": "plain", "beta": 1.0, "prior": 0, "rectify": False},
    ],
    ids=["compensated", "without-prior", "learned-beta", "plain"],
)
def test_training_on_synthetic_people_reduces_the_error(head, tmp_path):
    """On the people that it has seen, from untrained weights."""
    errors = {}
    for epochs in (1, 25):
        config = config_of(head, epochs).model_copy(update={"augment": tiny(augment={"flip": 0}).augment})
        model, _ = load_model(train(config, tmp_path / str(epochs)))
        data = training_data(config)
        found = predict_split(model, data, config)
        truth, seen = np.stack([s.keypoints for s in data.samples]), np.stack([s.labelled for s in data.samples])
        errors[epochs] = np.linalg.norm(found.keypoints - truth, axis=-1)[seen].mean()
        if epochs > 1 and "learn_beta" in head:
            assert model.head.beta.item() != pytest.approx(8.0, abs=1e-3)
    assert errors[25] < 0.6 * errors[1], errors
